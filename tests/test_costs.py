"""What trainings cost: sacct's hours and the journals', per state and per table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mirai import costs
from mirai.cli import main
from mirai.experiments import paths, plan
from mirai.experiments.stages import StateStage
from mirai.launch.record import Job, write
from mirai.states import write_text
from tests.conftest import WriteGrid
from tests.slurm_programs import Programs

SITE = "slurm: {partition: gpu, training_minutes: 60, stage_minutes: 10}\n"


@pytest.fixture
def sacct(project: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    (project / "config").mkdir()
    paths.SITE.write_text(SITE)
    for path in paths.EXPERIMENTS.glob("*.yaml"):
        path.unlink()
    return Programs(project / "bin", monkeypatch)


@pytest.fixture
def branch(sacct: Programs, write_grid: WriteGrid) -> list[StateStage]:
    """Two grids that share a baseline up to epoch 40; `far` alone goes on to 80."""
    write_grid({"arm": "baseline", "epochs": 40}, name="near")
    write_grid({"arm": "baseline", "epochs": 80}, name="far")
    write_grid({"arm": "mirai-i", "epochs": 300}, name="unbegun")
    last = plan.row_metrics(plan.plan_grid("far", "demo").rows[0])[0].samples.state
    states = [last.at(15), last.at(40), last]
    for state in states:
        plan.freeze(plan.lookup(state.key))
    return states


def logged(state: StateStage, *intervals: tuple[float, int]) -> None:
    """A journal with the given seconds and ranks of each interval."""
    lines = [{"step": number, "seconds": time, "ranks": ranks} for number, (time, ranks) in enumerate(intervals)]
    write_text(paths.folder("state", state.key) / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def trained(identity: str, *states: StateStage, earlier: tuple[str, ...] = (), cluster: str = "slurm") -> None:
    keys = tuple(state.key for state in states)
    folder = paths.jobs(keys[0])
    write(Job(identity, cluster, "me", "login", "2025-01-01", keys, folder / "log.out", folder, earlier))


def hours() -> dict[tuple[str, str], tuple[str, str]]:
    """(table, state) -> hours of SLURM, hours of the journal."""
    assert main(["costs", "--scale", "demo"]) == 0
    with paths.costs("demo").open() as file:
        return {(row["table"], row["state"]): (row["slurm_hours"], row["log_hours"]) for row in csv.DictReader(file)}


def test_hours_of_journals_count_every_rank_and_are_summed_per_table_shared_states_once_in_all(
    branch: list[StateStage],
) -> None:
    first, second, last = branch
    logged(first, (1800.0, 1), (1800.0, 1))
    logged(second, (1800.0, 2), (900.0, 4))
    logged(last, (3600.0, 4))
    assert hours() == {
        ("far", "all"): ("", "7.0000"),
        ("far", first.key): ("", "1.0000"),
        ("far", second.key): ("", "2.0000"),
        ("far", last.key): ("", "4.0000"),
        ("near", "all"): ("", "3.0000"),
        ("near", first.key): ("", "1.0000"),
        ("near", second.key): ("", "2.0000"),
        ("all", "all"): ("", "7.0000"),
    }
    assert paths.costs("demo").read_text().splitlines()[2] == f"far,{first.key},15,CPU rank,,1.0000"


def test_all_allocations_of_a_job_are_divided_over_its_states_by_their_logged_seconds(
    sacct: Programs, branch: list[StateStage]
) -> None:
    first, second, last = branch
    logged(first, (300.0, 2))
    logged(second, (900.0, 2))
    trained("17", first, second)
    trained("19", last, earlier=("18",))
    logged(last, (100.0, 1))
    sacct.answer("sacct", "17|3000|cpu=2\n17|600|cpu=2\n17|0|\n18|1800|cpu=2\n19|3600|cpu=2\n17_1|9|cpu=2\nodd")
    found = hours()
    assert found["far", first.key][0] == "0.5000"  # a quarter of an hour, twice: two ranks
    assert found["far", second.key][0] == "1.5000"
    assert found["far", last.key][0] == "1.5000", "the job that was lost before counts too"
    assert (found["near", "all"][0], found["far", "all"][0], found["all", "all"][0]) == ("2.0000", "3.5000", "3.5000")
    assert "--duplicates" in sacct.calls("sacct")[0], "without it sacct hides what ran before a requeue"


def test_on_gpus_the_hours_are_those_of_the_gpus_that_slurm_gave(sacct: Programs, branch: list[StateStage]) -> None:
    scale = paths.SCALES / "demo.yaml"
    scale.write_text(scale.read_text().replace("device: cpu", "device: cuda"))
    costs.load_scale.cache_clear()
    logged(branch[0], (300.0, 2))
    trained("17", branch[0])
    sacct.answer("sacct", "17|3600|billing=2,cpu=2,gres/gpu=8,gres/gpu:h200=8,mem=1000M,node=2\n17|3600|cpu=2")
    assert hours()["far", branch[0].key][0] == "8.0000"
    assert paths.costs("demo").read_text().splitlines()[1].split(",")[3] == "GPU"


@pytest.mark.parametrize(("tres", "expected"), [("cpu=2", "2.0000"), ("gres/gpu:a100=4,gres/gpu:h100=2", "6.0000")])
def test_gpus_that_slurm_does_not_count_are_the_ranks_and_those_of_types_add_up(
    tres: str, expected: str, sacct: Programs, branch: list[StateStage]
) -> None:
    scale = paths.SCALES / "demo.yaml"
    scale.write_text(scale.read_text().replace("device: cpu", "device: cuda"))
    costs.load_scale.cache_clear()
    logged(branch[0], (300.0, 2))
    trained("17", branch[0])
    sacct.answer("sacct", f"17|3600|billing=2,{tres},node=1")
    assert hours()["far", branch[0].key][0] == expected


def test_of_a_shared_gpu_a_job_counts_its_part_and_a_job_of_slurm_has_one_of_its_own(
    sacct: Programs, branch: list[StateStage]
) -> None:
    scale = paths.SCALES / "demo.yaml"
    scale.write_text(scale.read_text().replace("device: cpu", "device: cuda") + "\njobs_per_gpu: 4\n")
    costs.load_scale.cache_clear()
    _, second, last = branch
    for state in branch:
        logged(state, (3600.0, 1))
    trained("17", second)
    trained("18", last, cluster="local")
    sacct.answer("sacct", "17|3600|cpu=2")
    found = hours()
    assert [found["far", state.key][1] for state in branch] == ["0.2500", "1.0000", "0.2500"]
    assert found["all", "all"][1] == "1.5000"


def test_without_an_answer_of_sacct_the_journals_remain(
    sacct: Programs, branch: list[StateStage], capsys: pytest.CaptureFixture[str]
) -> None:
    logged(branch[0], (3600.0, 1))
    trained("17", branch[0])
    sacct.answer("sacct", error="slurm_persist_conn_open: failed", code=1)
    assert hours()["far", "all"] == ("", "1.0000")
    captured = capsys.readouterr()
    assert "sacct does not answer" in captured.err
    assert captured.out.splitlines()[1:] == [
        "far,all,,CPU rank,,1.0000",
        "near,all,,CPU rank,,1.0000",
        "all,all,,CPU rank,,1.0000",
        "all states are in results/demo/costs.csv",
    ]


def test_jobs_of_this_machine_are_not_asked_of_slurm(sacct: Programs, branch: list[StateStage]) -> None:
    logged(branch[0], (3600.0, 1))
    trained("17", branch[0], cluster="local")
    assert hours()["far", "all"] == ("", "1.0000")
    assert sacct.calls("sacct") == []


def test_the_costs_are_out_of_date_after_a_new_line_of_any_journal(branch: list[StateStage]) -> None:
    assert costs.inputs("demo") == []
    logged(branch[0], (1.0, 1))
    logged(branch[2], (1.0, 1))
    journals = [paths.folder("state", state.key) / "log.jsonl" for state in (branch[0], branch[2])]
    assert costs.inputs("demo") == sorted(journals)


def test_a_torn_line_and_a_journal_of_an_older_version_count_for_nothing(branch: list[StateStage]) -> None:
    write_text(
        paths.journal(branch[0].key), '{"step": 4, "loss": 1.0}\n{"step": 8, "seconds": 3600.0}\n{"step": 12, "se'
    )
    assert costs.logged(branch[0].key) == costs.Logged(0.0, 3600.0, 3600.0)
