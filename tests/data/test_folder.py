"""Image folders with everything real ones contain."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from squares import load_squares
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from mirai.data.crops import Pixels
from mirai.data.folder import SUFFIXES, CorruptImage, FolderSet, fingerprint, list_images
from mirai.data.images import centre_images, open_images
from mirai.errors import UserError
from mirai.experiments.recipe import Data

ORIENTATION = 0x0112  # EXIF tag
DATA = Data(name="pets", source="folder", resolution=16, views=2)


def noise(mode: str, width: int = 24, height: int = 20) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, *channels), np.uint8), mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for name in ("dog", "cat", "cat/b", "cat/b/c", "cat/b-d", ".cache"):
        (root / name).mkdir(parents=True)
    noise("L").save(root / "cat" / "grey.PNG")
    noise("RGBA").save(root / "cat" / "b" / "c" / "alpha.webp", lossless=True)
    noise("RGB").save(root / "cat" / "b-d" / "plain.bmp")
    noise("RGB", 500, 300).save(root / "dog" / "Z.jpeg")
    noise("CMYK", 200, 120).save(root / "dog" / "print.JPG")
    noise("RGB", 9, 7).convert("P").save(root / "dog" / "a small palette.png")
    (root / "dog" / "notes.txt").write_text("no image")
    return root


def damage(folder: Path) -> None:
    path = folder / "dog" / "Z.jpeg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_order_classes_and_labels_are_imagefolders(folder: Path) -> None:
    (folder / ".cache").rmdir()  # for ImageFolder it would be a class
    wanted = ImageFolder(str(folder))
    names, files = list_images(folder)
    assert list(names) == wanted.classes
    assert [(str(folder / file.path), file.label) for file in files] == wanted.samples
    assert [file.bytes for file in files] == [os.path.getsize(path) for path, _ in wanted.samples]


def test_every_kind_of_file_that_imagefolder_takes_is_an_image(folder: Path) -> None:
    assert sorted(SUFFIXES) == sorted(IMG_EXTENSIONS)
    for suffix in ("ppm", "pgm", "tif", "tiff"):
        noise("L" if suffix == "pgm" else "RGB").save(folder / "dog" / f"other.{suffix}")
    (folder / ".cache").rmdir()
    wanted = ImageFolder(str(folder), transform=np.array)
    images = open_images(DATA.model_copy(update={"resolution": 7}), "train", folder=folder)
    assert [images.name(index) for index in range(len(images))] == [
        str(Path(path).relative_to(folder)) for path, _ in wanted.samples
    ]
    assert load_squares(images).shape == (10, 7, 7, 3)


def test_grey_alpha_cmyk_and_palette_become_rgb_as_pil_converts_them(folder: Path) -> None:
    wanted = ImageFolder(str(folder), allow_empty=True, transform=np.array)
    images = open_images(DATA.model_copy(update={"resolution": 7}), "train", folder=folder)
    small = next(i for i, file in enumerate(list_images(folder)[1]) if "palette" in file.path)
    np.testing.assert_array_equal(images.square(small), wanted[small][0][:, 1:8])  # 9 x 7 pixels: cut, not scaled
    assert load_squares(images).shape == (6, 7, 7, 3)


def test_the_orientation_in_exif_is_ignored_as_by_imagefolder(tmp_path: Path) -> None:
    for name, orientation in (("a upright.png", 1), ("b turned.png", 6)):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        (tmp_path / "pets/cat").mkdir(parents=True, exist_ok=True)
        noise("RGB", 16, 16).save(tmp_path / "pets/cat" / name, exif=exif)
    images = open_images(DATA, "train", folder=tmp_path / "pets")
    assert Image.open(tmp_path / "pets/cat/b turned.png").getexif()[ORIENTATION] == 6
    wanted = ImageFolder(str(tmp_path / "pets"), transform=np.array)
    for index in (0, 1):
        np.testing.assert_array_equal(images.square(index), wanted[index][0])
    np.testing.assert_array_equal(images.square(0), images.square(1))


def test_only_one_image_is_smaller_than_the_square(folder: Path) -> None:
    images = open_images(DATA, "train", folder=folder)
    paths = [file.path for file in list_images(folder)[1]]
    small = [path for i, path in enumerate(paths) if images.read(i)[1].side < images.side]
    assert small == ["dog/a small palette.png"]


def test_a_truncated_image_is_refused_by_name(folder: Path) -> None:
    damage(folder)
    images = open_images(DATA, "reference", folder=folder)
    with pytest.raises(CorruptImage, match=r"dog/Z\.jpeg is no readable image.*`corrupt_images`"):
        load_squares(images)


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n\x00\x00\x00"])
def test_a_file_that_is_no_image_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "cat" / "grey.PNG").write_bytes(content)
    with pytest.raises(UserError, match=r"cat/grey\.PNG is no readable image"):
        open_images(DATA, "train", folder=folder).square(0)


def test_centre_crops_are_made_by_threads_in_order_and_a_corrupt_one_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(DATA, "train", folder=folder)
    alone = [images.centre(index) for index in range(6)]
    decoders, original = set(), type(images).centre

    def noted(self: FolderSet, index: int) -> Pixels:
        decoders.add(threading.current_thread().name)
        time.sleep(0.01)
        return original(self, index)

    monkeypatch.setattr(type(images), "centre", noted)
    np.testing.assert_array_equal(centre_images(images), alone)
    np.testing.assert_array_equal(centre_images(images, [4, 1]), [alone[4], alone[1]])
    assert len(decoders) > 1
    damage(folder)
    with pytest.raises(CorruptImage, match=r"dog/Z\.jpeg is no readable image"):
        centre_images(images)


def test_a_damaged_tiff_is_no_readable_image(folder: Path) -> None:
    """PIL meets a place in the file that is no whole number with a TypeError."""
    path = folder / "dog" / "other.tif"
    noise("RGB").save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\x11\x01\x04") + 2] = 5  # where the pixels begin: an integer becomes a fraction
    path.write_bytes(content)
    images = open_images(DATA, "train", folder=folder)
    place = next(index for index in range(len(images)) if images.name(index) == "dog/other.tif")
    with pytest.raises(CorruptImage, match=r"other\.tif is no readable image"):
        images.square(place)


def test_skipping_leaves_unreadable_images_and_their_labels_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    skip = DATA.model_copy(update={"corrupt_images": "skip"})
    images = open_images(skip, "reference", folder=folder)
    assert load_squares(images).shape[0] == len(images) == len(images.labels) == 5
    assert "1 unreadable images skipped: dog/Z.jpeg" in capsys.readouterr().err
    assert len(open_images(skip, "features", folder=folder, count=5)) == 5
    with pytest.raises(UserError, match="has 5 images"):
        open_images(skip, "features", folder=folder, count=6)


def test_a_file_that_vanished_is_never_skipped(folder: Path) -> None:
    images = open_images(DATA.model_copy(update={"corrupt_images": "skip"}), "train", folder=folder)
    (folder / "cat" / "grey.PNG").unlink()
    with pytest.raises(UserError, match="cannot be read") as caught:
        images.square(0)
    assert not isinstance(caught.value, CorruptImage)


def test_a_count_takes_the_same_images_again_and_other_ones_per_split(folder: Path) -> None:
    def take(split: str) -> np.ndarray:
        return load_squares(open_images(DATA, split, folder=folder, count=3))  # type: ignore[arg-type]

    np.testing.assert_array_equal(take("features"), take("features"))
    assert not np.array_equal(take("features"), take("reference"))


def test_the_fingerprint_sees_additions_renames_and_sizes_but_no_reading(folder: Path) -> None:
    before = fingerprint(folder)
    assert before == fingerprint(folder) == open_images(DATA, "train", folder=folder, count=2).fingerprint()
    assert before.files == 6
    (folder / "dog" / "Z.jpeg").rename(folder / "dog" / "Y.jpeg")
    renamed = fingerprint(folder)
    assert renamed.sha256 != before.sha256
    assert renamed.bytes == before.bytes
    damage_size = folder / "dog" / "Y.jpeg"
    damage_size.write_bytes(damage_size.read_bytes() + b"\0")
    assert fingerprint(folder).bytes == before.bytes + 1
    noise("RGB").save(folder / "dog" / "new.png")
    assert fingerprint(folder).files == 7


def test_a_missing_empty_or_classless_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_images(DATA, "train", folder=tmp_path / "nowhere")
    with pytest.raises(UserError, match="no class sub-folders"):
        open_images(DATA, "train", folder=folder / "dog")
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder .*empty holds no image"):
        open_images(DATA, "train", folder=folder)
    with pytest.raises(UserError, match=r"config/site\.yaml"):
        open_images(DATA, "train")
