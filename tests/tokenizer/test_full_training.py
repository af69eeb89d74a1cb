"""LlamaGen's way of training a tokenizer: LPIPS, the discriminator and its start, passes, resume points, full size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from mirai import make
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.places import places
from mirai.experiments.recipe import Adversarial, Data, Tokenizer, TokenizerTraining
from mirai.experiments.scale import Numerics
from mirai.experiments.site import Site
from mirai.experiments.stages import TokenizerStage
from mirai.randomness import stream
from mirai.tokenizer import training
from mirai.tokenizer.discriminator import new_discriminator
from mirai.tokenizer.learner import MANIFEST, Learner, delete_progress
from mirai.tokenizer.lpips import LPIPS
from mirai.tokenizer.training import _accumulate, _new_critic, _new_model, train_tokenizer
from mirai.tokenizer.vqgan import VQGAN, to_float

pytestmark = pytest.mark.full

LLAMAGEN: dict[str, Any] = {
    "lr_schedule": "constant",
    "betas": (0.9, 0.95),
    "init": "pytorch",
    "adversarial": Adversarial(start_step=3),
    "restart_every": None,
}


def recipe(**update: Any) -> Tokenizer:
    """A tiny tokenizer, trained as LlamaGen does but for `update`."""
    plan = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "num_images": 16, **LLAMAGEN, **update}
    return Tokenizer(
        name="tiny",
        channels=4,
        multipliers=(1, 2),
        res_blocks=1,
        z_channels=8,
        codebook_size=32,
        codebook_dim=4,
        group_norm_groups=1,
        training=TokenizerTraining(**plan),
    )


def plan_of(tokenizer: Tokenizer) -> TokenizerTraining:
    assert tokenizer.training is not None
    return tokenizer.training


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth colours, 24 x 24."""
    colours = torch.from_numpy(stream(0, "pictures").random((16, 3, 3, 3), np.float32))
    smooth = F.interpolate(colours, size=(24, 24), mode="bicubic").clamp(0, 1)
    return (255 * smooth).to(torch.uint8).permute(0, 2, 3, 1).numpy()


Points = dict[int, dict[str, Tensor]]


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Points:
    """Resume points by steps done, kept here instead of in files."""
    found: Points = {}

    def keep(_: Path, step: int, tensors: dict[str, Tensor], __: object) -> None:
        found[step] = {name: tensor.clone() for name, tensor in tensors.items()}

    monkeypatch.setattr(training, "save_progress", keep)
    return found


def run(tokenizer: Tokenizer, images: np.ndarray, folder: Path | None = None, **options: Any) -> VQGAN:
    return train_tokenizer(tokenizer, images, images[:4], folder=folder, save_minutes=0.0, progress=False, **options)[0]


def same_bits(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def llamagens_loop(tokenizer: Tokenizer, images: np.ndarray, lpips: LPIPS) -> Iterator[tuple[VQGAN, torch.nn.Module]]:
    """Steps of the tokenizer, then of the discriminator, both from the first on, the latter's part weighed 0 at first."""
    plan = plan_of(tokenizer)
    assert plan.adversarial is not None
    model, critic = _new_model(tokenizer, plan), new_discriminator(plan.seed)
    model, critic = (network.to(memory_format=torch.channels_last) for network in (model, critic))
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=1e-2, betas=(0.9, 0.95), fused=True) for network in (model, critic)
    ]
    for step in range(plan.steps):
        weight = 0.5 if step + 1 >= plan.adversarial.start_step else 0.0
        rows = stream(plan.seed, "tokenizer-batch", step).integers(len(images), size=plan.batch_size)
        batch = to_float(torch.from_numpy(images[rows]))
        with torch.autocast("cpu", torch.bfloat16):
            output = model(batch)
            fake = output.images.float()
            loss = F.mse_loss(fake, batch) + output.codebook_loss + 0.25 * output.commitment_loss
            loss = loss + lpips(fake, batch).mean() - weight * critic(fake).float().mean()
        optimizers[0].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers[0].step()

        optimizers[1].zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            real, fake = critic(batch).float(), critic(fake.detach()).float()
            loss = weight * 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        optimizers[1].step()
        yield model, critic


def test_a_training_is_that_of_llamagens_loop_step_for_step(
    images: np.ndarray, points: Points, lpips: LPIPS, tmp_path: Path
) -> None:
    """Its discriminator is stepped from the start, with a loss weighed 0: only Adam's count of steps tells."""
    tokenizer = recipe(steps=5, perceptual_weight=1.0)
    trained = run(tokenizer, images, tmp_path, perceptual=lpips)
    for step, (model, critic) in enumerate(llamagens_loop(tokenizer, images, lpips), 1):
        if step == 5:
            assert torch.allclose(trained.decoder.conv_out.weight, model.decoder.conv_out.weight, atol=1e-5)
            break
        for prefix, network in (("weights/", model), ("discriminator/weights/", critic)):
            for name, parameter in network.named_parameters():
                assert torch.allclose(points[step][prefix + name], parameter, atol=1e-5), (step, prefix + name)


