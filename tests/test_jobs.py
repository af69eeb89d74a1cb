"""`mirai jobs`, `mirai cancel`, `mirai status`: what they say of jobs that a made-up SLURM has."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mirai.cli import main
from mirai.experiments import paths, plan
from mirai.experiments.stages import StateStage
from mirai.launch import jobs, progress, record, task
from mirai.launch.record import Job
from mirai.states import publish, read_json, write_text
from tests.slurm_programs import Programs

Capture = pytest.CaptureFixture[str]
SITE = "slurm: {partition: gpu, training_minutes: 60, stage_minutes: 10, poll_seconds: 0.000001}\n"


@pytest.fixture
def slurm(project: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A cluster whose queue is empty."""
    (project / "config").mkdir()
    paths.SITE.write_text(SITE)
    programs = Programs(project / "bin", monkeypatch)
    for name in ("squeue", "sacct", "scancel"):
        programs.answer(name)
    return programs


@pytest.fixture
def branch(project: Path) -> list[StateStage]:
    """The states of the baseline: 15, 40 and 80 epochs."""
    metrics = plan.row_metrics(plan.plan_grid("demo", "demo").available()[0])[0]
    last = metrics.samples.state
    states = [last.at(15), last.at(40), last]
    for state in states:
        plan.freeze(plan.lookup(state.key))
    return states


def recorded(identity: str, *states: StateStage, user: str | None = None, cluster: str = "slurm") -> Job:
    keys = tuple(state.key for state in states)
    folder = paths.jobs(keys[0])
    log = folder / f"{identity}_0_log.out"
    when = "2025-01-01T00:00:00+0000"
    job = Job(identity, cluster, user or record.user(), socket.gethostname(), when, keys, log, folder)
    record.write(job)
    return job


def come_to(state: StateStage, step: int, *, age: float = 0.0) -> None:
    line = {"step": step, "last_step": 320, "epoch": step / 8, "eta_s": 4000.0, "seconds": 1.0, "ranks": 1}
    path = paths.folder("state", state.key) / "log.jsonl"
    write_text(path, json.dumps(line) + "\n" + '{"step": 999, "torn')
    os.utime(path, (time.time() - age,) * 2)


def finish(state: StateStage) -> None:
    publish(paths.manifest("state", state.key), {})


def printed(command: str, capsys: Capture, code: int = 0) -> str:
    capsys.readouterr()
    assert main(command.split()) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_jobs_lists_every_unfinished_state_with_its_job_progress_time_left_and_log(
    slurm: Programs, branch: list[StateStage], capsys: Capture
) -> None:
    job = recorded("17", *branch)
    finish(branch[0])
    come_to(branch[1], 100, age=400)
    slurm.answer("squeue", "17|RUNNING|None|1:02:03|node1")
    header, *lines = printed("jobs", capsys).splitlines()
    assert header.split() == ["state", "job", "queue", "step", "epoch", "eta", "log"]
    first, second = (line.split() for line in lines)
    assert first == [branch[1].key, "17", "RUNNING", "100/320", "12.5", "1:00:00", str(job.log)]
    assert second == [branch[2].key, "17", "after", branch[1].key, "-", "-", "-", str(job.log)]


def test_jobs_says_what_a_queued_job_waits_for_and_how_a_failed_one_ended(
    slurm: Programs, branch: list[StateStage], capsys: Capture
) -> None:
    recorded("17", branch[0])
    recorded("18", branch[1])
    slurm.answer("squeue", "17|PENDING|Resources|0:00|")
    slurm.answer("sacct", "18|OUT_OF_MEMORY|40|node1")
    lines = printed("jobs", capsys).splitlines()[1:]
    assert ["PENDING (Resources)" in lines[0], "OUT_OF_MEMORY" in lines[1]] == [True, True]
    assert len(slurm.calls("squeue")) == 1, "one question for all jobs"


def test_a_state_that_another_job_has_taken_over_is_listed_once(
    slurm: Programs, branch: list[StateStage], capsys: Capture
) -> None:
    recorded("17", *branch)
    recorded("19", branch[2])
    slurm.answer("squeue", "17|RUNNING|None|1:00|node1\n19|RUNNING|None|1:00|node1")
    assert [line.split()[:2] for line in printed("jobs", capsys).splitlines()[1:]] == [
        [branch[0].key, "17"],
        [branch[1].key, "17"],
        [branch[2].key, "19"],
    ]


