"""Several processes make one code store: to the bytes that one makes, whoever dies and however many go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mirai import states
from mirai.data import codes as codes_module
from mirai.data.codes import CodeStore
from mirai.data.images import open_images
from mirai.errors import UserError
from mirai.experiments import paths, plan
from mirai.experiments.recipe import Data, Sampling
from mirai.experiments.scale import load_scale
from mirai.experiments.stages import CodesStage, Phase, SamplesStage, Stage
from mirai.launch.ranks import run_ranks
from mirai.make import make
from mirai.ranks import Ranks, ranks_of
from mirai.store import open_tokenizer
from mirai.tokenizer.vqgan import VQGAN, to_float
from tests.data.extraction import Killed, contents, encode, extract
from tests.forked import fork
from tests.tokenizers import TRAINED
from tests.training import tiny

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
PETS = Data(name="pets", source="folder", resolution=16, views=2, corrupt_images="skip")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """25 images; of them two that cannot be read, a small one and a grey one."""
    rng = np.random.default_rng(0)
    for number in range(25):
        path = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 8 if number == 3 else 20
        Image.fromarray(rng.integers(0, 256, (side, 24) if number == 6 else (side, 24, 3), np.uint8)).save(path)
    for name in ("cat/8.png", "dog/21.png"):
        (tmp_path / "pets" / name).write_bytes(b"no image")
    return tmp_path / "pets"


# Ranks as threads


@dataclass(frozen=True)
class Thread(Ranks):
    """A rank among threads, which meet at a barrier instead of over a process group."""

    place: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    board: dict[int, int] = field(default_factory=dict)

    def _gather(self, number: int) -> list[int]:
        self.board[self.rank] = number
        try:
            self.place.wait()
            numbers = [self.board[rank] for rank in range(self.world)]
            self.place.wait()
        except threading.BrokenBarrierError as error:
            raise UserError("another rank was stopped") from error
        return numbers


def crew(world: int, folder: Path, source: Path, data: Data = PETS, **changes: Any) -> list[BaseException | None]:
    """An extraction by so many ranks -> what each of them ended with."""
    place, board = threading.Barrier(world), dict[int, int]()
    ends: list[BaseException | None] = [None] * world

    def work(rank: int) -> None:
        ranks = Thread(rank, world, torch.device("cpu"), None, place, board)
        try:
            extract(folder, data, source, batch_images=3, rank=rank, ranks=world, together=ranks.together, **changes)
        except BaseException as error:
            ends[rank] = error
            if isinstance(error, Killed):
                place.abort()  # the others notice that a process is no more

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a rank waits for ever"
    return ends


def failing_at(call: int, error: BaseException) -> Callable[[np.ndarray], np.ndarray]:
    """A tokenizer that fails at a call, whichever rank that is in."""
    calls: list[int] = []

    def encode_or_fail(pixels: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == call:
            raise error
        return encode(pixels)

    return encode_or_fail


@pytest.mark.parametrize("case", range(12))
def test_any_number_of_ranks_killed_anywhere_and_changed_on_the_way_make_the_same_bytes(
    case: int, tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(tmp_path / "whole", PETS, pets, batch_images=3)
    rng = np.random.default_rng(case)
    if case % 3:
        monkeypatch.setattr(codes_module, "SAVE_SECONDS", 0.0)
    for _ in range(rng.integers(4)):
        ends = crew(
            int(rng.integers(1, 4)), tmp_path / "part", pets, encode=failing_at(int(rng.integers(1, 9)), Killed())
        )
        assert None not in ends or all(end is None for end in ends)
        assert states.is_published(tmp_path / "part" / "codes.json") == (None in ends)
    assert crew(world := int(rng.integers(1, 4)), tmp_path / "part", pets) == [None] * world
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert CodeStore.open(tmp_path / "part").manifest["skipped"] == ["cat/8.png", "dog/21.png"]


def test_no_chunk_that_was_recorded_is_encoded_again_by_another_number_of_ranks(
    tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "SAVE_SECONDS", 0.0)
    seen: list[int] = []

    def counted(pixels: np.ndarray) -> np.ndarray:
        seen.append(len(pixels))
        return encode(pixels)

    def until_five(pixels: np.ndarray) -> np.ndarray:
        if len(seen) >= 5:
            raise Killed
        return counted(pixels)

    crew(2, tmp_path / "codes", pets, encode=until_five)
    crew(3, tmp_path / "codes", pets, encode=counted)
    assert 2 * 23 <= sum(seen) <= 2 * (23 + 3), "at most the chunk of the rank that lived on is lost"


def test_a_fatal_image_ends_all_ranks_with_exit_code_2_and_one_sentence(tmp_path: Path, pets: Path) -> None:
    refuse = PETS.model_copy(update={"corrupt_images": "refuse"})
    ends = crew(3, tmp_path / "codes", pets, refuse)
    sentences = [str(end) for end in ends if isinstance(end, UserError)]
    assert len(sentences) == 1
    assert "cat/8.png is no readable image" in sentences[0]
    assert [end.code for end in ends if isinstance(end, SystemExit)] == [2, 2]
    assert not states.is_published(tmp_path / "codes" / "codes.json")


def test_a_mistake_that_all_ranks_notice_is_told_by_the_first_alone(tmp_path: Path, pets: Path) -> None:
    def full(pixels: np.ndarray) -> np.ndarray:
        raise UserError("all say this")

    first, *others = crew(3, tmp_path / "codes", pets, encode=full)
    assert str(first) == "all say this"
    assert [(type(end), end.code) for end in others if isinstance(end, SystemExit)] == [(SystemExit, 2)] * 2


def test_a_bug_in_one_rank_ends_the_others_too(tmp_path: Path, pets: Path) -> None:
    ends = crew(3, tmp_path / "codes", pets, encode=failing_at(5, ZeroDivisionError()))
    assert sorted(str(type(end).__name__) for end in ends) == ["SystemExit", "SystemExit", "ZeroDivisionError"]
    assert [end.code for end in ends if isinstance(end, SystemExit)] == [1, 1]


def test_half_the_rows_are_never_published(tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that saw different folders: the first has no record of what the second has left out."""
    monkeypatch.setattr(codes_module, "deal", lambda notes, batch, ranks: ([[range(0, 3)]], 3))
    with pytest.raises(UserError, match="22 images are still without codes"):
        extract(tmp_path / "codes", PETS, pets)
    assert not states.is_published(tmp_path / "codes" / "codes.json")


