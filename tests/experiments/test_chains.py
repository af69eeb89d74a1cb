"""Chains: what one job trains, computed from the states that a run makes and from nothing else."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from mirai.experiments import chains, paths, plan
from mirai.experiments.grid_files import grid_names
from mirai.experiments.stages import StateStage
from mirai.states import publish

Wanted = list[tuple[StateStage, str | None]]


def states(scale: str = "demo") -> Wanted:
    """All states of all grids, with their parents' keys."""
    for grid in grid_names():
        plan.plan_grid(grid, scale)
    planned = list(plan._planned.values())
    return [(one.stage, one.parent) for one in planned if isinstance(one.stage, StateStage)]


def in_chains(wanted: Wanted) -> list[list[str]]:
    """The chains that begin with a state which no other state's chain goes on with."""
    following = {key for state, _ in wanted for key in chains.after(state, wanted)}
    return [[state.key, *chains.after(state, wanted)] for state, _ in wanted if state.key not in following]


@pytest.mark.parametrize("seed", range(8))
def test_every_wanted_state_is_in_exactly_one_chain_after_its_parent(seed: int, project: Path) -> None:
    everything = states()
    chance = random.Random(seed)
    wanted = [one for one in everything if chance.random() < chance.choice((0.3, 0.8, 1.0))]
    chance.shuffle(wanted)
    parents = {state.key: parent for state, parent in wanted}

    found = in_chains(wanted)
    assert sorted(key for chain in found for key in chain) == sorted(parents)
    for chain in found:
        for earlier, later in itertools.pairwise(chain):
            assert parents[later] == earlier


def test_a_state_goes_on_with_what_is_left_of_the_chain_it_is_in(project: Path) -> None:
    wanted = states()
    by_key = {state.key: state for state, _ in wanted}
    for chain in in_chains(wanted):
        for number, key in enumerate(chain):
            assert chains.after(by_key[key], wanted) == chain[number + 1 :]


def test_chains_do_not_depend_on_the_order_of_planning(project: Path) -> None:
    wanted = states()
    assert sorted(in_chains(wanted)) == sorted(in_chains(wanted[::-1]))


def test_a_job_goes_on_where_the_settings_stay_and_a_fork_gets_its_own(project: Path) -> None:
    grid = plan.plan_grid("demo", "demo")
    baseline, _, explicit = (plan.row_metrics(row)[0].samples.state for row in grid.available())
    trunk = baseline.at(15)
    assert explicit.at(15) == trunk
    wanted = [(state, plan.lookup(state.key).parent) for state in (trunk, explicit, explicit.at(40), baseline.at(40))]
    assert in_chains(wanted) == [[trunk.key, baseline.at(40).key], [explicit.at(40).key, explicit.key]]


def test_only_states_that_this_run_makes_are_in_its_chains(project: Path) -> None:
    baseline = plan.row_metrics(plan.plan_grid("demo", "demo").available()[0])[0].samples.state
    first, second = baseline.at(15), baseline.at(40)
    publish(paths.manifest("state", baseline.key), {})
    for state in (first, second, baseline):
        plan.freeze(plan.lookup(state.key))
    plan.inputs(first.key)
    assert plan.chain(first.key) == [], "its children were not asked for"
    plan.inputs(second.key)
    plan.inputs(baseline.key)
    assert plan.chain(first.key) == [second.key], "the last one is there"


def test_a_restored_state_is_in_no_chain(project: Path) -> None:
    baseline = plan.row_metrics(plan.plan_grid("demo", "demo").available()[0])[0].samples.state
    plan.inputs(baseline.at(15).key)
    plan.restore_inputs(baseline.at(40).key)
    assert plan.chain(baseline.at(15).key) == []