def test_jobs_also_lists_a_training_that_runs_here_by_hand_and_needs_no_slurm_for_it(
    project: Path, branch: list[StateStage], capsys: Capture
) -> None:
    folder = paths.folder("state", branch[1].key)
    come_to(branch[1], 100)
    for owner, running in ((os.getpid(), True), (2**22 + 1, False)):
        (folder / "lock").write_text(f"process {owner} on {socket.gethostname()} since 2025-01-01 00:00:00\n")
        text = printed("jobs", capsys)
        assert (f"{branch[1].key}  process {owner}  here" in text) == running
    assert text == "no training is queued or running\n"
    (folder / "lock").write_text(f"process {os.getpid()} on another since 2025-01-01 00:00:00\n")
    assert progress.writer(folder) is None


# Cancel


def test_cancel_ends_the_jobs_of_states_each_once_and_says_what_they_trained(
    slurm: Programs, branch: list[StateStage], capsys: Capture
) -> None:
    recorded("17", *branch)
    finish(branch[0])
    slurm.answer("squeue", "17|RUNNING|None|1:00|node1")
    text = printed(f"cancel {branch[1].key} {branch[2].key}", capsys)
    assert slurm.calls("scancel") == ["17"]
    assert text == (
        f"cancelled job 17, which trained {branch[1].key}, {branch[2].key}; started again they go on from what is saved\n"
    )


def test_cancel_all_leaves_other_users_and_ended_jobs_alone(
    slurm: Programs, branch: list[StateStage], capsys: Capture
) -> None:
    for number, (state, user) in enumerate(zip(branch, (None, "somebody", None), strict=True)):
        recorded(str(17 + number), state, user=user)
    slurm.answer("squeue", "17|PENDING|Priority|0:00|\n18|RUNNING|None|1:00|node1\n19|COMPLETED|None|1:00|node1")
    printed("cancel --all", capsys)
    assert slurm.calls("scancel") == ["17"]
    slurm.answer("squeue", "17|CANCELLED|None|0:00|\n18|RUNNING|None|1:00|node1\n19|COMPLETED|None|1:00|node1")
    assert printed("cancel --all", capsys) == "no job of yours is queued or running\n"
    assert printed(f"cancel {branch[0].key}", capsys).startswith("job 17 has ended already (CANCELLED): ")
    assert slurm.calls("scancel") == ["17"]


def test_what_cannot_be_cancelled_is_told_and_nothing_is(
    slurm: Programs, branch: list[StateStage], capsys: Capture
) -> None:
    recorded("17", branch[0])
    recorded("18", branch[1], user="somebody")
    slurm.answer("squeue", "17|RUNNING|None|1:00|node1\n18|RUNNING|None|1:00|node1")
    mine, theirs, none = (state.key for state in branch)
    assert printed(f"cancel {mine} {theirs}", capsys, 2) == (
        f"mirai: job 18, which trains state {theirs}, is somebody's: only they can cancel it\n"
    )
    assert f"state {none} has no job" in printed(f"cancel {mine} {none}", capsys, 2)
    for wrong in ("cancel", f"cancel {mine} --all"):
        assert printed(wrong, capsys, 2).startswith("mirai: mirai cancel takes the keys of states, or --all")
    assert slurm.calls("scancel") == []
    slurm.answer("scancel", error="scancel: error: Kill job error on job id 17: Access/permission denied", code=1)
    assert "scancel 17 failed: scancel: error: Kill job error" in printed(f"cancel {mine}", capsys, 2)


def test_a_job_of_this_machine_is_asked_to_stop_and_its_waiter_learns_why(
    project: Path, branch: list[StateStage], capsys: Capture
) -> None:
    folder = str(paths.jobs(branch[0].key).absolute())
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", folder])
    job = recorded(str(process.pid), branch[0], cluster="local")
    assert f"cancelled job {process.pid}" in printed(f"cancel {branch[0].key}", capsys)
    assert process.wait(20) == -signal.SIGTERM
    assert read_json(task.error_file(job.folder, job.id))["text"] == f"cancelled by {record.user()}"


# Status


