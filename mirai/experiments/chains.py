"""Chains: which states one job trains one after the other, so that a long training does not queue for every rung."""

from __future__ import annotations

from collections.abc import Collection

from mirai.experiments.stages import StateStage


def after(state: StateStage, wanted: Collection[tuple[StateStage, str | None]]) -> list[str]:
    """Keys of the states that a job goes on with after `state`: its main child, that one's main child, and so on.

    `wanted`: all states that are to be trained, with the keys of their parents. A state whose parent is not among them,
    or has another main child, begins a chain of its own; so every state is in exactly one.
    """
    children: dict[str, list[StateStage]] = {}
    for child, parent in wanted:
        if parent is not None:
            children.setdefault(parent, []).append(child)
    chain: list[str] = []
    while state.key in children:
        state = _main(state, children[state.key])
        chain.append(state.key)
    return chain


def _main(parent: StateStage, children: list[StateStage]) -> StateStage:
    """The child in which the parent's settings go on, else any, but always the same one."""

    def rank(child: StateStage) -> tuple[bool, int, str]:
        return (len(child.timeline) > len(parent.timeline), child.epoch, child.key)

    return min(children, key=rank)
