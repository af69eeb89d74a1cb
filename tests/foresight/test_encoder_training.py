"""Training of the small encoders on pictures whose class is the colour of one odd patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mirai.errors import UserError
from mirai.experiments.recipe import EncoderTraining
from mirai.foresight.encoder_training import MaskedAutoEncoder, train_encoder
from mirai.foresight.vit import SmallViT
from mirai.randomness import stream

pytestmark = pytest.mark.full

CLASSES = 3


def recipe(objective: str, **changes: object) -> EncoderTraining:
    values = {"width": 16, "num_layers": 2, "num_heads": 2, "steps": 120, "batch_size": 16, "learning_rate": 5e-3}
    return EncoderTraining(objective=objective, num_images=600, **(values | changes))


@pytest.fixture(scope="module")
def spots() -> tuple[np.ndarray, np.ndarray]:
    """16x16 pictures of noise in which one patch lacks, or has too much of, the colour channel that is the class."""
    random = stream(0, "test spots")
    images, labels = random.integers(96, 160, (600, 16, 16, 3), dtype=np.uint8), random.integers(CLASSES, size=600)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * random.integers(4, size=2)
        image[row : row + 4, column : column + 4, label] = 255 * random.integers(2)
    return images, labels


def trained(objective: str, spots: tuple[np.ndarray, np.ndarray], **changes: object) -> tuple[SmallViT, dict]:
    return train_encoder(recipe(objective, **changes), *spots, patch=4, num_classes=CLASSES, progress=False)


def test_a_supervised_encoder_learns_what_random_weights_do_not_show(spots: tuple) -> None:
    _, report = trained("supervised", spots)
    _, random = trained("none", spots)
    assert random["loss"] is None
    assert set(report["probe_accuracy"]) == {"1", "2", "final"}
    assert report["probe_accuracy"]["final"] > 0.85 > random["probe_accuracy"]["final"] + 0.2


def test_masked_auto_encoding_learns_to_fill_in_patches(spots: tuple) -> None:
    images = np.repeat(spots[0][:, :1], 16, axis=1)  # every row the same: a patch is known from the others
    _, first = train_encoder(recipe("mae", steps=1), images, spots[1], patch=4, num_classes=CLASSES, progress=False)
    _, last = train_encoder(recipe("mae"), images, spots[1], patch=4, num_classes=CLASSES, progress=False)
    assert last["loss"] < 0.9 * first["loss"]


@pytest.mark.parametrize("objective", ["mae", "supervised", "none"])
def test_a_training_is_a_function_of_its_recipe_and_leaves_the_global_generator_alone(
    objective: str, spots: tuple
) -> None:
    before = torch.random.get_rng_state()
    (first, report), (again, _) = (trained(objective, spots, steps=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other, _ = trained(objective, spots, steps=3, seed=1)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert report["probe_accuracy"]["final"] > 0


def test_a_trained_encoder_is_frozen_and_in_eval_mode(spots: tuple) -> None:
    vit, _ = trained("supervised", spots, steps=2)
    assert not vit.training
    assert not any(parameter.requires_grad for parameter in vit.parameters())


def test_held_out_pictures_are_not_trained_on(spots: tuple) -> None:
    images, labels = spots
    spoilt = images.copy()
    spoilt[540:] = 0
    for objective in ("mae", "supervised"):
        ours, _ = trained(objective, (images, labels), steps=3)
        theirs, _ = trained(objective, (spoilt, labels), steps=3)
        assert torch.equal(ours.embedding.weight, theirs.embedding.weight)


def test_the_masked_encoder_sees_the_kept_patches_only() -> None:
    generator = torch.Generator().manual_seed(0)
    learner = MaskedAutoEncoder(SmallViT(16, 4, 16, 1, 2, generator), 0.75, generator)
    seen = []
    learner.vit.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    learner(torch.rand(2, 3, 16, 16), torch.zeros(2), generator)
    assert seen == [(2, 4, 16)]


def test_a_diverging_training_names_the_key_to_change(spots: tuple) -> None:
    with pytest.raises(UserError, match=r"lower encoder\.training\.learning_rate"):
        trained("supervised", spots, learning_rate=1e30, steps=10)


def test_a_random_encoder_needs_no_pictures_to_hold_out(spots: tuple) -> None:
    images, labels = spots
    _, report = trained("none", (images[:1], labels[:1]))
    assert report == {"loss": None, "probe_accuracy": {}}