# Ranks as processes


def share(folder: Path, source: Path, **changes: Any) -> Callable[[], None]:
    """A rank's part of an extraction."""

    def work() -> None:
        with ranks_of("cpu") as ranks:
            settings = {"rank": ranks.rank, "ranks": ranks.world, "together": ranks.together, "batch_images": 3}
            extract(folder, PETS, source, **(settings | changes))

    return work


def test_processes_make_the_bytes_of_one_although_one_of_them_is_killed(
    tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codes_module, "SAVE_SECONDS", 0.0)
    extract(tmp_path / "whole", PETS, pets, batch_images=3)
    calls: list[int] = []

    def dying(pixels: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(pixels)

    assert fork(2, share(tmp_path / "part", pets, encode=dying)) == [2, -signal.SIGKILL]
    assert "rank 0: another of the 2 ranks was stopped; the same command goes on" in capfd.readouterr().err
    assert not states.is_published(tmp_path / "part" / "codes.json")
    assert len(list((tmp_path / "part").glob("progress-*.npz"))) == 2
    assert fork(3, share(tmp_path / "part", pets)) == [0, 0, 0]
    assert " by 3 processes, " in capfd.readouterr().err
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


# Stages by ranks


@pytest.fixture
def codes_stage(project: Path, pets: Path) -> CodesStage:
    """Codes of images that can all be read, their tokenizer there, in a project that starts two ranks."""
    for name in ("cat/8.png", "dog/21.png"):
        (pets / name).unlink()
    (project / "config").mkdir()
    (project / "config/site.yaml").write_text(yaml.safe_dump({"data": {"pets": str(pets)}, "ranks": 2}))
    stage = CodesStage(data=PETS.model_copy(update={"corrupt_images": "refuse"}), tokenizer=TRAINED)
    plan.freeze(plan.Planned(stage, "digits"))
    make(plan.Planned(stage.tokenizer_stage(), "digits"))
    return stage


def made_by(world: int, stage: Stage) -> list[int]:
    """Make a stage by forked ranks -> per rank 0 for made, 3 for there already, else its exit code."""

    def work() -> None:
        if not make(plan.Planned(stage, "digits")):
            raise SystemExit(3)

    return fork(world, work)


def test_a_fatal_image_is_named_once_by_the_command_and_once_mended_the_ranks_go_on(
    codes_stage: CodesStage, pets: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    manifest = paths.manifest("codes", codes_stage.key)
    whole = (pets / "dog/5.png").read_bytes()
    (pets / "dog/5.png").write_bytes(whole[:100])
    assert run_ranks(["codes", codes_stage.key], 2) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mirai: ")]
    assert len(told) == 1
    assert told[0].startswith(f"mirai: {pets}/dog/5.png is no readable image (")
    assert not states.is_published(manifest)
    (pets / "dog/5.png").write_bytes(whole)
    assert made_by(2, codes_stage) == [0, 0]
    assert "codes: 46 crops in " in capfd.readouterr().err

    store = CodeStore.open(manifest.parent, tokenizer_key=codes_stage.tokenizer_stage().key)
    tokenizer = open_tokenizer(codes_stage.tokenizer_stage(), "cpu")
    squares = torch.from_numpy(np.stack([open_images(PETS, "train", folder=pets).square(n) for n in range(23)]))
    for view, pixels in enumerate((squares, squares.flip(2))):
        with torch.inference_mode():
            wanted = tokenizer.encode(to_float(pixels))
        np.testing.assert_array_equal(store.array[:, view], wanted.numpy())


def test_a_pass_of_the_tokenizer_is_bounded_in_pixels_and_squares_are_stored_as_the_scale_says(
    codes_stage: CodesStage, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = project / "experiments/scales/digits.yaml"
    scale.write_text(scale.read_text().replace("numerics: {", "numerics: {store_squares: false, "))
    load_scale.cache_clear()
    monkeypatch.setattr("mirai.tokenizer.passes.PASS_PIXELS", 16 * 16 * 5 + 1)
    given: list[tuple[int, ...]] = []
    original = VQGAN.encode

    def recorded(tokenizer: VQGAN, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        given.append(images.shape)
        return original(tokenizer, images)

    monkeypatch.setattr(VQGAN, "encode", recorded)
    assert make(plan.Planned(codes_stage, "digits"))
    assert given == [(5, 3, 16, 16)] * 9 + [(1, 3, 16, 16)]
    store = CodeStore.open(paths.folder("codes", codes_stage.key))
    assert store.squares is None
    assert not (store.folder / "squares.bin").exists()


def test_only_the_first_rank_takes_the_lock_and_finished_work_is_told_to_all(
    codes_stage: CodesStage, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = paths.folder("codes", codes_stage.key)
    with states.Lock(folder / "lock"):
        assert made_by(2, codes_stage) == [2, 2]
    assert capfd.readouterr().err.count("is being written by process") == 1
    assert made_by(2, codes_stage) == [0, 0]
    assert made_by(2, codes_stage) == [3, 3]


def test_samples_by_ranks_are_those_of_one(project: Path) -> None:
    tiny.make_codes()
    state = tiny.stage((Phase(epochs=1),))
    tiny.run(state)
    stage = SamplesStage(state=state, sampling=Sampling(num_samples=10, batch_size=2, dtype="float32"))
    folder = paths.folder("samples", stage.key)
    assert made_by(1, stage) == [0]
    alone = contents(folder)
    folder.rename(folder.with_name("alone"))
    assert made_by(2, stage) == [0, 0]
    assert contents(folder) == alone
    assert len(alone) == 5 + 3  # shards; manifest, its sealed copy and the lock
