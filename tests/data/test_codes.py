"""The code store: what is read is what was encoded, and no kill, damage or change goes unnoticed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from squares import load_squares

from mirai import states
from mirai.data import codes as codes_module
from mirai.data.codes import CodeStore, extract_codes
from mirai.data.folder import fingerprint
from mirai.data.images import open_images
from mirai.errors import UserError
from mirai.experiments.recipe import Data

SCENES = Data(name="scenes", source="scenes", resolution=16, num_images=23, views=10)
FOLDER = Data(name="pets", source="folder", resolution=16, views=2, corrupt_images="skip")
GRID = 4


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def encode(pixels: np.ndarray) -> np.ndarray:
    """A tokenizer of hashes: any pixel changes the codes (n, 16) of its image."""
    digests = [hashlib.sha512(image.tobytes()).digest()[:32] for image in pixels]
    return np.frombuffer(b"".join(digests), "<u2").reshape(len(pixels), GRID * GRID).astype(np.int64)


def extract(folder: Path, data: Data = SCENES, source: Path | None = None, **changes: Any) -> None:
    settings: dict[str, Any] = {
        "encode": encode,
        "grid_side": GRID,
        "codebook_size": 65536,
        "tokenizer_key": "abc",
        "store_squares": True,
        "batch_images": 4,
    }
    extract_codes(folder, open_images(data, "train", folder=source), data, **(settings | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat/1.png", "cat/2.png", "cat/3.png", "dog/4.png", "dog/5.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "pets" / "dog" / "6 small.png")
    return tmp_path / "pets"


@pytest.mark.parametrize("views", [1, 2, 10])
def test_pixels_of_every_view_are_those_its_codes_were_made_from(tmp_path: Path, views: Any) -> None:
    extract(tmp_path, SCENES.model_copy(update={"views": views}))
    store = CodeStore.open(tmp_path)
    images, ids = (axis.ravel() for axis in np.mgrid[: len(store), :views])
    order = np.random.default_rng(0).permutation(len(images))
    images, ids = images[order], ids[order]
    np.testing.assert_array_equal(encode(store.pixels(images, ids)), store.codes(images, ids))
    assert store.codes(images, ids).dtype == np.int64


def test_a_store_describes_itself(tmp_path: Path) -> None:
    extract(tmp_path)
    store = CodeStore.open(tmp_path, tokenizer_key="abc")
    assert (len(store), store.num_views, store.num_classes) == (23, 10, 10)
    assert store.array.shape == (23, 10, 16)
    assert store.array.dtype == np.uint16
    np.testing.assert_array_equal(store.labels, open_images(SCENES, "train").labels)
    assert not (tmp_path / "progress.json").exists()


@pytest.mark.parametrize("calls_before_kill", [0, 1, 2, 5])
def test_an_extraction_killed_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before_kill: int
) -> None:
    extract(tmp_path / "whole")
    monkeypatch.setattr(codes_module, "SAVE_SECONDS", 0.0)
    calls: list[int] = []

    def encode_and_count(pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        return encode(pixels)

    def killed(pixels: np.ndarray) -> np.ndarray:
        if len(calls) == calls_before_kill:
            raise Killed
        return encode_and_count(pixels)

    with pytest.raises(Killed):
        extract(tmp_path / "part", encode=killed)
    assert not states.is_published(tmp_path / "part" / "codes.json")
    for name in ("codes.bin", "squares.bin"):  # bytes written after the last record, cut in the middle of an image
        with (tmp_path / "part" / name).open("ab") as file:
            file.write(b"torn")
    extract(tmp_path / "part", encode=encode_and_count)
    assert sum(calls) == 23 * 10, "a finished chunk was encoded again"
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_an_extraction_for_another_tokenizer_does_not_go_on_from_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "SAVE_SECONDS", 0.0)

    def other_then_killed(pixels: np.ndarray, calls: list[int] = []) -> np.ndarray:  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return 1 - encode(pixels) % 2

    with pytest.raises(Killed):
        extract(tmp_path / "part", encode=other_then_killed, tokenizer_key="other")
    extract(tmp_path / "part")
    extract(tmp_path / "whole")
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_skipped_and_enlarged_images_are_counted_and_the_rest_keeps_its_labels(
    tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "SAVE_SECONDS", 0.0)
    (pets / "cat" / "2.png").write_bytes(b"no image")
    extract(tmp_path / "codes", FOLDER, pets, batch_images=1)
    store = CodeStore.open(tmp_path / "codes")
    assert store.manifest["skipped"] == ["cat/2.png"]
    assert store.manifest["enlarged"] == 1
    assert store.labels.tolist() == [0, 0, 1, 1, 1]
    wanted = load_squares(open_images(FOLDER, "train", folder=pets), [0, 2, 3, 4, 5])
    np.testing.assert_array_equal(store.pixels(np.arange(5), np.zeros(5, int)), wanted)


def test_an_unreadable_image_is_refused_by_name_unless_skipped(tmp_path: Path, pets: Path) -> None:
    (pets / "cat" / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cat/2\.png is no readable image"):
        extract(tmp_path / "codes", FOLDER.model_copy(update={"corrupt_images": "refuse"}), pets)


def test_codes_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    extract(tmp_path)
    with pytest.raises(UserError, match="made by tokenizer abc, not by xyz"):
        CodeStore.open(tmp_path, tokenizer_key="xyz")


def test_a_changed_folder_under_an_old_name_is_refused(tmp_path: Path, pets: Path) -> None:
    extract(tmp_path / "codes", FOLDER, pets)
    CodeStore.open(tmp_path / "codes", fingerprint=fingerprint(pets))
    (pets / "dog" / "4.png").unlink()
    with pytest.raises(UserError, match=r"data set pets has changed .*6 files .*then, 5 .*new name"):
        CodeStore.open(tmp_path / "codes", fingerprint=fingerprint(pets))


def test_a_truncated_payload_is_named(tmp_path: Path) -> None:
    extract(tmp_path)
    (tmp_path / "codes.bin").write_bytes((tmp_path / "codes.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"codes\.bin is truncated"):
        CodeStore.open(tmp_path)


@pytest.mark.parametrize("name", ["codes.bin", "labels.npy"])
def test_altered_codes_and_labels_are_named_on_opening(tmp_path: Path, name: str) -> None:
    extract(tmp_path)
    altered = bytearray((tmp_path / name).read_bytes())
    altered[-1] ^= 1
    (tmp_path / name).write_bytes(altered)
    with pytest.raises(UserError, match=f"{name} was altered"):
        CodeStore.open(tmp_path)


def test_damaged_codes_are_made_again_and_not_taken_as_done(tmp_path: Path) -> None:
    extract(tmp_path)
    good = contents(tmp_path)
    (tmp_path / "codes.bin").write_bytes(bytes(len(good["codes.bin"])))
    extract(tmp_path)
    assert contents(tmp_path) == good


def test_a_store_without_squares_gives_codes_but_no_pixels(tmp_path: Path) -> None:
    extract(tmp_path, store_squares=False)
    store = CodeStore.open(tmp_path)
    assert not (tmp_path / "squares.bin").exists()
    assert store.codes(np.array([3]), np.array([9])).shape == (1, 16)
    with pytest.raises(UserError, match="without pixels"):
        store.pixels(np.array([3]), np.array([9]))


def test_a_disk_that_is_too_small_is_refused_before_any_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = codes_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(codes_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"GB left"):
        extract(tmp_path, encode=lambda pixels: pytest.fail("encoded although the disk is too small"))
