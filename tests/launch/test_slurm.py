"""Waiting for a state through a queue, with made-up SLURM programs: what is submitted, attached to, told and done again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from mirai.errors import Interrupted, UserError
from mirai.experiments import paths, plan
from mirai.experiments.site import load_site
from mirai.launch import record, slurm, submit, task
from mirai.launch.queue import JobState
from mirai.launch.record import Job
from mirai.launch.slurm import train
from mirai.launch.submit import Order
from mirai.states import publish
from tests.slurm_programs import Programs

pytestmark = pytest.mark.full

SITE = """
save_minutes: 1
slurm:
  account: lab
  partition: gpu
  constraint: h200
  nodes: 2
  ranks_per_node: 2
  cpus_per_rank: 3
  memory_gb: 1.5
  training_minutes: 60
  stage_minutes: 10
  signal_seconds: 90
  setup: [module load cuda]
  poll_seconds: 0.000001
"""
Key = str


@pytest.fixture
def keys(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """Three consecutive states, in a project with a SLURM section."""
    (project / "config").mkdir()
    paths.SITE.write_text(SITE)
    monkeypatch.setattr(slurm, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(slurm, "SETTLE", 0.3)
    last = plan.row_metrics(plan.plan_grid("demo", "demo").available()[0])[0].samples.state
    return [last.at(15).key, last.at(40).key, last.key]


@pytest.fixture
def programs(keys: list[Key], monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A cluster that takes all jobs and gives all of them the number 12."""
    programs = Programs(Path("bin").absolute(), monkeypatch)
    for name in ("squeue", "sacct", "srun"):
        programs.answer(name)
    programs.answer("sbatch", "Submitted batch job 12")
    queue(programs, "RUNNING")
    return programs


def queue(programs: Programs, name: str, identity: str = "12") -> None:
    programs.answer("squeue", f"{identity}|{name}|None|1:00|node1", when="--jobs")


def finish(key: Key) -> None:
    publish(paths.manifest("state", key), {})


def later(action: Callable[[], object]) -> None:
    threading.Timer(0.3, action).start()


def order(*keys: Key) -> Order:
    return Order(keys[0], tuple(keys[1:]), "slurm")


def recorded(identity: str, *keys: Key) -> Job:
    job = record.new(identity, "slurm", keys, Path("log.out"), paths.jobs(keys[0]))
    record.write(job)
    return job


def script() -> str:
    (path,) = paths.RESULTS.glob("logs/jobs/*/12_submission.sh")
    return path.read_text()


def test_a_job_asks_for_what_the_site_says(keys: list[Key], programs: Programs) -> None:
    later(lambda: finish(keys[0]))
    assert train(order(*keys)) == 0
    lines = script().splitlines()
    for option in (
        "account=lab",
        "partition=gpu",
        "constraint=h200",
        "nodes=2",
        "ntasks-per-node=2",
        "cpus-per-task=3",
        "mem=1536M",
        "time=60",
        "signal=USR2@90",
        "requeue",
    ):
        assert f"#SBATCH --{option}" in lines
    assert "module load cuda" in lines
    assert not [line for line in lines if "gpus" in line or "wckey" in line or "qos" in line], "the demo is for CPUs"
    (command,) = [line for line in lines if line.startswith("srun")]
    assert "--cpus-per-task=3 --kill-on-bad-exit=1" in command


def test_a_scale_that_computes_on_gpus_asks_for_one_per_rank(keys: list[Key]) -> None:
    site = load_site().cluster()
    assert submit._asked(site, keys[0], on_gpu=True)["gpus_per_node"] == 2
    assert submit._asked(site, keys[0], on_gpu=False)["gpus_per_node"] is None


def test_every_state_of_the_chain_is_recorded_and_its_recipe_frozen(keys: list[Key], programs: Programs) -> None:
    later(lambda: finish(keys[0]))
    train(order(*keys))
    for key in keys:
        job = record.read(key)
        assert job is not None
        assert (job.id, job.cluster, job.chain) == ("12", "slurm", tuple(keys))
        assert paths.frozen("state", key).exists()
    assert len(programs.calls("sbatch")) == 1