def test_the_discriminator_waits_for_its_step(images: np.ndarray, points: Points, tmp_path: Path) -> None:
    run(recipe(), images, tmp_path)
    start = new_discriminator(0)[0].weight
    before, after = points[2]["discriminator/weights/0.weight"], points[3]["discriminator/weights/0.weight"]
    assert torch.equal(before, start)
    assert not torch.equal(after, start)

    early = dict(points)
    run(recipe(adversarial=None), images, tmp_path)
    name = "weights/decoder.conv_out.weight"
    assert torch.equal(points[2][name], early[2][name]), "before it the model feels nothing of it"
    assert not torch.equal(points[3][name], early[3][name])


def test_gradients_are_clipped_to_norm_1_for_each_network() -> None:
    tokenizer = recipe()
    learner, critic = (
        Learner(_new_model(tokenizer, plan_of(tokenizer)), plan_of(tokenizer)),
        _new_critic(plan_of(tokenizer), "cpu"),
    )
    assert critic is not None
    for one in (learner, critic):
        for parameter in one.parameters:
            parameter.grad = torch.full_like(parameter, 3.0)
        one.step(1e-3)
        first_moments = [moment for name, moment in one.tensors().items() if name.startswith("exp_avg/")]
        norm = torch.linalg.vector_norm(torch.cat([moment.flatten() for moment in first_moments]))
        assert norm.item() == pytest.approx((1 - 0.9) * 1.0, rel=1e-3)
        assert all(parameter.grad is None for parameter in one.parameters)


