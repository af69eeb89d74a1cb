"""`mirai doctor`: one line for each thing it looks at, and the mend where one is amiss. SLURM and torch are made up."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirai.cli import main
from mirai.doctor import machine, node
from mirai.experiments import paths
from tests.slurm_programs import Programs

Capture = pytest.CaptureFixture[str]
SLURM = {"account": "lab", "partition": "gpu", "qos": "normal", "training_minutes": 600, "stage_minutes": 60}
PARTITION = (
    "PartitionName={name} State={state} GraceTime={grace} MaxTime={longest} PreemptMode={mode} TRES=cpu=8,{tres}"
)

pytestmark = pytest.mark.full
REPORT = {
    "host": "node1",
    "python": "3.11",
    "write_error": None,
    "lock": "held",
    "missing": [],
    "torch": "2.9",
    "cuda_build": "12.8",
    "gpus": 8,
    "gpu_name": "H200",
}


def partition(name: str = "gpu", **changed: str) -> str:
    usual = {"state": "UP", "grace": "0", "longest": "7-00:00:00", "mode": "OFF", "tres": "gres/gpu=8"}
    return PARTITION.format(name=name, **usual | changed)


@pytest.fixture
def site(project: Path) -> Path:
    (project / "config").mkdir()
    write(SLURM)
    return paths.SITE


def write(slurm: dict[str, Any] | None, **others: Any) -> None:
    paths.SITE.write_text(yaml.safe_dump(others | ({} if slurm is None else {"slurm": slurm})))


@pytest.fixture
def cluster(site: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A cluster on which all is well."""
    programs = Programs(project / "bin", monkeypatch)
    for name in ("sbatch", "squeue", "sacct", "scancel"):
        programs.answer(name, "slurm 24.05")
    programs.answer("sacctmgr", "lab|normal,high\nother|normal")
    programs.answer("scontrol", "PreemptType             = preempt/none")
    programs.answer("scontrol", partition() + "\n" + partition("small", longest="UNLIMITED"), when="show partition")
    programs.answer("srun", "a line of the modules\n" + json.dumps(REPORT))
    return programs


def lines(capsys: Capture, code: int, *options: str) -> dict[str, tuple[str, str]]:
    """What was looked at -> mark and text."""
    capsys.readouterr()
    assert main(["doctor", *(options or ("--scale", "demo"))]) == code
    rows = capsys.readouterr().out.splitlines()
    return {row[6:21].strip(): (row[:5].strip(), row[22:]) for row in rows}


def test_a_healthy_cluster_passes_line_by_line(cluster: Programs, project: Path, capsys: Capture) -> None:
    told = lines(capsys, 0)
    assert list(told) == [
        "data, weights",
        "results folder",
        "SLURM",
        "squeue",
        "sacct",
        "account",
        "qos",
        "partition",
        "preemption",
        "a training",
        "other jobs",
        "torch",
        "shared files",
        "shared locks",
    ]
    assert {mark for mark, _ in told.values()} == {"ok"}
    assert not list((project / "results").iterdir()), "nothing is left"


@pytest.mark.parametrize(
    ("changed", "what", "mend"),
    [
        ({"account": "labs"}, "account", "'labs' is none of"),
        ({"account": None}, "account", "write slurm.account into config/site.yaml, one of lab, other"),
        ({"qos": "big"}, "qos", "'big' is not open to you; slurm.qos is one of high, normal"),
        ({"partition": "gpus"}, "partition", "'gpus' does not exist; slurm.partition is one of gpu, small"),
        ({"training_minutes": 20000}, "partition", "gpu ends jobs after 10080 minutes; slurm.training_minutes and "),
    ],
)
def test_a_name_that_slurm_does_not_know_is_told_with_those_it_knows(
    changed: dict[str, Any], what: str, mend: str, cluster: Programs, capsys: Capture
) -> None:
    write({name: value for name, value in (SLURM | changed).items() if value is not None})
    told = lines(capsys, 1)
    assert told[what][0] == "FAIL"
    assert told[what][1].startswith(mend)
    assert [name for name, (mark, _) in told.items() if mark == "FAIL"] == [what]


def test_several_partitions_are_looked_at_one_by_one(cluster: Programs, capsys: Capture) -> None:
    write(SLURM | {"partition": "small,gpu"})
    capsys.readouterr()
    assert main(["doctor", "--scale", "demo"]) == 0
    printed = capsys.readouterr().out
    assert "ok    partition       small, jobs up to any number of minutes\n" in printed
    assert "ok    partition       gpu, jobs up to 10080 minutes\n" in printed
    assert "--partition=small,gpu" in cluster.calls("sbatch")[-1]
    write(SLURM | {"partition": "gpu,typo"})
    told = lines(capsys, 1)["partition"]
    assert told == ("FAIL", "'typo' does not exist; slurm.partition is one of gpu, small, or several with commas")


