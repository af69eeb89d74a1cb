"""The training loop. What it is given beside the recipe decides nothing but speed and place.

Data order, views, label drop, dropout and all initialisations are functions of (seed, purpose, step), so stopping and
starting again changes no bit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirai.data.batches import batch_indices, rank_slice
from mirai.data.codes import CodeStore
from mirai.errors import Interrupted, UserError
from mirai.experiments import paths
from mirai.experiments.scale import Numerics
from mirai.experiments.stages import StateStage
from mirai.foresight.sources import Sources
from mirai.models.transformer import Transformer, drop_labels
from mirai.randomness import integer, stream
from mirai.ranks import Ranks
from mirai.training.checkpoints import newest, save_final, save_progress
from mirai.training.journal import Journal
from mirai.training.phase import ActivePhase, Timeline
from mirai.training.state import TrainState

LOG_EVERY = 50  # steps, or an epoch where that is shorter
LISTEN_EVERY = 10  # steps until a signal is heard: 50 of a 3B model outlast the warning of a time limit


def train(
    stage: StateStage,
    parent: str | None,
    codes: CodeStore,
    *,
    sources: Sources,
    numerics: Numerics,
    ranks: Ranks,
    save_minutes: float,
    save_every_steps: int | None = None,
    tensorboard: bool = False,
) -> None:
    """Train up to the state's epoch, from its own progress, its parent's end or step 0, and publish it.

    Raises UserError for a non-finite loss and Interrupted after SIGTERM, SIGUSR2 or Ctrl-C; the last good state is kept.
    """
    # Build
    training, folder = stage.training, paths.folder("state", stage.key)
    steps_per_epoch = _steps_per_epoch(stage, codes, ranks)
    model = _build_model(stage, codes, numerics).to(ranks.device)
    state = TrainState(model, training)
    timeline = Timeline(stage, steps_per_epoch)

    # Restore
    found = newest(stage.key, parent)
    # Or one would train on with other weights, unseen. Also before NCCL, which waits ten minutes for one that still reads.
    ranks.agree(0 if found is None else found.step, "the step to go on from")
    active: ActivePhase | None = None
    if found is not None:
        active = ActivePhase(timeline.phase_of(found.step - 1), state, codes, sources, ranks)
        state.load(found.tensors, found.step)
    here = _numerics(numerics, ranks)
    grown_from = None if found is None else found.grown_from
    earlier = [] if found is None else [other for other in found.numerics if other != here]
    first, last = state.step, stage.epoch * steps_per_epoch
    interval = min(LOG_EVERY, steps_per_epoch)
    journal = Journal(folder, first, last, training.batch_size, ranks, tensorboard=tensorboard)
    title = f"train {stage.key} to epoch {stage.epoch}"
    bar = tqdm(total=last, initial=first, desc=title, unit="step", disable=not ranks.writes, mininterval=1)
    saved_at = time.monotonic()

    with bar, closing(journal), _stop_requested() as received:
        while state.step < last:
            step, epoch = state.step, state.step / steps_per_epoch
            if active is None or active.phase is not timeline.phase_of(step):
                active = ActivePhase(timeline.phase_of(step), state, codes, sources, ranks)

            # Batch
            tokens, labels, dropped, rows = _batch(step, stage, codes, ranks)
            targets = None if active.targets is None else _targets(active, tokens, labels, rows, stage, ranks)

            # Forward; loss = next-token + lambda * foresight (Eq. 10)
            torch.manual_seed(integer(training.seed, "dropout", step, ranks.rank))
            model.train()
            with _autocast(stage, ranks):
                coefficient = active.coefficient(epoch)
                loss, terms = active.loss(tokens, drop_labels(labels, dropped, model.null_class), targets, coefficient)

            # Backward and clip
            state.optimizer.zero_grad()
            loss.backward()
            norms = state.clip_gradients()

            # Optimiser, EMA
            state.set_learning_rate(_cosine_progress(active, step, steps_per_epoch))
            state.optimizer.step()
            state.update_ema()
            state.step += 1

            # Log; what decides here must be the same on all ranks
            journal.add({"loss": loss.detach(), **terms, **norms})
            bar.update()
            looks_up = state.step % interval == 0 or state.step == last
            stop = (looks_up or state.step % LISTEN_EVERY == 0) and ranks.any(bool(received))
            if save_every_steps is not None:
                save = stop or state.step % save_every_steps == 0
            else:
                save = stop or (looks_up and ranks.any(time.monotonic() - saved_at > 60 * save_minutes))
            if looks_up or save:
                means = journal.write(state.step, state.step / steps_per_epoch, coefficient)
                bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
                _refuse_non_finite(means, state.step, active, folder)

            # Save
            if save and state.step < last:
                if ranks.writes:
                    save_progress(folder, state, grown_from, [*earlier, here])
                ranks.wait()  # one that left would end the job in the middle of it
                saved_at = time.monotonic()
            if stop and state.step < last:
                sentence = f"stopped at step {state.step} of {last}, saved; the same command goes on from there"
                raise Interrupted(sentence, tuple(received))

        # Finish
        if ranks.writes:
            begun = {"epoch": stage.epoch, "parent": parent, "started_at_step": first, "grown_from": grown_from}
            trained = {**begun, "numerics": here, "earlier_numerics": earlier}
            save_final(stage.key, state, found.record if found is not None and found.record is not None else trained)
        ranks.wait()


def _steps_per_epoch(stage: StateStage, codes: CodeStore, ranks: Ranks) -> int:
    training = stage.training
    images = training.epoch_images or len(codes)
    if images < training.batch_size:
        raise UserError(
            f"data set '{stage.data.name}' has {images} images, fewer than one batch of {training.batch_size}; "
            "set training.epoch_images in the scale to a multiple of the batch"
        )
    if training.batch_size % ranks.world:
        raise UserError(f"{ranks.world} ranks do not divide the global batch of {training.batch_size}")
    return images // training.batch_size


def _build_model(stage: StateStage, codes: CodeStore, numerics: Numerics) -> Transformer:
    model = Transformer(
        stage.model,
        num_classes=codes.num_classes,
        codebook_size=stage.tokenizer.codebook_size,
        grid_side=stage.grid_side,
        attention=numerics.attention,
    )
    model.init_weights(stage.training.seed)
    return model


def _batch(
    step: int, stage: StateStage, codes: CodeStore, ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor, tuple[np.ndarray, np.ndarray]]:
    """This rank's rows of the step's global batch: tokens (B,N), labels (B,), dropped (B,), (images, views)."""
    training = stage.training
    images, views = batch_indices(
        step, seed=training.seed, num_images=len(codes), num_views=stage.data.views, batch_size=training.batch_size
    )
    dropped = stream(training.seed, "label-drop", step).random(training.batch_size) < stage.model.class_dropout
    images, views = (rank_slice(rows, ranks.rank, ranks.world) for rows in (images, views))
    dropped = rank_slice(dropped, ranks.rank, ranks.world)
    tokens = torch.from_numpy(codes.codes(images, views)).to(ranks.device)
    labels = torch.from_numpy(codes.labels[images]).to(ranks.device)
    return tokens, labels, torch.from_numpy(dropped).to(ranks.device), (images, views)


def _targets(
    active: ActivePhase,
    tokens: Tensor,
    labels: Tensor,
    rows: tuple[np.ndarray, np.ndarray],
    stage: StateStage,
    ranks: Ranks,
) -> Tensor:
    """True labels go to the teacher, also for rows whose label the student does not see (reading 9.7)."""
    assert active.targets is not None
    with _autocast(stage, ranks):
        return active.targets(tokens, labels, *rows)


def _autocast(stage: StateStage, ranks: Ranks) -> torch.autocast:
    wanted = stage.training.dtype == "bfloat16"
    return torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=wanted)


def _cosine_progress(active: ActivePhase, step: int, steps_per_epoch: int) -> float | None:
    total = active.phase.learning_rate_over
    return None if total is None else step / (total * steps_per_epoch)


def _refuse_non_finite(means: dict[str, float], step: int, active: ActivePhase, folder: Path) -> None:
    wrong = [name for name, value in means.items() if not np.isfinite(value)]
    if wrong:
        name = (
            "next-token"
            if active.phase.foresight is None
            else f"foresight ({active.phase.foresight.source or 'tokens'})"
        )
        kept = sorted(folder.glob("progress-*.json"))
        good = (
            f"the last good state is {kept[-1]}"
            if kept
            else "nothing of this segment was saved; its parent is unchanged"
        )
        raise UserError(f"{', '.join(wrong)} is not finite before step {step}, phase {name}; stopped, {good}")


def _numerics(numerics: Numerics, ranks: Ranks) -> dict[str, object]:
    """What a manifest says of how the bits come about; none of it is in the key."""
    return {
        **numerics.model_dump(mode="json"),
        "torch": torch.__version__,
        "device_name": torch.cuda.get_device_name() if ranks.device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "ranks": ranks.world,
    }


def _processor() -> str:
    """The CPU's model: two of them may sum a product in different orders. Its architecture where Linux does not name it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    return os.uname().machine


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """The signals received while open: remembered instead of obeyed, so that a step is never cut in two.

    One that came too late to stop this training is then for whoever listened before, e.g. to start no further one.
    """
    received: list[int] = []

    def remember(number: int, _: object) -> None:
        received.append(number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # USR2: a queue's warning that time is running out
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received and callable(handler := previous[signal.SIGUSR2]):
        handler(received[0], None)
