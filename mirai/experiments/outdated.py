"""What a raised REVISION invalidates: finished stages whose recipe has another key today, told before anything runs.

Frozen recipes note the revisions they were frozen under; those that note none are of a time when all were 1.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable

from pydantic import ValidationError

from mirai.experiments import paths
from mirai.experiments.revisions import REVISIONS
from mirai.experiments.stages import STAGES, Stage
from mirai.states import is_published, read_json


def outdated(keys: Iterable[str]) -> list[str]:
    """One sentence per cause for the stages among `keys`, still to make, that lie finished under an older key."""
    wanted = set(keys)
    again: dict[str, Counter[str]] = defaultdict(Counter)
    for kind in STAGES:
        for recipe in sorted(paths.kind(kind).glob("*/recipe.json")):
            key = recipe.parent.name
            if not is_published(paths.manifest(kind, key)):
                continue
            content = read_json(recipe)
            try:
                stage = STAGES[kind].model_validate_json(json.dumps(content["recipe"]))
            except ValidationError:  # of other recipe types: it has no key today
                continue
            today = stage.key
            if today != key and today in wanted and not is_published(paths.manifest(kind, today)):
                again[_cause(stage, content.get("revisions", {}))][kind] += 1
    return [_sentence(cause, kinds) for cause, kinds in again.items()]


def _cause(stage: Stage, then: dict[str, int]) -> str:
    raised = [kind for kind in sorted(_kinds(stage)) if then.get(kind, 1) != REVISIONS[kind]]
    if not raised:
        return "recipes are hashed otherwise than before"
    return f"revision of {' and '.join(raised)} was raised"


def _sentence(cause: str, kinds: Counter[str]) -> str:
    number = sum(kinds.values())
    listed = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    return f"{cause}: {number} finished stage{'s' if number > 1 else ''} will be made again ({listed})"


def _kinds(stage: Stage) -> set[str]:
    """The kinds of all stages behind a stage."""
    return {stage.kind}.union(*(_kinds(one) for one in stage.needs()))