def test_a_cluster_without_accounts_is_not_told_to_name_one(cluster: Programs, capsys: Capture) -> None:
    cluster.answer("sacctmgr", error="You are not running a supported accounting_storage plugin", code=1)
    assert lines(capsys, 0)["account"][0] == "--"


def test_a_partition_that_is_down_or_has_no_gpus_is_told(cluster: Programs, capsys: Capture) -> None:
    cluster.answer("scontrol", partition(state="DOWN"), when="show partition")
    assert lines(capsys, 1)["partition"] == ("FAIL", "gpu is DOWN: no job starts there")
    cluster.answer("scontrol", partition(tres="mem=1000M"), when="show partition")
    assert lines(capsys, 0)["partition"][0] == "ok"
    not_told = ("--", "gpu; whether it has GPUs is not told, SLURM counts none on this cluster")
    assert lines(capsys, 1, "--scale", "imagenet256")["partition"] == not_told
    others = "PartitionName=other State=UP TRES=gres/gpu=8"
    cluster.answer("scontrol", f"{partition(tres='mem=1000M')}\n{others}", when="show partition")
    assert lines(capsys, 1, "--scale", "imagenet256")["partition"][1].startswith("gpu has no GPUs, and this scale")


@pytest.mark.parametrize(
    ("settings", "grace", "mark", "says"),
    [
        ("preempt_send_user_signal,x", "120", "ok", "trainings are told before they are preempted, and save"),
        ("x", "120", "--", "costs each training up to save_minutes; an administrator can set SlurmctldParameters="),
        (
            "preempt_send_user_signal",
            "0",
            "--",
            "costs each training up to save_minutes; an administrator can set a Gr",
        ),
    ],
)
def test_preemption_without_a_warning_is_told_with_what_an_administrator_can_set(
    settings: str, grace: str, mark: str, says: str, cluster: Programs, capsys: Capture
) -> None:
    cluster.answer("scontrol", f"PreemptType = preempt/partition_prio\nSlurmctldParameters = {settings}")
    cluster.answer("scontrol", partition(mode="REQUEUE", grace=grace), when="show partition")
    told = lines(capsys, 0)["preemption"]
    assert told[0] == mark
    assert told[1].startswith(says)


def test_hidden_jobs_of_others_are_told(cluster: Programs, capsys: Capture) -> None:
    assert "others' jobs" not in lines(capsys, 0)
    cluster.answer("scontrol", "PreemptType = preempt/none\nPrivateData = accounts,jobs", when="show config")
    mark, says = lines(capsys, 0)["others' jobs"]
    assert mark == "--"
    assert "PrivateData=jobs" in says


