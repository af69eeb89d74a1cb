"""Trainings as jobs: what the profile for a cluster plans, and the same rules through submitit on this machine."""

from __future__ import annotations

import re
import shutil

import pytest

from mirai.states import read_json
from tests.workflow.project import TABLE, Project

pytestmark = pytest.mark.workflow

SLURM = {
    "account": "lab",
    "partition": "gpu",
    "qos": "high",
    "cpus_per_rank": 3,
    "memory_gb": 4,
    "training_minutes": 60,
    "stage_minutes": 20,
}


def jobs(project: Project, *options: str) -> dict[str, list[str]]:
    """The planned jobs of each rule, as Snakemake shows them."""
    printed = project.command("snakemake", "-n", "-p", TABLE, *options)
    assert printed.returncode == 0, printed.stdout + printed.stderr
    found: dict[str, list[str]] = {}
    text = printed.stdout + printed.stderr
    for rule, job in re.findall(r"^(?:local)?rule (\w+):\n((?:.+\n)+)", text, re.MULTILINE):
        found.setdefault(rule, []).append(job)
    return found


def test_without_a_slurm_section_the_clusters_profile_is_refused_in_one_sentence(clone: Project) -> None:
    sentence = clone.refused("snakemake", TABLE, "--profile", "slurm")
    assert "config/site.yaml has no section 'slurm'" in sentence
    assert not (clone.root / "results").exists()


def test_all_of_the_paper_is_planned_for_a_cluster_before_any_site_is_written(clone: Project) -> None:
    printed = clone.command("snakemake", "-n", "results/all", "--profile", "slurm")
    assert printed.returncode == 0, printed.stderr
    counted = re.findall(r"^(\w+) +(\d+)$", printed.stdout + printed.stderr, re.MULTILINE)
    assert int(dict(counted)["train_state"]) > 100


def test_on_a_cluster_trainings_wait_on_no_core_and_all_else_asks_for_what_the_site_says(clone: Project) -> None:
    clone.write_yaml("config/site.yaml", {"ranks": 2, "slurm": SLURM})
    planned = jobs(clone, "--profile", "slurm")
    for job in planned.pop("train_state"):
        assert "threads: 0" in job
        assert "slurm_partition" not in job
        assert "--launcher slurm" in job
    for rule, all_jobs in planned.items():
        cores = 6 if rule in ("extract_codes", "sample_codes") else 3
        for job in all_jobs:
            asked = ("slurm_account=lab", "slurm_partition=gpu", "nodes=1", "qos=high", "runtime=20", "mem_mb=4096")
            for resource in (*asked, f"cpus_per_task={cores}"):
                assert resource in job, rule
            assert "constraint" not in job


@pytest.mark.parametrize("config", ["other=1", "launcher=local"])
def test_jobs_that_go_to_a_cluster_while_trainings_stay_here_are_refused(config: str, clone: Project) -> None:
    clone.write_yaml("config/site.yaml", {"slurm": SLURM})
    sentence = clone.refused("snakemake", TABLE, "--profile", "slurm", "--config", config)
    assert "what --config says takes the place of the profile's; add launcher=slurm to it" in sentence
    assert not (clone.root / "results").exists()


def test_the_lines_of_a_sites_setup_come_before_every_command_on_a_node(clone: Project) -> None:
    clone.write_yaml("config/site.yaml", {"slurm": SLURM | {"setup": ["echo ${UNSET:-there} > setup.txt", "exit 3"]}})
    target = f"results/store/features/{stage_key(clone, 'features')}/features.json"
    on_a_node = ("--mode", "remote", "--executor", "local", "--nolock", "--config", "launcher=slurm")
    assert clone.command("snakemake", target, "--cores", "1", *on_a_node).returncode == 1
    assert (clone.root / "setup.txt").read_text() == "there\n"
    (clone.root / "setup.txt").unlink()
    clone.run("snakemake", "results/digits/costs.csv", "--cores", "1", "--config", "launcher=slurm")
    assert not (clone.root / "setup.txt").exists(), "this machine is no node"


def stage_key(project: Project, kind: str) -> str:
    found = re.search(rf"^ *{kind} +([0-9a-f]{{16}}) ", project.run("mirai", "plan", "demo", "--scale", "digits"), re.M)
    assert found is not None
    return found[1]


def test_every_training_is_in_one_chain_of_the_jobs(clone: Project) -> None:
    clone.write_yaml("config/site.yaml", {"slurm": SLURM})
    commands = "".join(jobs(clone, "--profile", "slurm")["train_state"])
    chains = {
        first: then.split() for first, then in re.findall(r"mirai train (\w+) .*?((?: [0-9a-f]{16})*) --log", commands)
    }
    following = [key for then in chains.values() for key in then[:1]]
    assert len(chains) == 8
    assert len(set(following)) == len(following)
    heads = set(chains) - set(following)
    assert sorted(key for head in heads for key in (head, *chains[head])) == sorted(chains)
    assert len(heads) < len(chains)


@pytest.mark.parametrize("launcher", ["here", "local", "debug"])
def test_without_a_cluster_trainings_run_here_and_take_a_core_however_they_are_started(
    launcher: str, empty: Project
) -> None:
    (first, *_) = jobs(empty, "--config", f"launcher={launcher}")["train_state"]
    assert "threads: 1" in first or "threads" not in first
    assert ("--launcher" in first) == (launcher != "here")


def test_gpus_are_asked_for_where_the_scale_computes_on_them(clone: Project) -> None:
    clone.edit("experiments/scales/digits.yaml", "device: cpu", "device: cuda")
    clone.write_yaml("config/site.yaml", {"ranks": 2, "slurm": SLURM})
    here, cluster = jobs(clone), jobs(clone, "--profile", "slurm")
    assert jobs(clone, "--config", "launcher=local")["train_state"][0].count("gpu=2") == 1, "its job is on this machine"
    assert all("gpu=2" in job for job in here["train_state"] + here["sample_codes"])
    assert all("gpu=1" in job for job in here["evaluate_samples"])
    assert all("gpu=2" in job for job in cluster["sample_codes"])
    assert all("gpu=0" in job for job in cluster["train_state"]), "its job has its own"


def test_the_same_rules_train_through_a_local_job_to_the_same_bits(project: Project) -> None:
    key = project.metrics(2).samples.state.key
    folder = project.stored("state")[key]
    before = read_json(folder / "weights.json")["payloads"]
    shutil.rmtree(folder)
    target = f"results/store/state/{key}/weights.json"
    project.run("snakemake", target, "--cores", "1", "--config", "launcher=local")
    assert read_json(folder / "weights.json")["payloads"] == before
    job = read_json(folder / "job.json")
    assert job["cluster"] == "local"
    assert job["chain"] == [key]
