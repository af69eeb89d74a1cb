"""What the queue says of jobs, asked once for all who wait."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mirai.experiments import paths
from mirai.launch import queue, record
from mirai.launch.queue import JobState, states
from mirai.launch.record import Job
from tests.slurm_programs import Programs

SQUEUE_ROW = "{}|{}|None|1:05|node1"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.chdir(tmp_path)
    poll_every(1000)
    programs = Programs(tmp_path / "bin", monkeypatch)
    for name in ("squeue", "sacct"):
        programs.answer(name)
    return programs


def poll_every(seconds: float) -> None:
    paths.SITE.parent.mkdir(exist_ok=True)
    paths.SITE.write_text(
        f"slurm: {{partition: gpu, training_minutes: 60, stage_minutes: 10, poll_seconds: {seconds:.9f}}}\n"
    )


def job(identity: str, cluster: str = "slurm", folder: Path = Path("jobs")) -> Job:
    made = record.new(identity, cluster, (identity.zfill(16),), Path("log"), folder)
    record.write(made)
    return made


def test_squeue_is_asked_once_for_all_jobs_that_anybody_waits_for(slurm: Programs) -> None:
    jobs = [job(str(number)) for number in range(1, 31)]
    slurm.answer("squeue", "\n".join(SQUEUE_ROW.format(one.id, "RUNNING") for one in jobs))
    for one in jobs:  # thirty waiters
        assert states([one])[one.id] == JobState("RUNNING", "", 65, "node1")
    assert len(slurm.calls("squeue")) == 1
    assert slurm.calls("sacct") == []


def test_it_is_asked_again_when_the_answer_is_old(slurm: Programs) -> None:
    first = job("1")
    slurm.answer("squeue", SQUEUE_ROW.format(1, "PENDING"))
    states([first])
    slurm.answer("squeue", SQUEUE_ROW.format(1, "RUNNING"))
    assert states([first])["1"].name == "PENDING"
    poll_every(1e-9)
    assert states([first])["1"].name == "RUNNING"


def test_sacct_is_asked_only_for_what_squeue_has_forgotten(slurm: Programs) -> None:
    jobs = [job("1"), job("2"), job("3")]
    slurm.answer("squeue", SQUEUE_ROW.format(1, "RUNNING"))
    slurm.answer("sacct", "2|CANCELLED by 1000|90|node2")
    found = states(jobs)
    assert found["2"] == JobState("CANCELLED", "", 90, "node2")
    assert found["3"].name == "UNKNOWN"
    (asked,) = slurm.calls("sacct")
    assert "--jobs=2,3" in asked


def test_jobs_that_ended_are_asked_for_no_more_unless_somebody_waits_for_them(slurm: Programs) -> None:
    ended, running = job("1"), job("2")
    slurm.answer("squeue", SQUEUE_ROW.format(2, "RUNNING"))
    slurm.answer("sacct", "1|COMPLETED|90|node2")
    states([ended, running])
    poll_every(1e-9)
    states([running])
    assert "--jobs=2 " in slurm.calls("squeue")[-1]
    states([ended])
    assert "--jobs=1,2 " in slurm.calls("squeue")[-1]


def test_one_forgotten_job_alone_is_no_error_of_squeue(slurm: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.answer("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    slurm.answer("sacct", "1|FAILED|5|node1")
    assert states([job("1")])["1"].name == "FAILED"
    assert capsys.readouterr().err == ""


def test_nothing_is_concluded_while_the_controller_is_away(slurm: Programs) -> None:
    one = job("1")
    poll_every(1e-9)
    slurm.answer("squeue", error="Unable to contact slurm controller (connect failure)", code=1)
    assert states([one])["1"].name == "UNREACHABLE"
    assert states([one])["1"].active
    slurm.answer("squeue", SQUEUE_ROW.format(1, "RUNNING"))
    assert states([one])["1"].name == "RUNNING"
    slurm.answer("squeue", error="Unable to contact slurm controller (connect failure)", code=1)
    assert states([one])["1"].name == "RUNNING"
    assert slurm.calls("sacct") == []


def test_a_site_that_is_being_edited_ends_no_waiting(slurm: Programs) -> None:
    slurm.answer("squeue", SQUEUE_ROW.format(1, "RUNNING"))
    paths.SITE.write_text("slurm: {partition: gpu")
    assert states([job("1")])["1"].name == "RUNNING"


@pytest.mark.parametrize(
    "cache", ["", "[]", '{"states": {}}', '{"asked": 1, "states": {"1": {"name": "RUNNING", "new": 1}}}']
)
def test_a_cache_that_another_version_has_written_is_asked_anew(cache: str, slurm: Programs) -> None:
    one = job("1")
    slurm.answer("squeue", SQUEUE_ROW.format(1, "RUNNING"))
    paths.QUEUE.mkdir(parents=True)
    (paths.QUEUE / f"{record.user()}.json").write_text(cache)
    assert states([one])["1"].name == "RUNNING"


def test_a_job_that_was_just_submitted_needs_no_question(slurm: Programs) -> None:
    one = job("1")
    states([job("0")])
    queue.submitted(one)
    assert states([one])["1"].name == "PENDING"
    assert len(slurm.calls("squeue")) == 1


@pytest.mark.parametrize(
    ("name", "active", "failed"),
    [
        ("PENDING", True, False),
        ("RUNNING", True, False),
        ("COMPLETING", True, False),
        ("REQUEUED", True, False),
        ("COMPLETED", False, False),
        ("TIMEOUT", False, False),
        ("PREEMPTED", False, False),
        ("NODE_FAIL", False, False),
        ("FAILED", False, True),
        ("CANCELLED", False, True),
        ("OUT_OF_MEMORY", False, True),
        ("UNKNOWN", False, False),
    ],
)
def test_states_that_wait_and_states_that_failed(name: str, active: bool, failed: bool) -> None:
    assert (JobState(name).active, JobState(name).failed) == (active, failed)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:05", 5), ("5:03", 303), ("1:02:03", 3723), ("1-02:03:04", 93784), ("77", 77), ("INVALID", None), ("", None)],
)
def test_times_of_slurm_in_seconds(text: str, seconds: int | None) -> None:
    assert queue.seconds(text) == seconds


def test_a_local_job_runs_as_long_as_its_process_and_another_one_of_its_number_is_not_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "jobs"
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(folder)])
    try:
        one = job(str(process.pid), "local", folder)
        deadline = time.monotonic() + 10  # until the process has taken its arguments over
        while not states([one])[one.id].active and time.monotonic() < deadline:
            time.sleep(0.01)
        assert states([one])[one.id].name == "RUNNING"
        other = job(str(process.pid), "local", tmp_path / "elsewhere")
        assert states([other])[one.id].name == "COMPLETED"
    finally:
        process.kill()
        process.wait()
    assert states([one])[one.id].name == "COMPLETED"