def lines_of(text: str) -> dict[str, str]:
    """What is said of each stage of a tree, by its key."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        key = next((word for word in words[:2] if len(word) == 16 and "." not in word), None)
        if key is not None:
            found[key] = line.split("] ", 1)[-1].split("  <- ")[0] if "[" in line else " ".join(words[2:])
    return found


def test_status_tells_done_running_queued_failed_and_missing_of_the_tree_behind_a_table(
    slurm: Programs, branch: list[StateStage], capsys: Capture
) -> None:
    finish(branch[0])
    come_to(branch[1], 100, age=400)
    recorded("17", *branch)
    mirai_e = plan.row_metrics(plan.plan_grid("demo", "demo").available()[2])[0].samples.state
    failed = recorded("18", mirai_e)
    codes = branch[0].codes_stage()
    slurm.answer("squeue", "17|RUNNING|None|1:00|node1")
    slurm.answer("squeue", f"21|PENDING|rule_extract_codes_wildcards_{codes.key}\n22|RUNNING|(null)", when="--me")
    slurm.answer("sacct", "18|FAILED|40|node1")
    text = printed("status results/demo/demo.csv", capsys)
    said = lines_of(text)
    assert said[branch[0].key] == "done"
    assert said[branch[1].key] == "running in job 17, step 100/320, epoch 12.5, eta 1:00:00"
    assert said[branch[2].key] == f"queued in job 17, after {branch[1].key}"
    assert said[mirai_e.key] == f"failed in job 18 (FAILED); {failed.log}"
    assert said[codes.key] == "queued in job 21"
    assert said[codes.tokenizer_stage().key] == "missing"
    assert text.endswith("results/demo/demo.csv missing\n")


def test_status_takes_a_grid_with_its_scale_and_needs_no_slurm(
    project: Path, branch: list[StateStage], capsys: Capture
) -> None:
    come_to(branch[1], 100)
    said = lines_of(printed("status demo --scale demo", capsys))
    assert said[branch[1].key] == "stopped, step 100/320, epoch 12.5"
    (paths.folder("state", branch[1].key) / "lock").write_text(
        f"process {os.getpid()} on {socket.gethostname()} since 2025-01-01 00:00:00\n"
    )
    said = lines_of(printed("status demo --scale demo", capsys))
    assert said[branch[1].key].startswith(f"running in process {os.getpid()}, step 100/320, epoch 12.5, eta 1:06:")


def test_status_knows_a_table_from_one_of_an_earlier_plan(project: Path, capsys: Capture) -> None:
    table = paths.product("demo", "demo")
    table.parent.mkdir(parents=True)
    table.touch()
    assert printed("status demo --scale demo", capsys).endswith("demo.csv made for an earlier plan\n")
    plan.record_key(table, plan.table_key("demo", "demo"))
    assert printed("status demo --scale demo", capsys).endswith("demo.csv done\n")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (
            "results/demo/x/demo.csv",
            "results/demo/x/demo.csv is no table or figure; a target is results/[SCALE/]GRID.csv",
        ),
        ("elsewhere/demo.csv", "elsewhere/demo.csv is no table"),
        ("results/demo/demo.csv --scale demo", "results/demo/demo.csv names its scale, demo; leave --scale out"),
        ("nothing", "there is no grid 'nothing'"),
    ],
)
def test_what_is_no_table_is_refused(target: str, sentence: str, project: Path, capsys: Capture) -> None:
    assert sentence in printed(f"status {target}", capsys, 2)


def test_a_tables_path_names_its_grid_and_scale() -> None:
    for scale in ("imagenet256", "demo", "folder-cats"):
        for suffix in (".csv", ".md", ".png"):
            assert paths.grid_of(paths.product(scale, "table2", suffix)) == ("table2", scale)
    assert paths.grid_of(paths.everything("demo")) is None


def test_asking_what_runs_costs_no_torch(project: Path) -> None:
    code = (
        "import sys; from mirai.cli import main\n"
        "for line in ('jobs', 'status demo --scale demo', 'costs --scale demo', 'cancel --all'): main(line.split())\n"
        "import mirai.doctor\n"
        "print('heavy:', *{'torch', 'numpy', 'submitit', 'snakemake'} & {name.split('.')[0] for name in sys.modules})"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(jobs.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"
