"""A training small enough for tests: 2 layers, 4 x 4 tokens, made-up codes, every phase of a Mirai-E timeline."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mirai.data.codes import CodeStore, extract_codes
from mirai.data.images import open_images
from mirai.experiments import paths
from mirai.experiments.offsets import grid_offsets
from mirai.experiments.recipe import Data, Foresight, Head, Model, Tokenizer, TokenizerTraining, Training
from mirai.experiments.scale import Numerics
from mirai.experiments.site import Site
from mirai.experiments.stages import Phase, StateStage
from mirai.ranks import ranks_of
from mirai.states import Lock, load_tensors, read_json
from mirai.store import open_sources
from mirai.training.loop import train

NUMERICS = Numerics(device="cpu", threads=1, attention="explicit")
DATA = Data(name="digits", source="digits", resolution=32, num_classes=10, views=2)
TOKENIZER = Tokenizer(
    name="made up",
    multipliers=(1, 1, 1, 1),
    codebook_size=16,
    training=TokenizerTraining(steps=1, batch_size=1, learning_rate=1e-3, num_images=1),
)
MODEL = Model(num_layers=2, num_heads=2, width=16, ffn_multiple=16)
TRAINING = Training(batch_size=4, epoch_images=16, learning_rate=1e-3, ema_decay=0.9, dtype="float32")
MIRAI_E = Foresight(source="ema", offsets=grid_offsets(3), layer=1, head=Head(width=8))
NEXT_TOKEN = Phase(epochs=2)
TIMELINE = (
    NEXT_TOKEN,
    Phase(epochs=2, foresight=MIRAI_E, coefficient=2.0),
    Phase(epochs=2, foresight=MIRAI_E, coefficient=1.0),
)


def stage(timeline: tuple[Phase, ...] = TIMELINE, **training: object) -> StateStage:
    """The state at the end of a timeline of 4-step epochs."""
    return StateStage(
        data=DATA,
        tokenizer=TOKENIZER,
        model=MODEL,
        training=TRAINING.model_copy(update=training),
        timeline=timeline,
    )


def make_codes() -> CodeStore:
    """A code store of 40 digits with codes that depend on the pixels, in the working directory."""
    folder = paths.folder("codes", stage().codes_stage().key)

    def encode(crops: np.ndarray) -> np.ndarray:
        cells = crops.reshape(len(crops), 4, 8, 4, 8, 3).astype(np.int64)
        return np.asarray(cells.sum(axis=(2, 4, 5)).reshape(len(crops), 16) % 16)

    extract_codes(
        folder,
        open_images(DATA, "train", count=40),
        DATA,
        encode=encode,
        grid_side=4,
        codebook_size=16,
        tokenizer_key=stage().codes_stage().tokenizer_stage().key,
        store_squares=True,
        batch_images=8,
    )
    return CodeStore.open(folder)


def run(
    state: StateStage,
    parent: StateStage | None = None,
    *,
    save_every_steps: int | None = None,
    tensorboard: bool = False,
) -> dict[str, Tensor]:
    """Train in this process -> all tensors of the resume point."""
    torch.set_num_threads(1)
    with ranks_of("cpu") as ranks, contextlib.ExitStack() as stack:
        if ranks.writes:
            stack.enter_context(Lock(paths.folder("state", state.key) / "lock"))
        sources = open_sources(state, NUMERICS, Site(), ranks.device)
        train(
            state,
            None if parent is None else parent.key,
            CodeStore.open(paths.folder("codes", state.codes_stage().key)),
            sources=dataclasses.replace(sources, encoder=lambda foresight: FixedEncoder()),
            numerics=NUMERICS,
            ranks=ranks,
            save_minutes=10.0,
            save_every_steps=save_every_steps,
            tensorboard=tensorboard,
        )
    return tensors(state)


def tensors(state: StateStage) -> dict[str, Tensor]:
    """Everything a finished state has."""
    manifest = paths.resume(state.key)
    return load_tensors(manifest.parent, read_json(manifest)["payloads"]["state"])


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are equal in every tensor and every bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class FixedEncoder:
    """Features of a picture: the mean colours of its cells, padded to 8 channels."""

    width = 8
    num_tokens = 16

    def __call__(self, images: Tensor) -> Tensor:
        means = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(2).transpose(1, 2)  # (B, 16, 3)
        return torch.cat([means, means.square(), means[..., :2]], dim=-1)


def run_and_die(state: StateStage, plant: Callable[[Callable[[], None]], None]) -> int:
    """The same training in a forked process, in which `plant(die)` has planted a fault -> its wait status."""
    child = os.fork()
    if child == 0:
        plant(lambda: os.kill(os.getpid(), signal.SIGKILL))
        run(state, save_every_steps=3)
        os._exit(0)
    return os.waitpid(child, 0)[1]
