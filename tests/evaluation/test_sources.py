from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mirai.data.images import centre_images, open_images
from mirai.errors import UserError
from mirai.evaluation.features import extract
from mirai.evaluation.sources import Images, check_images, in_memory, of_codes, of_folder, of_npz, of_path, of_set
from mirai.experiments.recipe import Data
from mirai.tokenizer.store import decode_images
from mirai.tokenizer.vqgan import VQGAN, to_uint8
from tests.evaluation.projection import RandomProjection
from tests.tokenizers import WIDER

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)


def as_npz(path: Path, images: np.ndarray, *, deflated: bool = False) -> Path:
    (np.savez_compressed if deflated else np.savez)(path, images)
    return path


def as_folder(folder: Path, images: np.ndarray) -> Path:
    """PNGs, some in sub-folders; path order is the order of the images."""
    for number, image in enumerate(images):
        path = folder / ("a" if number < 5 else "b/deeper") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def source(kind: str, folder: Path) -> Images:
    match kind:
        case "array":
            return in_memory(PIXELS)
        case "stored" | "deflated":
            return of_npz(as_npz(folder / "images.npz", PIXELS, deflated=kind == "deflated"))
    return of_folder(as_folder(folder / "images", PIXELS))


@pytest.mark.parametrize("kind", ["array", "stored", "deflated", "folder"])
def test_a_source_gives_its_images_in_order_in_batches_as_often_as_asked(kind: str, tmp_path: Path) -> None:
    images = source(kind, tmp_path)
    assert (len(images), images.size) == (11, (4, 4))
    for size in (1, 4, 64):
        batches = list(images.batches(size))
        assert [len(batch) for batch in batches] == [size] * (11 // size) + [11 % size] * (11 % size > 0)
        np.testing.assert_array_equal(np.concatenate(batches), PIXELS)
    np.testing.assert_array_equal(images.first(7).array(), PIXELS[:7])
    with pytest.raises(UserError, match="the first 12 images are asked for, there are 11"):
        images.first(12)


@pytest.mark.parametrize("kind", ["stored", "folder"])
def test_a_digest_follows_the_content_and_not_the_place(kind: str, tmp_path: Path) -> None:
    def digest(images: np.ndarray, name: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        images_of = (
            of_npz(as_npz(folder / "x.npz", images)) if kind == "stored" else of_folder(as_folder(folder, images))
        )
        assert images_of.digest is not None
        return images_of.digest()

    other = PIXELS.copy()
    other[10, 0, 0, 0] ^= 1
    first, again, changed = (digest(images, name) for images, name in ((PIXELS, "a"), (PIXELS, "b"), (other, "c")))
    assert first == again != changed


def test_a_renamed_image_changes_the_digest_of_its_folder(tmp_path: Path) -> None:
    images = of_folder(as_folder(tmp_path, PIXELS))
    assert images.digest is not None
    before = images.digest()
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "zero.png")
    after = of_folder(tmp_path).digest
    assert after is not None
    assert before != after()


def test_images_of_an_npz_are_read_as_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_npz(tmp_path / "images.npz", np.zeros((4000, 4, 4, 3), np.uint8))
    asked: list[int] = []
    read = zipfile.ZipExtFile.read

    def counted(self: zipfile.ZipExtFile, n: int = -1) -> bytes:
        asked.append(n)
        return read(self, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    batches = of_npz(path).batches(10)
    next(batches)
    assert max(asked) <= 10 * 48
    assert min(asked) > 0


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (
            np.zeros((2, 8, 8, 3), np.float32),
            r"samples must be uint8 with values 0\.\.255, got float32: convert floats",
        ),
        (np.zeros((2, 3, 8, 8), np.uint8), r"samples must have the shape .* got \(2, 3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.uint8), r"samples must have the shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"samples must have the shape"),
    ],
)
def test_images_of_another_kind_are_refused(images: np.ndarray, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        check_images(images.shape, images.dtype, "samples")
    with pytest.raises(UserError, match=complaint.replace("samples", r"arr_0 of .*x\.npz")):
        of_npz(as_npz(tmp_path / "x.npz", images))


def test_an_npz_of_other_arrays_is_named_with_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=np.zeros(11))
    with pytest.raises(UserError, match=r"x\.npz has no array arr_0, where ADM keeps images; it holds images, labels"):
        of_npz(tmp_path / "x.npz")


def test_images_in_fortran_order_are_refused(tmp_path: Path) -> None:
    path = as_npz(tmp_path / "x.npz", np.asfortranarray(PIXELS))
    with pytest.raises(UserError, match=r"arr_0 of .* lies in Fortran order"):
        of_npz(path)


@pytest.mark.parametrize("deflated", [False, True])
def test_a_truncated_npz_is_named(tmp_path: Path, deflated: bool) -> None:
    path = as_npz(tmp_path / "x.npz", PIXELS, deflated=deflated)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"x\.npz is truncated, damaged or no \.npz file"):
            of_npz(path).array()


