"""Inside a job: submitit's executors for this machine run the task for real, in processes of its own or in this one."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from torch import Tensor

from mirai.errors import Interrupted, UserError
from mirai.experiments import paths, plan
from mirai.experiments.plan import Planned
from mirai.launch import queue, record, slurm, task
from mirai.launch.slurm import train
from mirai.launch.submit import Order
from mirai.states import is_published, publish
from tests.slurm_programs import Programs
from tests.training import tiny

pytestmark = pytest.mark.full

FAULTS = """
import os, signal, sys, time
if "submitit.core._submit" in sys.orig_argv:
    import mirai.data.batches as batches
    original, calls = batches.batch_indices, []
    def faulty(step, **arguments):
        calls.append(step)
        {fault}
        return original(step, **arguments)
    batches.batch_indices = faulty
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The training in one go, by hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        tiny.make_codes()
        return tiny.run(tiny.stage())


@pytest.fixture
def keys(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Three states of one training, of 8 steps each, in a project with their codes."""
    tiny.make_codes()
    last = tiny.stage()
    stages = [last.at(2), last.at(4), last]
    for stage in stages:
        plan.freeze(Planned(stage, "digits"))
    plan._planned.clear()
    monkeypatch.setattr(slurm, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(slurm, "SETTLE", 1.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = Path(task.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{project / 'fault'}{os.pathsep}{root}")
    yield [stage.key for stage in stages]
    for job in record.all_jobs():
        if job.cluster == "local" and queue.states([job])[job.id].active:  # of a test that failed
            controller = psutil.Process(int(job.id))
            for process in (controller, *controller.children(recursive=True)):
                process.kill()


def plant(fault: str) -> None:
    Path("fault").mkdir()
    Path("fault/sitecustomize.py").write_text(FAULTS.format(fault=fault))


def trained(key: str) -> dict[str, Tensor]:
    return tiny.tensors(plan.lookup(key).stage)  # type: ignore[arg-type]


def printed(key: str) -> str:
    job = record.read(key)
    assert job is not None
    return job.log.read_text()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def test_debug_trains_the_whole_chain_in_this_process(keys: list[str], whole: dict[str, Tensor]) -> None:
    torch.set_num_threads(1)
    before = signal.getsignal(signal.SIGUSR2)
    assert train(Order(keys[0], tuple(keys[1:]), "debug")) == 0
    assert tiny.same_bits(trained(keys[2]), whole)
    assert signal.getsignal(signal.SIGUSR2) is before
    assert record.read(keys[0]) is None


def test_debug_raises_what_the_training_raises(keys: list[str]) -> None:
    codes = tiny.stage().codes_stage()
    paths.manifest("codes", codes.key).unlink()
    with pytest.raises(UserError, match=r"codes\.json is missing"):
        train(Order(keys[0], (), "debug"))


def test_a_local_job_trains_on_after_its_first_state_is_waited_for_no_more(
    keys: list[str], whole: dict[str, Tensor]
) -> None:
    assert train(Order(keys[0], tuple(keys[1:]), "local")) == 0
    first = record.read(keys[0])
    assert train(Order(keys[2], (), "local")) == 0
    assert record.read(keys[2]) == first, "one job for all"
    assert tiny.same_bits(trained(keys[2]), whole)


def test_usr2_saves_and_starts_the_job_again_where_it_was(keys: list[str], whole: dict[str, Tensor]) -> None:
    plant("step == 2 and calls[0] == 0 and os.kill(os.getpid(), signal.SIGUSR2)")
    assert train(Order(keys[0], tuple(keys[1:]), "local")) == 0
    assert train(Order(keys[2], (), "local")) == 0
    job = record.read(keys[2])
    assert job is not None
    assert job.earlier == ()
    assert "stopped at step 4 of 8, saved" in printed(keys[2])
    assert tiny.same_bits(trained(keys[2]), whole)


def test_four_ranks_that_were_interrupted_end_at_the_bits_of_four_that_were_not(keys: list[str]) -> None:
    """Sums of more than two have an order, which must not depend on where a process began."""
    paths.SITE.parent.mkdir()
    paths.SITE.write_text("ranks: 4\n")
    assert train(Order(keys[2], (), "local")) == 0
    undisturbed = trained(keys[2])
    paths.folder("state", keys[2]).rename("undisturbed")
    plan.freeze(Planned(tiny.stage(), "digits"))
    plant("step == 10 and calls[0] == 0 and os.kill(os.getpid(), signal.SIGUSR2)")
    assert train(Order(keys[2], (), "local")) == 0
    assert "stopped at step 12 of 24, saved" in printed(keys[2])
    assert tiny.same_bits(trained(keys[2]), undisturbed)


def test_a_killed_job_is_followed_by_one_that_goes_on(keys: list[str], whole: dict[str, Tensor]) -> None:
    plant("step == 6 and calls[0] == 0 and os.kill(os.getpid(), signal.SIGKILL)")
    assert train(Order(keys[0], tuple(keys[1:]), "local", save_every_steps=2)) == 0
    job = record.read(keys[0])
    assert job is not None
    assert len(job.earlier) == 1
    assert train(Order(keys[2], (), "local")) == 0
    assert tiny.same_bits(trained(keys[2]), whole)


def test_an_error_in_a_local_job_is_shown(keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plant("1 / 0")
    assert train(Order(keys[0], (), "local")) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_local_job_survives_ctrl_c_and_is_found_again(keys: list[str], whole: dict[str, Tensor]) -> None:
    plant("open('began', 'w'); [time.sleep(0.05) for _ in iter(lambda: os.path.exists('go'), True)]")
    command = [sys.executable, "-m", "mirai", "train", keys[0], "--launcher", "local"]
    with Path("said").open("w") as said:
        first = subprocess.Popen(command, stderr=said, start_new_session=True)
    wait_for(Path("began"))
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does
    assert first.wait(60) == 130
    assert f"`mirai cancel {keys[0]}` stops it" in Path("said").read_text()
    job = record.read(keys[0])
    Path("go").touch()
    assert train(Order(keys[0], (), "local")) == 0
    assert record.read(keys[0]) == job


GPUS = ["GPU-00000000-aaaa", "GPU-11111111-bbbb", "GPU-22222222-cccc"]
GPU_TRAINING = """
import os, pathlib, sys, time, types
if "submitit.core._submit" in sys.orig_argv:
    def make(planned, **_):
        from mirai.experiments import paths
        from mirai.states import publish
        key, mine = planned.stage.key, os.environ["CUDA_VISIBLE_DEVICES"]
        pathlib.Path(f"saw-{key}-{os.environ['LOCAL_RANK']}").write_text(mine)
        if os.environ["RANK"] == "0":
            for gpu in mine.split(","):  # fails where another job is on the same GPU
                os.mkdir(f"busy-{gpu}")
            time.sleep(1)
            for gpu in mine.split(","):
                os.rmdir(f"busy-{gpu}")
            publish(paths.manifest("state", key), {})
            publish(paths.resume(key), {})
    sys.modules["mirai.make"] = types.SimpleNamespace(make=make)
"""


def test_local_jobs_side_by_side_never_share_a_gpu_and_see_those_that_their_user_does(
    keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = paths.SCALES / "digits.yaml"
    scale.write_text(scale.read_text().replace("device: cpu", "device: cuda"))
    paths.SITE.parent.mkdir()
    paths.SITE.write_text(yaml.safe_dump({"ranks": 2}))
    Path("fault").mkdir()
    Path("fault/sitecustomize.py").write_text(GPU_TRAINING)
    Programs(tmp_path / "bin", monkeypatch).answer(
        "nvidia-smi", "\n".join(f"GPU {number}: H200 (UUID: {uuid})" for number, uuid in enumerate(GPUS))
    )
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(GPUS[1:]))
    command = [sys.executable, "-m", "mirai", "train", "--launcher", "local"]
    both = [subprocess.Popen([*command, key], stderr=subprocess.PIPE, text=True) for key in keys[:2]]
    for one in both:
        said = one.communicate(timeout=120)[1]
        assert one.returncode == 0, said
    assert {path.name: path.read_text() for path in Path().glob("saw-*")} == {
        f"saw-{key}-{rank}": ",".join(GPUS[1:]) for key in keys[:2] for rank in (0, 1)
    }
    assert sorted("waiting for 2 of 2 GPUs" in printed(key) for key in keys[:2]) == [False, True]


def test_a_local_job_that_needs_more_gpus_than_there_are_says_so(
    keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = paths.SCALES / "digits.yaml"
    scale.write_text(scale.read_text().replace("device: cpu", "device: cuda"))
    paths.SITE.parent.mkdir()
    paths.SITE.write_text(yaml.safe_dump({"ranks": 2}))
    Programs(tmp_path / "bin", monkeypatch).answer("nvidia-smi", f"GPU 0: H200 (UUID: {GPUS[0]})")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match="2 ranks need 2 GPUs and 1 are visible here"):
        train(Order(keys[0], (), "local"))


@pytest.fixture
def place(keys: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the second rank of SLURM job 12 on two nodes, whose record names it; what runs is no training."""
    for name, value in {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_FOLDER": str(paths.jobs(keys[0]).absolute()),
        "SLURM_JOB_ID": "12",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "gpu[07-08]",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(task, "RECORD_LATE", 0.2)
    paths.jobs(keys[0]).mkdir(parents=True)
    record.write(record.new("12", "slurm", keys, Path("log"), paths.jobs(keys[0])))
    return {}


@pytest.fixture
def made(place: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """Which states were made, and how the ranks were to meet for each."""
    import mirai.make

    calls: list[tuple[str, dict[str, str]]] = []
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

    def make(planned: Planned, **_: object) -> bool:
        calls.append((planned.stage.key, {name: os.environ[name] for name in names}))
        for name in ("weights.json", "resume.json"):
            publish(paths.folder("state", planned.stage.key) / name, {})
        return True

    monkeypatch.setattr(mirai.make, "make", make)
    yield calls
    for name in names:
        os.environ.pop(name, None)
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def run(keys: list[str]) -> None:
    task.run(tuple(keys), "slurm", restore=False, save_every_steps=None)


def test_ranks_of_a_job_meet_on_its_first_node_each_time_at_another_port(keys: list[str], made) -> None:
    run(keys)
    assert [key for key, _ in made] == keys
    for _, environment in made:
        assert environment["MASTER_ADDR"] == "gpu07"
        assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("3", "4", "1")
        assert 15000 <= int(environment["MASTER_PORT"]) < 30000
    assert len({environment["MASTER_PORT"] for _, environment in made}) == 3


def test_a_job_leaves_a_state_to_the_job_that_its_record_names(keys: list[str], made) -> None:
    record.write(record.new("13", "slurm", keys[1:], Path("log"), paths.jobs(keys[1])))
    run(keys)
    assert [key for key, _ in made] == keys[:1]


def test_a_job_that_nobody_recorded_trains_nothing(keys: list[str], made) -> None:
    for key in keys:
        paths.job(key).unlink()
    run(keys)
    assert made == []


def test_a_job_does_not_begin_what_still_lacks_something(keys: list[str], made, monkeypatch) -> None:
    monkeypatch.setattr(plan, "ready", lambda key: key != keys[2])
    run(keys)
    assert [key for key, _ in made] == keys[:2]


def test_a_job_whose_states_are_all_there_looks_at_nothing_else(keys: list[str], made, monkeypatch) -> None:
    for key in keys:
        publish(paths.manifest("state", key), {})
    monkeypatch.setattr(task, "Place", None)
    run(keys)
    assert made == []


def test_the_rank_that_failed_is_heard_and_not_those_that_lost_it(keys: list[str], place, monkeypatch) -> None:
    monkeypatch.setattr(task, "CAUSE_LATE", 0.3)
    left: list[object] = []
    monkeypatch.setattr(task.Place, "leave", lambda self, signals: left.append(signals))
    here = task.Place("slurm", keys)
    file = task.error_file(here.folder, "12")

    lost = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:41555")
    assert not file.exists()
    try:
        raise ValueError("the cause")
    except ValueError as error:
        here.tell(error)
    assert "ValueError: the cause" in file.read_text()
    here.tell(lost)
    assert left == [], "the cause is known: the job fails"
    assert "closed by peer" not in file.read_text()


def test_a_rank_whose_peer_died_without_a_word_has_the_job_queued_again(keys: list[str], place, monkeypatch) -> None:
    class Left(Exception):
        pass

    def leave(self: task.Place, signals: tuple[int, ...]) -> None:
        assert signals == (signal.SIGUSR2,)
        raise Left

    monkeypatch.setattr(task, "CAUSE_LATE", 0.3)
    monkeypatch.setattr(task.Place, "leave", leave)
    here = task.Place("slurm", keys)
    with pytest.raises(Left):
        here.tell(RuntimeError("Connection closed by peer"))
    assert not task.error_file(here.folder, "12").exists()


def test_an_error_is_of_the_run_that_it_was_told_in(keys: list[str], place, monkeypatch) -> None:
    """A rank that fails before the first one has arrived is heard; what was told before a requeue is not."""

    def said() -> object:
        return (task.told(paths.jobs(keys[0]), "12") or {}).get("text")

    task.Place("slurm", keys).say(mistake=True, text="of the first run")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    here = task.Place("slurm", keys)
    here.say(mistake=True, text="of the second run")
    here.say(mistake=False, text="later")
    monkeypatch.setenv("SLURM_PROCID", "0")
    task.Place("slurm", keys)  # the first rank, late
    assert said() == "of the second run"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    task.Place("slurm", keys)
    assert said() is None
    task.error_file(here.folder, "12").write_text("")  # a full disk
    assert said() is None


class Ended(BaseException):
    """In place of the process's end."""


@pytest.fixture
def programs(place, monkeypatch: pytest.MonkeyPatch) -> Programs:
    def exit_(code: int) -> None:
        raise Ended(code)

    programs = Programs(Path("bin").absolute(), monkeypatch)
    programs.answer("scontrol")
    monkeypatch.setattr(task.os, "_exit", exit_)
    monkeypatch.setattr(task.time, "sleep", lambda seconds: None)
    return programs


@pytest.mark.parametrize(("number", "calls"), [(signal.SIGUSR2, ["requeue 12"]), (signal.SIGTERM, [])])
def test_a_job_is_queued_again_when_its_time_is_up_and_not_when_it_is_ended(
    number: int, calls: list[str], keys: list[str], made, programs: Programs, monkeypatch
) -> None:
    import mirai.make

    def stopped(*_: object, **__: object) -> bool:
        raise Interrupted("stopped at step 5 of 8, saved", (number,))

    monkeypatch.setattr(mirai.make, "make", stopped)
    with pytest.raises(Ended):
        run(keys)
    assert programs.calls("scontrol") == calls


def test_a_job_is_queued_again_once_slurm_answers(keys: list[str], programs: Programs, capsys) -> None:
    away = "echo Unable to contact slurm controller >&2; exit 1"
    script = f"#!/bin/sh\necho x >> bin/tries\n[ $(wc -l < bin/tries) -gt 2 ] || {{ {away}; }}\n"
    (Path("bin") / "scontrol").write_text(script)
    with pytest.raises(Ended):
        task.Place("slurm", keys).queue_again()
    assert len(Path("bin/tries").read_text().splitlines()) == 3
    printed = capsys.readouterr().out
    assert printed.count("not queued again: Unable to contact slurm controller") == 2
    assert "queued again: the same job" in printed


def test_nothing_is_called_queued_again_where_slurm_stayed_away(
    keys: list[str], programs: Programs, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(task, "STAY", 0.0)
    programs.answer("scontrol", error="Unable to contact slurm controller", code=1)
    with pytest.raises(Ended):
        task.Place("slurm", keys).queue_again()
    assert "queued again: the same job" not in capsys.readouterr().out


def test_a_refused_requeue_is_not_asked_for_again(keys: list[str], programs: Programs, capsys) -> None:
    programs.answer("scontrol", error="Requested operation is presently disabled", code=1)
    with pytest.raises(Ended):
        task.Place("slurm", keys).queue_again()
    assert programs.calls("scontrol") == ["requeue 12"]
    assert "not queued again: Requested operation" in capsys.readouterr().out


def test_all_ranks_of_a_run_count_it_once(keys: list[str], programs: Programs) -> None:
    ranks = [task.Place("slurm", keys) for _ in range(task.FRUITLESS + 2)]
    assert not any(rank.hopeless() for rank in ranks)


def test_a_job_that_never_saves_anything_is_not_queued_again_for_ever(
    keys: list[str], programs: Programs, monkeypatch
) -> None:
    runs = itertools.count()

    def queued_again(*, saves: bool = False) -> bool:
        before = len(programs.calls("scontrol"))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(next(runs)))
        here = task.Place("slurm", keys)
        if saves:
            (paths.folder("state", keys[0]) / "progress-000000005.json").write_text("{}")
        with pytest.raises(Ended):
            here.queue_again()
        return len(programs.calls("scontrol")) > before

    assert all(queued_again() for _ in range(task.FRUITLESS - 1))
    assert queued_again(saves=True), "it came on"
    assert all(queued_again() for _ in range(task.FRUITLESS - 1))
    assert not queued_again()
    said = task.told(paths.jobs(keys[0]), "12")
    assert said is not None
    assert f"{task.FRUITLESS} runs of this job ended before anything was saved" in said["text"]


def test_a_signal_between_two_states_is_obeyed_at_once(keys: list[str], made, programs: Programs, monkeypatch) -> None:
    import mirai.make

    def make(*_: object, **__: object) -> bool:
        os.kill(os.getpid(), signal.SIGUSR2)
        raise AssertionError("went on")

    monkeypatch.setattr(mirai.make, "make", make)
    with pytest.raises(Ended):
        run(keys)
    assert programs.calls("scontrol") == ["requeue 12"]


def test_a_signal_that_came_too_late_for_one_state_stops_the_next(
    keys: list[str], whole: dict[str, Tensor], monkeypatch
) -> None:
    """USR2 in the last step: the state is published, and whoever listened before is told."""
    told: list[int] = []
    previous = signal.signal(signal.SIGUSR2, lambda number, _: told.append(number))
    from mirai.training import loop

    original = loop.save_final

    def save(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "save_final", save)
    try:
        tiny.run(tiny.stage())
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert told == [signal.SIGUSR2]
    assert is_published(paths.manifest("state", keys[2]))
    assert tiny.same_bits(trained(keys[2]), whole)
