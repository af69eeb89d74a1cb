"""What a tokenizer's training sees at a step: the same from memory and from files, and ADM's random crops."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirai.data.folder import CorruptImage, FolderSet
from mirai.data.images import ImageSet, centre_images, open_images
from mirai.errors import UserError
from mirai.experiments.recipe import Data, TokenizerTraining
from mirai.randomness import stream
from mirai.tokenizer import pictures
from mirai.tokenizer.pictures import batches, random_crop

PLAN = TokenizerTraining(steps=5, batch_size=4, learning_rate=1e-3, num_images=10)
AUGMENTED = PLAN.model_copy(update={"augment": True})
DATA = Data(name="pets", source="folder", resolution=16, views=1)


@pytest.fixture
def pets(tmp_path: Path) -> FolderSet:
    """Ten pictures in one class; picture i has i in its red channel, and its own place in green (columns) and blue."""
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    for index in range(10):
        pixels = np.full((40, 56, 3), 20 * index, np.uint8)
        pixels[..., 1], pixels[..., 2] = np.arange(56), np.arange(40)[:, None]
        Image.fromarray(pixels).save(tmp_path / "pets" / "cat" / f"{index}.png")
    images = open_images(DATA, "tokenizer", folder=tmp_path / "pets")
    assert isinstance(images, FolderSet)
    return images


def all_batches(images: ImageSet | np.ndarray, plan: TokenizerTraining, first: int = 0) -> list[np.ndarray]:
    with closing(batches(images, plan, first)) as found:
        return list(found)


def test_files_that_are_read_on_the_way_give_the_batches_of_a_set_in_memory(
    pets: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = all_batches(centre_images(pets), PLAN)
    assert [batch.shape for batch in arrays] == 5 * [(4, 16, 16, 3)]
    assert np.array_equal(all_batches(pets, PLAN), arrays)
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    monkeypatch.setattr(pictures, "centre_images", None)  # would be called to keep them all
    assert np.array_equal(all_batches(pets, PLAN), arrays)


def test_large_sets_are_not_read_as_a_whole(pets: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    read = []
    monkeypatch.setattr(type(pets), "centre", lambda _, index: read.append(index) or np.zeros((16, 16, 3), np.uint8))
    with closing(batches(pets, PLAN, 0)) as found:
        next(found)
    assert len(read) <= (1 + pictures.AHEAD) * PLAN.batch_size


@pytest.mark.parametrize("plan", [PLAN, AUGMENTED], ids=["centre", "augmented"])
def test_a_batch_is_a_function_of_its_step(pets: ImageSet, plan: TokenizerTraining) -> None:
    whole = all_batches(pets, plan)
    assert np.array_equal(all_batches(pets, plan, first=3), whole[3:])
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(all_batches(pets, plan.model_copy(update={"seed": 1})), whole)


def test_augmented_batches_pass_over_all_pictures_and_cut_them_anew(pets: ImageSet) -> None:
    plan = AUGMENTED.model_copy(update={"batch_size": 5, "steps": 4})  # two passes
    seen = [[int(picture[0, 0, 0]) // 20 for picture in batch] for batch in all_batches(pets, plan)]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(10))
    assert seen[0] + seen[1] != seen[2] + seen[3]


def test_a_picture_is_cut_anew_at_every_step(pets: FolderSet) -> None:
    alone = replace(pets, chosen=pets.chosen[:1])
    crops = all_batches(alone, AUGMENTED.model_copy(update={"batch_size": 1}))
    assert len({crop.tobytes() for crop in crops}) > 1


def test_augmentation_cuts_whole_pictures_not_their_centre_squares(pets: ImageSet) -> None:
    """The pictures are 40 x 56: without them, columns below 8 and from 48 on would never be seen."""
    columns = np.concatenate(all_batches(pets, AUGMENTED.model_copy(update={"steps": 40})))[..., 1]
    assert columns.min() < 4
    assert columns.max() > 51


def test_random_crops_have_llamagens_range_of_scales_places_and_flips() -> None:
    """Green counts columns and blue rows of 100 x 200 pixels, so a crop tells what it is of."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[..., 1], pixels[..., 2] = np.arange(200), 2 * np.arange(100)[:, None]
    crops = [random_crop(Image.fromarray(pixels), 80, stream(0, "test", draw)).astype(int) for draw in range(300)]
    assert {crop.shape for crop in crops} == {(80, 80, 3)}
    spans = np.array([np.abs(crop[40, 70, 1] - crop[40, 10, 1]) / 60 for crop in crops])  # source pixels a pixel
    assert spans.min() == pytest.approx(1, abs=0.04)
    assert spans.max() == pytest.approx(1.25, abs=0.04)
    flipped = np.array([crop[40, 70, 1] < crop[40, 10, 1] for crop in crops])
    assert 0.4 < flipped.mean() < 0.6
    assert min(crop[..., 1].min() for crop in crops) < 5
    assert max(crop[..., 1].max() for crop in crops) > 194
    assert min(crop[..., 2].min() for crop in crops) < 4
    assert max(crop[..., 2].max() for crop in crops) > 194
    assert all(crop[70, 40, 2] > crop[10, 40, 2] for crop in crops), "never upside down"


def test_the_shorter_side_is_a_whole_number_of_pixels_up_to_a_quarter_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """ceil(16 / 0.8) = 20: the shorter side of the scaled picture is one of 16, 17, 18, 19, 20."""
    sides, resize = set(), Image.Image.resize

    def noted(picture: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        sides.add(min(size))
        return resize(picture, size, resample)

    monkeypatch.setattr(Image.Image, "resize", noted)
    for draw in range(60):
        random_crop(Image.new("RGB", (64, 50)), 16, stream(0, "test", draw))
    sides.remove(25)  # the half that is taken on the way
    assert sides == {16, 17, 18, 19, 20}


@pytest.mark.parametrize("content", [b"no image", b"\x89PNG\r\n\x1a\n\x00\x00\x00"])
def test_a_file_that_is_no_image_is_named(content: bytes, pets: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "pets" / "cat" / "3.png").write_bytes(content)
    with pytest.raises(CorruptImage, match=r"cat/3\.png is no readable image") as error:
        all_batches(pets, AUGMENTED.model_copy(update={"steps": 10}))
    assert isinstance(error.value, UserError)


def test_a_generated_set_can_be_augmented() -> None:
    scenes = open_images(Data(name="scenes", source="scenes", resolution=16, num_images=8), "tokenizer", count=8)
    assert [batch.shape for batch in all_batches(scenes, AUGMENTED)] == 5 * [(4, 16, 16, 3)]