@pytest.mark.parametrize("deflated", [False, True])
def test_an_npz_with_a_flipped_bit_is_named_before_its_features_are_given(tmp_path: Path, deflated: bool) -> None:
    path = as_npz(tmp_path / "x.npz", PIXELS, deflated=deflated)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.npz is truncated, damaged or no \.npz file"):
        extract(RandomProjection(), of_npz(path), batch_size=4, progress=False)


def test_an_npz_that_is_shorter_than_its_shape_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, PIXELS)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("arr_0.npy", array.getvalue()[:-1])
    with pytest.raises(UserError, match=r"arr_0 is not as long as its shape \(11, 4, 4, 3\) says"):
        of_npz(tmp_path / "x.npz")


def test_other_modes_become_rgb_as_pillow_converts_them(tmp_path: Path) -> None:
    rgb = Image.fromarray(PIXELS[0])
    pictures = {mode: rgb.convert(mode) for mode in ("L", "RGBA", "CMYK", "P", "1")}
    pictures["RGBA"].putalpha(7)
    expected = []
    for number, (mode, picture) in enumerate(pictures.items()):
        path = tmp_path / f"{number}{'.jpg' if mode == 'CMYK' else '.png'}"
        picture.save(path)
        expected.append(np.asarray(Image.open(path).convert("RGB")))
    np.testing.assert_array_equal(of_folder(tmp_path).array(), np.stack(expected))


def test_files_that_are_no_images_are_left_alone_and_a_folder_of_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.png").write_text("left by another program")
    with pytest.raises(UserError, match=r"holds no image \(\.jpg.*\), and no samples\.json of codes"):
        of_path(tmp_path)
    as_folder(tmp_path, PIXELS)
    assert len(of_path(tmp_path)) == 11


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    as_folder(tmp_path, PIXELS)
    Image.new("RGB", (5, 4)).save(tmp_path / "b" / "other.png")
    with pytest.raises(UserError, match=r"other\.png has 5x4 pixels, 000\.png 4x4: images .* must have one size"):
        of_folder(tmp_path).array()


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    as_folder(tmp_path, PIXELS)
    (tmp_path / "a" / "003.png").write_bytes((tmp_path / "a" / "003.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"003\.png is no readable image"):
        extract(RandomProjection(), of_folder(tmp_path), progress=False)


def test_unfinished_samples_are_told_from_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "shard-00000.npz").write_bytes(b"")
    with pytest.raises(UserError, match="samples that are not all drawn yet; `mirai sample` goes on"):
        of_path(tmp_path)


@pytest.mark.parametrize(("name", "complaint"), [("none.npz", "does not exist"), ("x.txt", "is neither an .npz")])
def test_what_is_neither_a_file_nor_a_folder_of_images_is_refused(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match=complaint):
        of_path(tmp_path / name)


def test_an_image_set_is_read_as_its_centre_crops() -> None:
    digits = open_images(
        Data(name="digits", source="digits", resolution=32, num_classes=10), "reference", count=5, fewer=True
    )
    images = of_set(digits, "reference images")
    assert (len(images), images.size) == (5, (32, 32))
    np.testing.assert_array_equal(np.concatenate(list(images.batches(2))), centre_images(digits))


TOKENIZER = WIDER


@pytest.fixture
def tokenizer() -> VQGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQGAN(TOKENIZER).eval()


CODES = np.random.default_rng(0).integers(0, 16, (7, 16))


def test_codes_are_decoded_as_they_are_read(tokenizer: VQGAN) -> None:
    images = of_codes(CODES, tokenizer, "samples")
    assert (len(images), images.size, images.digest) == (7, (8, 8), None)
    np.testing.assert_array_equal(np.concatenate(list(images.batches(3))), decode_images(tokenizer, CODES))
    np.testing.assert_array_equal(images.first(2).array(), decode_images(tokenizer, CODES[:2]))


def test_codes_are_resized_as_floats_before_they_are_rounded(tokenizer: VQGAN) -> None:
    images = of_codes(CODES, tokenizer, "samples", image_size=6)
    with torch.inference_mode():
        floats = tokenizer.decode(torch.from_numpy(CODES))
        resized = torch.nn.functional.interpolate(floats, size=(6, 6), mode="bicubic", align_corners=False)
    assert images.size == (6, 6)
    np.testing.assert_allclose(images.array().astype(int), to_uint8(resized).numpy().astype(int), atol=1)
    assert (images.array() == to_uint8(resized).numpy()).mean() > 0.99


def test_the_digest_of_codes_tells_sizes_apart(tokenizer: VQGAN) -> None:
    digests = [of_codes(CODES, tokenizer, "x", image_size=size, digest="abc").digest for size in (None, 8, 6)]
    as_decoded, same, smaller = (digest() for digest in digests if digest is not None)
    assert as_decoded == same != smaller