def gradients_of(tokenizer: Tokenizer, images: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
    """What a fresh tokenizer and discriminator learn from a batch."""
    plan = plan_of(tokenizer)
    learner, critic = Learner(_new_model(tokenizer, plan), plan), _new_critic(plan, "cpu")
    assert critic is not None
    _, codes = _accumulate(learner, critic, None, to_float(torch.from_numpy(images)), plan)
    assert codes.shape == (len(images) * 12 * 12,)
    return tuple([weights.grad for weights in one.parameters] for one in (learner, critic))


def test_a_batch_in_small_passes_gives_the_mean_of_their_gradients(images: np.ndarray) -> None:
    """The discriminator's norms see one pass at a time, so this is not the gradient of the batch as a whole."""
    together = gradients_of(recipe(micro_batch=2), images[:4])
    first, second = gradients_of(recipe(), images[:2]), gradients_of(recipe(), images[2:4])
    whole = gradients_of(recipe(), images[:4])
    for network in (0, 1):
        for sum_of_both, one, other in zip(together[network], first[network], second[network], strict=True):
            assert torch.allclose(sum_of_both, (one + other) / 2, rtol=1e-4, atol=1e-7)
        assert not torch.allclose(whole[network][0], together[network][0], rtol=1e-2)


def test_learning_rates_and_starts_are_those_asked_for() -> None:
    constant, cosine = plan_of(recipe(steps=100)), plan_of(recipe(steps=100, lr_schedule="cosine"))
    assert {training._rate(step, constant) for step in range(100)} == {1.0}
    assert [training._rate(step, cosine) for step in (0, 9)] == [0.1, 1.0]
    assert training._rate(99, cosine) < 1e-3
    model = _new_model(recipe(), plan_of(recipe()))
    assert torch.allclose(model.quantize.embedding.weight.norm(dim=1), torch.ones(32))
    kernel = model.encoder.conv_in.weight.detach()
    assert kernel.abs().max() <= (3 * 9) ** -0.5, "PyTorch's bound"
    assert (kernel != 0).all()


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        ({"micro_batch": 3}, "micro_batch 3 must be a part of batch_size 4"),
        ({"micro_batch": 4}, "micro_batch 4 must be a part of batch_size 4"),
        ({"adversarial": Adversarial()}, "adversarial starts at step 20000 of 4, so never"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(update: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        recipe(**update)


class Killed(Exception):
    """A training that ends in the middle."""


def kill_before(step: int, patch: pytest.MonkeyPatch, started: list[int]) -> None:
    """Let trainings die before they take a step; note where they start."""
    batches = training.batches

    def until(images: np.ndarray, plan: TokenizerTraining, first: int) -> Iterator[np.ndarray]:
        started.append(first)
        for number, batch in enumerate(batches(images, plan, first), first):
            if number == step:
                raise Killed
            yield batch

    patch.setattr(training, "batches", until)


SMALL = {"restart_every": 2, "lr_schedule": "cosine", "init": "near-linear", "adversarial": None}


@pytest.mark.parametrize(("killed", "own"), [(2, {}), (4, {}), (3, SMALL)])
def test_a_killed_training_goes_on_to_the_same_bits(
    images: np.ndarray, tmp_path: Path, killed: int, own: dict[str, Any]
) -> None:
    """The discriminator starts at step 3; what a small training restarts at step 4 was used before it was killed."""
    tokenizer = recipe(steps=6, **own)
    started: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        kill_before(killed, patch, started)
        with pytest.raises(Killed):
            run(tokenizer, images, tmp_path)
    assert len(list(tmp_path.glob("progress-*.safetensors"))) == 1
    with pytest.MonkeyPatch.context() as patch:
        kill_before(6, patch, started)
        resumed = run(tokenizer, images, tmp_path)
    assert started == [0, killed]
    assert same_bits(resumed, run(tokenizer, images))
    delete_progress(tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_before_its_time(images: np.ndarray, tmp_path: Path) -> None:
    train_tokenizer(recipe(), images, images[:4], folder=tmp_path, save_minutes=10.0, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_damaged_resume_point_is_named(images: np.ndarray, tmp_path: Path) -> None:
    run(recipe(), images, tmp_path)
    payload = next(tmp_path.glob("progress-*.safetensors"))
    data = bytearray(payload.read_bytes())
    data[-1] ^= 1
    payload.write_bytes(data)
    with pytest.raises(UserError, match=rf"{payload.name} was altered"):
        run(recipe(), images, tmp_path)


def test_a_training_does_not_go_on_with_other_images(images: np.ndarray, tmp_path: Path) -> None:
    run(recipe(), images, tmp_path)
    manifest = tmp_path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"source": {}', '"source": {"files": 3}'))
    with pytest.raises(UserError, match=r"progress\.json is of a training on other images"):
        run(recipe(), images, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_training_soon(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_before(21, monkeypatch, [])
    tokenizer = recipe(steps=1000, learning_rate=1e38, adversarial=None)
    with pytest.raises(UserError, match="'tiny' diverged at learning_rate"):
        run(tokenizer, images)


def test_images_too_small_to_be_judged_are_refused(images: np.ndarray, lpips: LPIPS) -> None:
    with pytest.raises(UserError, match=r"'tiny': `adversarial` needs images of 24 px or more, not 22"):
        run(recipe(), images[:, :22, :22])
    with pytest.raises(UserError, match=r"'tiny': `perceptual_weight` needs images of 16 px or more, not 12"):
        run(recipe(perceptual_weight=1.0), images[:, :12, :12], perceptual=lpips)


SCENES = Data(name="scenes", source="scenes", resolution=24, num_images=8, num_classes=10)


def test_a_stage_reads_lpips_from_the_site_and_leaves_no_resume_point(
    project: Path, lpips_files: tuple[Path, Path]
) -> None:
    stage = TokenizerStage(data=SCENES, tokenizer=recipe(perceptual_weight=1.0, augment=True))
    assert places(stage) == [("weights", "vgg16"), ("weights", "lpips_vgg")]
    of_folder = stage.model_copy(update={"data": Data(name="pets", source="folder", resolution=24)})
    assert places(of_folder) == [("data", "pets"), ("weights", "vgg16"), ("weights", "lpips_vgg")]
    assert places(stage.model_copy(update={"tokenizer": recipe()})) == []

    weights = dict(zip(("vgg16", "lpips_vgg"), map(str, lpips_files), strict=True))
    numerics = Numerics(device="cpu", threads=1)
    with pytest.raises(UserError, match="vgg16"):
        make._tokenizer(stage, numerics, Site(weights={"lpips_vgg": weights["lpips_vgg"]}))
    make._tokenizer(stage, numerics, Site(weights=weights, save_minutes=1e-9))
    folder = paths.folder("tokenizer", stage.key)
    assert not list(folder.glob("progress*"))
    assert (folder / "tokenizer.json").exists()


def test_vq_16_takes_llamagens_steps_at_full_size(lpips: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    """71.9 million parameters, LPIPS from the first step, the discriminator from the second."""
    plan = TokenizerTraining(
        steps=2,
        batch_size=2,
        learning_rate=1e-4,
        num_images=4,
        perceptual_weight=1.0,
        **{**LLAMAGEN, "adversarial": Adversarial(start_step=2)},
    )
    seen: list[list[str]] = []
    start: list[Tensor] = []

    def noted(learner: Learner, *rest: Any) -> tuple[dict[str, Tensor], Tensor]:
        start.append(learner.network.decoder.conv_out.weight.detach().clone())
        terms, codes = _accumulate(learner, *rest)
        seen.append(list(terms))
        return terms, codes

    monkeypatch.setattr(training, "_accumulate", noted)
    noise = stream(0, "noise").integers(256, size=(4, 64, 64, 3), dtype=np.uint8)
    model, report = train_tokenizer(
        Tokenizer(name="VQ-16", training=plan), noise, noise[:1], perceptual=lpips, progress=False
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == 71_883_403
    parts = ["pixels", "codebook", "commitment", "perceptual"]
    assert seen == [parts, [*parts, "adversarial", "discriminator"]]
    moved = (model.decoder.conv_out.weight - start[1]).abs(), (start[1] - start[0]).abs()
    assert all(0 < by.max() < 2.1e-4 for by in moved)  # Adam moves each weight by about the learning rate
    assert 0 < report["loss"] < 10