def test_without_slurms_programs_or_answers_nothing_more_is_asked(
    cluster: Programs, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    cluster.answer("squeue", error="slurm_load_jobs error: Unable to contact slurm controller", code=1, when="--me")
    told = lines(capsys, 1)
    assert told["squeue"] == (
        "FAIL",
        "the controller does not answer: slurm_load_jobs error: Unable to contact slurm controller",
    )
    assert list(told)[-1] == "sacct"
    monkeypatch.setattr("mirai.doctor.cluster.PROGRAMS", ("sbatch", "no-such-program"))
    told = lines(capsys, 1)
    assert told["SLURM"] == ("FAIL", "no-such-program not on PATH; run this on a login node of the cluster")
    assert list(told)[-1] == "SLURM"
    assert cluster.calls("srun") == ["--version"]


def test_what_sbatch_refuses_is_told_and_no_job_is_started(cluster: Programs, capsys: Capture) -> None:
    write(SLURM | {"nodes": 3, "ranks_per_node": 8, "constraint": "h200"})
    cluster.answer(
        "sbatch", error="allocation failure: Requested node configuration is not available", code=1, when="--test-only"
    )
    told = lines(capsys, 1)
    refusal = "SLURM refuses what config/site.yaml asks for: allocation failure: Requested node configuration is not"
    assert told["a training"][1].startswith(refusal)
    *_, asked, _ = cluster.calls("sbatch")
    for part in (
        "--account=lab",
        "--qos=normal",
        "--constraint=h200",
        "--nodes=3",
        "--ntasks-per-node=8",
        "--mem=32768M",
    ):
        assert part in asked
    assert "--gpus" not in asked, "a scale on the CPU asks for none"
    assert cluster.calls("srun") == ["--version"]


def test_jobs_of_all_ranks_on_one_node_that_sbatch_refuses_are_told(cluster: Programs, capsys: Capture) -> None:
    write(SLURM | {"cpus_per_rank": 4}, ranks=16)
    cluster.answer("sbatch", error="allocation failure: not available", code=1, when="--ntasks=1 --cpus-per-task=64")
    told = lines(capsys, 1)
    assert (told["a training"][0], told["other jobs"][0]) == ("ok", "FAIL")
    assert "--time=60" in cluster.calls("sbatch")[-1]


def test_the_job_on_a_compute_node_asks_for_a_gpu_where_the_scale_does(cluster: Programs, capsys: Capture) -> None:
    write(SLURM | {"setup": ["module load cuda"], "ranks_per_node": 4}, data={"imagenet": "."}, ranks=2)
    told = lines(capsys, 1, "--scale", "imagenet256", "--wait", "7")
    assert told["GPUs"] == ("ok", "torch 2.9 on node1 sees 8 x H200")
    *_, training, other = cluster.calls("sbatch")
    assert "--gpus-per-node=4" in training
    assert "--gpus=2" in other
    asked = "\n".join(cluster.calls("srun")[1:])
    assert "--gpus=1" in asked
    assert "--immediate=7" in asked
    assert "bash -c set -e\nmodule load cuda\nexec " in asked, "a module that is not there is told"
    assert asked.endswith(f"results {Path.cwd()}")


@pytest.mark.parametrize(
    ("changed", "what", "says"),
    [
        (
            {"write_error": "Read-only file system"},
            "shared files",
            "cannot be written on node1 (Read-only file system)",
        ),
        ({"lock": "free"}, "shared locks", "a lock taken here is not seen on node1; put results/ on a file system"),
        ({"missing": ["/data"]}, "shared inputs", "/data not on node1; they must be shared"),
        ({"gpus": 0}, "GPUs", "torch 2.9 on node1 sees no GPU; its driver must support CUDA 12.8"),
        ({"gpus": 0, "cuda_build": None}, "GPUs", "torch 2.9 on node1 is built for the CPU only; install"),
    ],
)
def test_what_a_compute_node_lacks_is_told(
    changed: dict[str, Any], what: str, says: str, cluster: Programs, capsys: Capture
) -> None:
    write(SLURM, data={"imagenet": "."})
    cluster.answer("srun", json.dumps(REPORT | changed))
    mark, text = lines(capsys, 1, "--scale", "imagenet256")[what]
    assert mark == "FAIL"
    assert text.startswith(says)


def test_a_node_that_is_busy_is_no_failure_and_one_that_cannot_start_python_is(
    cluster: Programs, capsys: Capture
) -> None:
    cluster.answer("srun", error="srun: error: Unable to allocate resources: Requested nodes are busy", code=1)
    assert lines(capsys, 0)["compute node"][0] == "--"
    ends = "srun: error: node1: task 0: Exited with exit code 127"
    cluster.answer("srun", error=f"bash: line 1: /there/python: No such file or directory\n{ends}\n", code=127)
    assert lines(capsys, 1)["torch"] == (
        "FAIL",
        "does not start: bash: line 1: /there/python: No such file or directory",
    )


# Any machine


def test_without_slurm_this_machine_is_looked_at(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("mirai.doctor.shutil.which", lambda name: None)
    monkeypatch.setattr(machine, "NODE", ("echo", json.dumps(REPORT)))
    write(None)
    told = lines(capsys, 0)
    assert told["SLURM"] == ("--", "not on this machine")
    assert told["torch"] == ("ok", "torch 2.9 on node1; this scale computes on the CPU")
    write(None, ranks=16)
    assert lines(capsys, 1, "--scale", "imagenet256")["GPUs"] == (
        "FAIL",
        "torch 2.9 on node1 sees 8; ranks in config/site.yaml is 16, one a GPU",
    )


def test_missing_data_and_weights_are_listed_until_what_reads_them_is_made(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(machine, "NODE", ("echo", json.dumps(REPORT)))
    write(None)
    mark, text = lines(capsys, 1, "--scale", "imagenet256")["data, weights"]
    assert mark == "FAIL"
    assert "data.imagenet (not given)" in text
    monkeypatch.setattr(machine, "is_published", lambda manifest: True)
    assert lines(capsys, 0, "table2", "--scale", "imagenet256")["data, weights"] == (
        "ok",
        "all that table2 at scale imagenet256 still read are here",
    )


def test_a_results_folder_without_locks_is_told(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(machine, "NODE", ("echo", json.dumps(REPORT)))
    write(None)
    monkeypatch.setattr(machine, "lock_state", lambda path: "free")  # a lock that two can hold
    mark, text = lines(capsys, 1)["results folder"]
    assert mark == "FAIL"
    assert "put results/ on a file system with flock" in text


def test_the_look_from_a_node_sees_the_lock_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / node.LOCK
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert node.look(tmp_path)["lock"] == "held"
    report = node.look(tmp_path)
    assert (report["lock"], report["write_error"], report["missing"]) == ("free", None, [])
    assert node.look(tmp_path, tmp_path, tmp_path / "weights")["missing"] == [str(tmp_path / "weights")]
    assert list(tmp_path.iterdir()) == [path]
    assert node.look(tmp_path / "nothing")["write_error"] == "No such file or directory"
