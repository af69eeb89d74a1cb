"""GPU slots without SLURM: real processes contend for made-up GPUs, which a fake nvidia-smi lists."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirai.cli import main
from mirai.errors import UserError
from mirai.experiments import plan
from mirai.launch import slots
from mirai.launch.ranks import run_ranks
from mirai.launch.slots import VISIBLE, held, visible
from tests.conftest import ROOT

pytestmark = pytest.mark.full

UUIDS = [f"GPU-{number}0000000-aaaa-bbbb-cccc-dddddddddddd" for number in range(4)]
PATIENCE = 20.0  # seconds for a process to start or end

JOB = """
    import os, sys, time
    from pathlib import Path
    from mirai.launch import slots
    slots.LOOK_EVERY = 0.02
    name, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    with slots.held(count):
        mine = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        for gpu in mine:  # fails where another job is on the same GPU
            os.mkdir(f"busy-{gpu}")
        Path(f"started-{name}").write_text(",".join(mine))
        time.sleep(seconds)
        for gpu in mine:
            os.rmdir(f"busy-{gpu}")
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Give this machine so many GPUs, and locks of its own -> its folder, the working directory."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(slots.tempfile, "tempdir", None)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(slots, "LOOK_EVERY", 0.02)
    for name in (VISIBLE, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)

    def with_gpus(count: int) -> Path:
        lines = [f"GPU {number}: NVIDIA H200 (UUID: {uuid})" for number, uuid in enumerate(UUIDS[:count])]
        lines.insert(1, "  MIG 1g.18gb     Device  0: (UUID: MIG-12345678-aaaa-bbbb-cccc-dddddddddddd)")
        script = tmp_path / "bin/nvidia-smi"
        script.write_text("#!/bin/sh\ncat <<'E'\n" + "\n".join(lines[: count + 1]) + "\nE\n")
        script.chmod(0o755)
        return tmp_path

    return with_gpus


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a job that says where it is and stays there; jobs that are left end with the test."""
    jobs: list[subprocess.Popen[str]] = []

    def started(name: str, count: int, seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(JOB), name, str(count), str(seconds)]
        jobs.append(subprocess.Popen(command, text=True, stderr=subprocess.PIPE))
        return jobs[-1]

    yield started
    for job in jobs:
        job.kill()
        job.wait()
        assert job.stderr is not None
        job.stderr.close()


def place_of(name: str) -> list[str]:
    """GPUs of a job, once it has started."""
    deadline = time.monotonic() + PATIENCE
    path = Path(f"started-{name}")
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{name} never started"
        time.sleep(0.01)
    return path.read_text().split(",")


def test_jobs_side_by_side_never_share_a_gpu_and_all_get_their_turn(
    machine: Callable[[int], Path], start: Callable[..., subprocess.Popen[str]]
) -> None:
    machine(4)
    jobs = [start(f"job{number}", count, 0.2) for number, count in enumerate((1, 2, 3, 4, 1, 2))]
    for job in jobs:
        assert job.wait(PATIENCE) == 0, "mkdir fails where two jobs are on one GPU"
    for number, count in enumerate((1, 2, 3, 4, 1, 2)):
        places = place_of(f"job{number}")
        assert len(set(places)) == count
        assert set(places) <= set(UUIDS)


def test_a_killed_job_gives_its_gpus_back(
    machine: Callable[[int], Path], start: Callable[..., subprocess.Popen[str]]
) -> None:
    machine(2)
    first = start("first", 2, 600)
    places = place_of("first")
    second = start("second", 1, 0)
    assert second.stderr is not None
    assert second.stderr.readline() == "waiting for 1 of 2 GPUs: other jobs hold them\n"
    first.send_signal(signal.SIGKILL)
    for gpu in places:
        Path(f"busy-{gpu}").rmdir()
    assert place_of("second") == places[:1]
    assert second.wait(PATIENCE) == 0


def test_ranks_that_outlive_the_process_that_took_the_gpu_keep_it(machine: Callable[[int], Path]) -> None:
    machine(1)
    with held(1) as inherited:
        rank = subprocess.Popen(["sleep", "600"], pass_fds=inherited)
    code = "from mirai.launch import slots\nwith slots.held(1): print('mine')"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert other.stderr is not None
    assert other.stderr.readline().startswith("waiting for 1 of 1")
    rank.kill()
    rank.wait()
    assert other.communicate(timeout=PATIENCE)[0] == "mine\n"


def test_every_rank_of_a_job_holds_what_its_parent_took(
    machine: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = machine(1)
    (folder / "mirai.py").write_text("import os, sys; os.fstat(int(sys.argv[1]))\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with held(1) as inherited:
        assert run_ranks([str(*inherited)], 2, inherited) == 0


def test_an_outer_list_is_the_whole_machine_for_a_job_and_its_indices_mean_the_same_gpus(
    machine: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(4)
    monkeypatch.setenv(VISIBLE, f"3, {UUIDS[1][:12]},-1,0")
    assert visible() == {"3": UUIDS[3], UUIDS[1][:12]: UUIDS[1]}
    with held(1):
        assert os.environ[VISIBLE] == "3"
        del os.environ[VISIBLE]  # another command does not inherit it; `held` puts back what was before
        with held(3):
            assert os.environ[VISIBLE].split(",") == UUIDS[:3], "number 3 is held under its other name"


def test_the_environment_is_as_before_afterwards(
    machine: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(2)
    with held(1):
        assert os.environ[VISIBLE] == UUIDS[0]
    assert VISIBLE not in os.environ
    monkeypatch.setenv(VISIBLE, "1,0")
    with held(1):
        assert os.environ[VISIBLE] == "1"
    assert os.environ[VISIBLE] == "1,0"


def test_jobs_inside_an_allocation_by_hand_do_not_share_its_gpus(
    machine: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(2)
    monkeypatch.setenv("SLURM_JOB_ID", "17")  # salloc, and Snakemake inside
    with held(1):
        assert os.environ[VISIBLE] == UUIDS[0]


@pytest.mark.parametrize("why", ["a scale on the CPU", "a training in SLURM", "no GPU", "an empty list"])
def test_nothing_is_taken_and_nothing_hidden_for(
    why: str, machine: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = machine(2)
    if why == "a training in SLURM":
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    if why == "no GPU":
        (folder / "bin/nvidia-smi").write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    if why == "an empty list":
        monkeypatch.setenv(VISIBLE, "")
    before = dict(os.environ)
    with held(0 if why == "a scale on the CPU" else 1) as inherited:
        assert inherited == ()
        assert dict(os.environ) == before
    assert not list((folder / "tmp").iterdir())


def test_more_ranks_than_gpus_are_refused(machine: Callable[[int], Path]) -> None:
    machine(2)
    with pytest.raises(UserError) as caught, held(3):
        pass
    assert str(caught.value) == "3 ranks need 3 GPUs and 2 are visible here; `ranks` is in config/site.yaml"


@pytest.mark.parametrize(
    ("kind", "scale", "ranks", "count"),
    [
        ("state", "demo", 4, 0),
        ("state", "imagenet256", 4, 4),
        ("figure", "imagenet256", 1, 1),
        ("features", "folder-x", 1, 0),
    ],
)
def test_a_job_computes_on_as_many_gpus_as_it_has_ranks_where_the_scale_says_cuda(
    project: Path, kind: str, scale: str, ranks: int, count: int
) -> None:
    assert slots.gpus(kind, scale, ranks) == count


def test_the_ranks_of_a_job_take_no_gpus_of_their_own(
    machine: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(1)
    with held(1):
        monkeypatch.setenv("RANK", "0")
        with held(1) as inherited:
            assert (os.environ[VISIBLE], inherited) == (UUIDS[0], ())


def test_a_command_holds_a_gpu_of_its_own_while_it_computes(
    machine: Callable[[int], Path], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(2)
    scale = project / "experiments/scales/digits.yaml"
    scale.write_text(scale.read_text().replace("device: cpu", "device: cuda"))
    seen: list[str | None] = []
    monkeypatch.setattr("mirai.make.make", lambda planned, **_: bool(seen.append(os.environ.get(VISIBLE))) or True)
    metrics = plan.row_metrics(plan.plan_grid("demo", "digits").available()[0])[0]
    with held(1):
        del os.environ[VISIBLE]
        assert main(["evaluate", metrics.key]) == 0
        assert main(["features", metrics.reference_stage().features_stage().key]) == 0
        assert main(["train", metrics.samples.state.key, "--launcher", "debug"]) == 0
    assert seen == [UUIDS[1], None, UUIDS[1]]


@pytest.mark.parametrize(
    ("command", "does"),
    [
        ("evaluate samples --reference reference.npz", "mirai.measure.measure"),
        ("sample --weights imported --classes 1 --grid out.png", "mirai.imports.open_imported"),
        ("sample --weights imported --num-samples 4 --out samples", "mirai.imports.sample_imported"),
        ("export . --npz out.npz", "mirai.export.export_samples"),
        ("reconstruct . --tokenizer imported --npz out.npz", "mirai.export.reconstruct"),
    ],
)
def test_a_command_beside_the_stages_holds_a_gpu_too(
    command: str, does: str, machine: Callable[[int], Path], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(2)
    seen: list[str | None] = []

    def compute(*_: object, **__: object) -> None:
        seen.append(os.environ.get(VISIBLE))
        raise UserError("enough")

    monkeypatch.setattr(does, compute)
    with held(1):
        del os.environ[VISIBLE]
        assert main(command.split()) == 2
    assert seen == [UUIDS[1]]


def test_a_command_shares_a_gpu_where_its_scale_says_so(
    machine: Callable[[int], Path], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(1)
    scale = project / "experiments/scales/digits.yaml"
    scale.write_text(scale.read_text().replace("device: cpu", "device: cuda") + "\njobs_per_gpu: 2\n")
    seen: list[str | None] = []
    monkeypatch.setattr("mirai.make.make", lambda planned, **_: bool(seen.append(os.environ.get(VISIBLE))) or True)
    metrics = plan.row_metrics(plan.plan_grid("demo", "digits").available()[0])[0]
    with held(1, sharing=2):
        del os.environ[VISIBLE]
        assert main(["evaluate", metrics.key]) == 0
        assert main(["train", metrics.samples.state.key, "--launcher", "debug"]) == 0
    assert seen == [UUIDS[0], UUIDS[0]]


def test_as_many_jobs_share_a_gpu_as_their_scale_says_and_none_joins_one_that_has_it_for_itself(
    machine: Callable[[int], Path],
) -> None:
    machine(1)
    first, second = (slots._take(UUIDS[0], 2) for _ in range(2))
    assert first
    assert second
    assert not slots._take(UUIDS[0], 2), "full"
    for descriptor in first:
        os.close(descriptor)
    assert not slots._take(UUIDS[0], 1), "one still shares it"
    with held(1, sharing=2):
        assert not slots._take(UUIDS[0], 2)
    for descriptor in second:
        os.close(descriptor)
    with held(1):
        assert not slots._take(UUIDS[0], 2)
    with held(1, sharing=2), held(1, sharing=2):
        pass
