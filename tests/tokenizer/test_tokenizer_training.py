"""Training of a small tokenizer: it learns, it repeats itself, and it keeps its codebook in use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mirai.errors import UserError
from mirai.experiments.recipe import Tokenizer, TokenizerTraining
from mirai.randomness import stream
from mirai.tokenizer.training import _new_model, _restart_dead_codes, measure_tokenizer, train_tokenizer
from mirai.tokenizer.vqgan import VQGAN, to_float

pytestmark = pytest.mark.full


def recipe(steps: int, seed: int = 0, restart_every: int = 5) -> Tokenizer:
    training = TokenizerTraining(
        steps=steps, batch_size=8, learning_rate=3e-3, num_images=64, restart_every=restart_every, seed=seed
    )
    return Tokenizer(
        name="tiny",
        channels=4,
        multipliers=(1, 2),
        res_blocks=1,
        z_channels=8,
        codebook_size=32,
        codebook_dim=4,
        group_norm_groups=1,
        training=training,
    )


def both(tokenizer: Tokenizer) -> tuple[Tokenizer, TokenizerTraining]:
    assert tokenizer.training is not None
    return tokenizer, tokenizer.training


def pictures(count: int, purpose: str) -> np.ndarray:
    """8x8 pixels: two plain halves, each in one of the eight extreme colours."""
    colours = stream(0, purpose).integers(2, size=(count, 1, 2, 3), dtype=np.uint8) * np.uint8(255)
    return colours.repeat(8, axis=1).repeat(4, axis=2)


@pytest.fixture(scope="module")
def trained() -> tuple[VQGAN, dict[str, float]]:
    return train_tokenizer(recipe(steps=80), pictures(64, "train"), pictures(20, "held out"), progress=False)


def test_training_reconstructs_unseen_pictures_far_better_than_an_untrained_model(
    trained: tuple[VQGAN, dict[str, float]],
) -> None:
    _, untrained = train_tokenizer(recipe(steps=1), pictures(64, "train"), pictures(20, "held out"), progress=False)
    assert trained[1]["psnr"] > untrained["psnr"] + 3


def test_the_trained_model_comes_in_eval_mode_with_its_report(trained: tuple[VQGAN, dict[str, float]]) -> None:
    model, report = trained
    assert not model.training
    assert set(report) == {"loss", "psnr", "codes_used"}
    assert report["codes_used"] > 0.5


def test_the_same_recipe_gives_the_same_bits_and_another_seed_gives_others() -> None:
    images = pictures(16, "train")
    torch.manual_seed(1)
    first, first_report = train_tokenizer(recipe(steps=4), images, images, progress=False)
    torch.manual_seed(2)
    second, second_report = train_tokenizer(recipe(steps=4), images, images, progress=False)
    other, _ = train_tokenizer(recipe(steps=4, seed=1), images, images, progress=False)
    assert first_report == second_report
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.decoder.conv_out.weight, other.decoder.conv_out.weight)


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    train_tokenizer(recipe(steps=1), pictures(8, "train"), pictures(8, "train"), progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_that_diverges_says_so() -> None:
    plan = recipe(steps=3).training
    assert plan is not None
    wild = recipe(steps=3).model_copy(update={"training": plan.model_copy(update={"learning_rate": 1e38})})
    with pytest.raises(UserError, match="'tiny' diverged at learning_rate"):
        train_tokenizer(wild, pictures(8, "train"), pictures(8, "train"), progress=False)


def test_a_restart_moves_dead_codes_onto_latents_and_leaves_used_ones() -> None:
    model = VQGAN(recipe(steps=1))
    batch = to_float(torch.from_numpy(pictures(4, "train")))
    used = torch.zeros(32, dtype=torch.bool)
    used[:10] = True
    before = model.quantize.embedding.weight.detach().clone()
    _restart_dead_codes(model, used, batch, stream(0, "restart"))
    after = model.quantize.embedding.weight.detach()
    assert torch.equal(after[:10], before[:10])
    latents = model(batch).latents.detach().flatten(0, 1)
    distances = (after[10:, None] - latents).abs().amax(dim=2)  # (rows, latents)
    assert distances.amin(dim=1).max() < 1e-5


def test_a_new_model_keeps_patches_apart_whatever_the_width() -> None:
    """Before training, a pixel moves the features of its own patch; the normalisation moves all others a little."""
    model, images = _new_model(*both(recipe(steps=1))), torch.zeros(1, 3, 8, 8)
    images[0, :, 2, 4] = 1.0  # patch (1, 2) of 4x4
    hidden = model.encoder.conv_blocks(model.encoder.conv_in(images))[0].abs().sum(dim=0)
    others = hidden.flatten().sort(descending=True).values[1:]
    assert hidden[1, 2] > 4 * others.max()


def test_psnr_is_that_of_the_clipped_reconstruction() -> None:
    model, images = VQGAN(recipe(steps=1)), pictures(7, "train")
    with torch.no_grad():
        model.decoder.conv_out.weight.zero_()
        model.decoder.conv_out.bias.fill_(3.0)  # clipped to 1: white
    error = (images / 127.5 - 1) - 1
    report = measure_tokenizer(model, images, batch_size=3)
    assert report["psnr"] == pytest.approx(10 * np.log10(4 / np.mean(error**2)), abs=1e-4)
    assert report["codes_used"] == len(model.encode(to_float(torch.from_numpy(images))).unique()) / 32