def test_the_job_of_somebody_else_is_waited_for(
    keys: list[Key], programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded("12", *keys)
    later(lambda: finish(keys[1]))
    assert train(order(keys[1], keys[2])) == 0
    assert programs.calls("sbatch") == []
    assert "SLURM job 12" in capsys.readouterr().err


@pytest.mark.parametrize("ended", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_job_that_has_ended_before_is_nobody_to_wait_for(ended: str, keys: list[Key], programs: Programs) -> None:
    recorded("11", keys[0])
    queue(programs, ended, "11")
    later(lambda: (queue(programs, "RUNNING"), finish(keys[0])))
    assert train(order(keys[0])) == 0
    assert len(programs.calls("sbatch")) == 1


def test_no_job_is_submitted_for_what_the_last_one_finished_while_it_was_asked_for(
    keys: list[Key], programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded("11", keys[0])
    known = slurm.queue.states

    def finish_meanwhile(jobs: Iterable[Job]) -> dict[str, JobState]:
        finish(keys[0])
        return known(jobs)

    queue(programs, "COMPLETED", "11")
    monkeypatch.setattr(slurm.queue, "states", finish_meanwhile)
    assert train(order(keys[0])) == 0
    assert programs.calls("sbatch") == []


def test_a_job_leaves_out_what_another_job_trains(keys: list[Key], programs: Programs) -> None:
    recorded("11", keys[1], keys[2])
    programs.answer("squeue", "11|RUNNING|None|1:00|node1\n12|RUNNING|None|1:00|node1", when="--jobs")
    later(lambda: finish(keys[0]))
    train(order(*keys))
    job = record.read(keys[0])
    assert job is not None
    assert job.chain == (keys[0],)
    other = record.read(keys[1])
    assert other is not None
    assert other.id == "11"


def test_a_state_that_is_there_is_only_published_again(keys: list[Key], programs: Programs) -> None:
    finish(keys[0])
    paths.manifest("state", keys[0]).unlink()  # as Snakemake does before it reruns a rule
    assert train(order(keys[0])) == 0
    assert paths.manifest("state", keys[0]).exists()
    assert programs.calls("sbatch") == []


def fail(key: Key, **error: object) -> None:
    folder = paths.jobs(key)
    folder.mkdir(parents=True, exist_ok=True)
    task.error_file(folder, "12").write_text(json.dumps({"rank": 1, "host": "node1", **error}))


def test_an_error_in_training_is_shown_and_nothing_tried_again(
    keys: list[Key], programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(keys[0], mistake=False, text="Traceback (most recent call last):\nZeroDivisionError: here")
    queue(programs, "FAILED")
    assert train(order(keys[0])) == 1
    printed = capsys.readouterr().err
    assert "ZeroDivisionError: here" in printed
    assert "rank 1 on node1" in printed
    assert len(programs.calls("sbatch")) == 1


def test_a_mistake_is_told_in_a_sentence(keys: list[Key], programs: Programs) -> None:
    fail(keys[0], mistake=True, text="loss is not finite before step 7")
    queue(programs, "FAILED")
    with pytest.raises(UserError, match=r"loss is not finite before step 7 \(SLURM job 12"):
        train(order(keys[0]))


@pytest.mark.parametrize(
    ("name", "sentence"), [("CANCELLED", "was cancelled"), ("OUT_OF_MEMORY", "slurm.memory_gb 1.5 in config/site.yaml")]
)
def test_a_job_that_was_ended_on_purpose_is_told_and_not_submitted_again(
    name: str, sentence: str, keys: list[Key], programs: Programs
) -> None:
    queue(programs, name)
    with pytest.raises(UserError, match=sentence):
        train(order(keys[0]))
    assert len(programs.calls("sbatch")) == 1


def test_a_training_whose_step_alone_ran_out_of_memory_is_told_so(keys: list[Key], programs: Programs) -> None:
    log = paths.jobs(keys[0]) / "12_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("srun: error: node1: task 0: Out Of Memory\nsrun: Terminating StepId=12.0\n")
    queue(programs, "FAILED")
    with pytest.raises(UserError, match="more memory than it had asked for"):
        train(order(keys[0]))
    assert len(programs.calls("sbatch")) == 1


def lose(programs: Programs, key: Key, name: str, saves: bool) -> None:
    """Every job is lost, the third finishes."""
    programs.answer("sbatch", "Submitted batch job $(cat number)")
    script = Path("bin/sbatch")
    counter = (
        'n=$(($(cat number 2>/dev/null || echo 20) + 1)); echo $n > number; echo "Submitted batch job $n"\n'
        f"folder={paths.folder('state', key)}; mkdir -p $folder\n"
        + ("echo '{}' > $folder/progress-$n.json\n" if saves else "")
        + f"[ $n -lt 23 ] || echo '{{}}' > {paths.manifest('state', key)}\n"
    )
    script.write_text(f'#!/bin/sh\necho "$*" >> bin/sbatch-calls\n{counter}')
    rows = "\n".join(f"{number}|{name}|None|1:00|node1" for number in range(20, 30))
    programs.answer("squeue", rows, when="--jobs")


@pytest.mark.parametrize("name", ["FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "COMPLETED", "BOOT_FAIL"])
def test_a_lost_job_is_followed_by_another_as_long_as_each_saves_something(
    name: str, keys: list[Key], programs: Programs
) -> None:
    lose(programs, keys[0], name, saves=True)
    assert train(order(keys[0])) == 0
    assert len(programs.calls("sbatch")) == 3
    job = record.read(keys[0])
    assert job is not None
    assert job.earlier == ("21", "22")


def test_jobs_that_save_nothing_are_not_submitted_for_ever(
    keys: list[Key], programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    lose(programs, keys[0], "FAILED", saves=False)
    log = paths.jobs(keys[0]) / "22_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("module: command not found\n")
    with pytest.raises(UserError, match=r"2 jobs for state .* without having saved anything, the last, 22, as FAILED"):
        train(order(keys[0]))
    assert "module: command not found" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["PREEMPTED", "NODE_FAIL"])
def test_what_is_taken_away_before_it_saved_is_submitted_as_often_as_it_takes(
    name: str, keys: list[Key], programs: Programs
) -> None:
    lose(programs, keys[0], name, saves=False)
    assert train(order(keys[0])) == 0
    assert len(programs.calls("sbatch")) == 3


def test_a_job_that_slurm_holds_is_told_with_what_lets_it_go(
    keys: list[Key], programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.answer("squeue", "12|PENDING|launch failed requeued held|0:00|", when="--jobs")
    later(lambda: finish(keys[0]))
    assert train(order(keys[0])) == 0
    assert "it never starts by itself: `scontrol release 12`" in capsys.readouterr().err


def test_a_job_that_is_queued_again_is_waited_for(keys: list[Key], programs: Programs) -> None:
    queue(programs, "NODE_FAIL")
    later(lambda: (queue(programs, "PENDING"), time.sleep(0.6), finish(keys[0])))
    slurm.SETTLE = 1.0
    assert train(order(keys[0])) == 0
    assert len(programs.calls("sbatch")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_waiting_is_told_what_keeps_running(number: int, keys: list[Key], programs: Programs) -> None:
    later(lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f"SLURM job 12 keeps training .*`mirai cancel {keys[0]}` stops it"):
        train(order(keys[0]))
    assert record.read(keys[0]) is not None


def test_a_refused_job_is_told_in_a_sentence(keys: list[Key], programs: Programs) -> None:
    reason = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    programs.answer("sbatch", error=reason, code=1)
    with pytest.raises(UserError, match=r"Invalid account.*; section slurm of config/site\.yaml asks for account lab"):
        train(order(keys[0]))


@pytest.mark.parametrize(
    "words",
    [
        "Socket timed out on send/recv operation",
        "Resource temporarily unavailable",
        "QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy",
        "Munge encode failed: Failed to access /run/munge: Connection refused",
    ],
)
def test_a_refusal_that_passes_is_asked_again(
    words: str, keys: list[Key], programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.answer("sbatch", error=f"sbatch: error: {words}", code=1)

    def answer_after_a_pause(seconds: float, *_: object) -> None:
        programs.answer("sbatch", "Submitted batch job 12")
        if record.read(keys[0]) is not None:
            finish(keys[0])

    monkeypatch.setattr(slurm, "_pause", answer_after_a_pause)
    assert train(order(keys[0])) == 0
    assert len(programs.calls("sbatch")) == 2


def test_a_job_does_not_inherit_the_size_of_the_job_it_is_submitted_from(
    keys: list[Key], programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_NTASKS", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK", "SUBMITIT_EXECUTOR", "RANK"):
        monkeypatch.setenv(name, "64")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    Path("bin/sbatch").write_text("#!/bin/sh\nenv > environment\necho Submitted batch job 12\n")
    later(lambda: finish(keys[0]))
    train(order(keys[0]))
    lines = Path("environment").read_text().splitlines()
    names = {line.split("=")[0] for line in lines}
    assert not names & {"SLURM_NTASKS", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK", "SUBMITIT_EXECUTOR", "RANK"}
    assert "SLURM_CONF" in names
    assert "OMP_NUM_THREADS=3" in lines, "the cores of a rank, not the 0 of a rule that waits"
    assert "MKL_NUM_THREADS" not in names
    assert os.environ["SLURM_NTASKS"] == "64"


def test_a_training_by_hand_is_refused_while_a_job_trains(keys: list[Key], programs: Programs) -> None:
    slurm.refuse_if_queued(keys[0])
    recorded("12", keys[0])
    with pytest.raises(UserError, match=f"SLURM job 12 .* `mirai cancel {keys[0]}` stops it"):
        slurm.refuse_if_queued(keys[0])
    queue(programs, "FAILED")
    slurm.refuse_if_queued(keys[0])


def test_a_training_inside_the_command_is_refused_while_a_job_trains_any_of_its_states(
    keys: list[Key], programs: Programs
) -> None:
    recorded("12", keys[1])
    with pytest.raises(UserError, match=f"SLURM job 12 .* `mirai cancel {keys[1]}` stops it"):
        train(Order(keys[0], (keys[1],), "debug"))


def test_without_slurms_programs_one_sentence_says_so(keys: list[Key], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path("nowhere").absolute()))
    with pytest.raises(UserError, match=r"sbatch and srun are not on PATH: .* --launcher local"):
        train(order(keys[0]))
    assert record.read(keys[0]) is None


def test_without_a_slurm_section_one_sentence_says_so(keys: list[Key], programs: Programs) -> None:
    paths.SITE.write_text("ranks: 1\n")
    with pytest.raises(UserError, match="no section 'slurm'"):
        train(order(keys[0]))
