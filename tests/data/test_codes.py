"""The code store: what is read is what was encoded, and no kill, damage or change goes unnoticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from squares import load_squares

from mirai import states
from mirai.data import codes as codes_module
from mirai.data.codes import CodeStore
from mirai.data.folder import fingerprint
from mirai.data.images import open_images
from mirai.errors import UserError
from mirai.experiments.offsets import grid_offsets
from mirai.experiments.recipe import Encoder, Foresight, Head
from mirai.foresight.sources import Sources
from mirai.tokenizer.vqgan import to_float
from mirai.training.targets import Targets
from tests.data.extraction import FOLDER, SCENES, Killed, contents, encode, extract

MIRAI_I = Foresight(
    source="encoder",
    offsets=grid_offsets(1),
    layer=1,
    head=Head(width=8),
    encoder=Encoder(name="seeing", timm="vit", image_size=16),
)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat/1.png", "cat/2.png", "cat/3.png", "dog/4.png", "dog/5.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "pets" / "dog" / "6 small.png")
    return tmp_path / "pets"


def every_view(store: CodeStore) -> tuple[np.ndarray, np.ndarray]:
    """Image and view ids of all that a store holds, in no order."""
    images, views = (axis.ravel() for axis in np.mgrid[: len(store), : store.num_views])
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], views[order]


@pytest.mark.parametrize("views", [1, 2, 10])
def test_pixels_of_every_view_are_those_its_codes_were_made_from(tmp_path: Path, views: Any) -> None:
    extract(tmp_path, SCENES.model_copy(update={"views": views}))
    store = CodeStore.open(tmp_path)
    images, ids = every_view(store)
    np.testing.assert_array_equal(encode(store.pixels(images, ids)), store.codes(images, ids))
    assert store.codes(images, ids).dtype == np.int64


@pytest.mark.parametrize("corrupt", [False, True])
def test_a_foresight_encoder_is_given_the_pixels_that_the_tokenizer_was_given(
    tmp_path: Path, pets: Path, corrupt: bool
) -> None:
    """All ten views of real files, from the decoder to the encoder's input; with a row in between that is skipped."""
    if corrupt:
        (pets / "cat" / "2.png").write_bytes(b"no image")
    tokenizer_saw: list[np.ndarray] = []

    def seeing(pixels: np.ndarray) -> np.ndarray:
        tokenizer_saw.extend(to_float(torch.from_numpy(pixels)).numpy())
        return np.arange(len(tokenizer_saw) - len(pixels), len(tokenizer_saw))[:, None].repeat(16, axis=1)

    extract(tmp_path / "codes", FOLDER.model_copy(update={"views": 10}), pets, encode=seeing)
    store = CodeStore.open(tmp_path / "codes")
    assert len(tokenizer_saw) == len(store) * 10 == (50 if corrupt else 60)

    class Encoder:
        width, num_tokens = 3, 16

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images

    targets = Targets(MIRAI_I, None, store, Sources(encoder=lambda _: Encoder(), teacher=None))  # type: ignore[arg-type]
    images, views = every_view(store)
    encoder_saw = targets(torch.zeros(1), torch.zeros(1), images, views)
    for codes, picture in zip(store.codes(images, views), encoder_saw, strict=True):  # a code is when it was seen
        np.testing.assert_array_equal((picture.numpy() - 0.5) / 0.5, tokenizer_saw[codes[0]])


@pytest.mark.parametrize(("crop_range", "side"), [(1.1, 70), (1.05, 67)])
def test_the_range_of_the_data_decides_the_square(tmp_path: Path, pets: Path, crop_range: float, side: int) -> None:
    data = FOLDER.model_copy(update={"resolution": 64, "views": 10, "crop_range": crop_range})
    extract(tmp_path / "codes", data, pets)
    store = CodeStore.open(tmp_path / "codes")
    assert store.squares is not None
    assert store.squares.shape[1:3] == (side, side)
    bottom_right = store.pixels(np.array([2]), np.array([3]))[0]
    np.testing.assert_array_equal(bottom_right, store.squares[2][side - 64 :, side - 64 :])


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
    for name in ("codes.bin", "squares.bin"):  # rows written after the last record, and only in part
        whole = (tmp_path / "whole" / name).read_bytes()
        with (tmp_path / "part" / name).open("r+b") as file:
            file.seek(len(whole) // 23 * calls_before_kill * 4)
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
    assert (store.manifest["source_images"], store.manifest["images"], len(store)) == (6, 5, 5)
    assert store.labels.tolist() == [0, 0, 1, 1, 1]
    assert np.load(tmp_path / "codes" / "labels.npy").tolist() == [0, -1, 0, 1, 1, 1]
    assert not store.array[1].any()
    wanted = load_squares(open_images(FOLDER, "train", folder=pets), [0, 2, 3, 4, 5])
    np.testing.assert_array_equal(store.pixels(np.arange(5), np.zeros(5, int)), wanted)


def test_a_store_of_before_skipped_images_had_rows_is_read_as_it_is(tmp_path: Path, pets: Path) -> None:
    extract(tmp_path / "old", FOLDER, pets)
    wanted = CodeStore.open(tmp_path / "old")
    manifest = states.read_json(tmp_path / "old" / "codes.json")
    states.write_json(tmp_path / "old" / "codes.json", manifest | {"source_images": 7, "skipped": ["cat/0.png"]})
    store = CodeStore.open(tmp_path / "old")
    images, views = every_view(wanted)
    assert len(store) == len(wanted) == 6
    np.testing.assert_array_equal(store.codes(images, views), wanted.codes(images, views))
    np.testing.assert_array_equal(store.pixels(images, views), wanted.pixels(images, views))


def test_what_is_odd_about_a_folder_is_told_in_a_sentence_each(
    tmp_path: Path, pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(7):
        (pets / "cat" / f"broken {number}.png").write_bytes(b"no image")
        Image.fromarray(np.zeros((15, 40), np.uint8)).save(pets / "dog" / f"flat {number}.png")
    extract(tmp_path / "codes", FOLDER, pets)
    told = capsys.readouterr().err.splitlines()[1:]
    assert told == [
        "codes: 7 unreadable images skipped: "
        + ", ".join(f"cat/broken {number}.png" for number in range(5))
        + " and 2 more",
        "codes: 8 images are smaller than the crop of 16 pixels and were enlarged to it: dog/6 small.png, "
        + ", ".join(f"dog/flat {number}.png" for number in range(4))
        + " and 3 more",
        "codes: images converted to RGB: 7 L",
    ]
    manifest = states.read_json(tmp_path / "codes" / "codes.json")
    assert (len(manifest["skipped"]), manifest["enlarged"], manifest["converted"]) == (7, 8, {"L": 7})


def test_each_file_is_read_once(tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or original(path))
    extract(tmp_path / "codes", FOLDER, pets)
    assert sorted(read) == sorted(pets.glob("*/*.png"))


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
