"""`mirai gc`: give back the disk space of optimisers that nothing is waiting for."""

from __future__ import annotations

import contextlib

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.plan import lookup
from mirai.states import Lock, is_published, sealed


def collect_optimisers(*, dry_run: bool) -> int:
    """Delete the resume points of finished states -> bytes freed. Weights stay, so tables and samples do.

    Those that a state goes on from which was begun, or is planned by a run that was started, and is not done stay too.
    """
    freed, awaited = 0, _parents_of_unfinished()
    for weights in sorted(paths.kind("state").glob(f"*/{paths.MANIFESTS['state']}")):
        resume = paths.resume(weights.parent.name)
        if not is_published(weights) or not resume.exists() or weights.parent.name in awaited:
            continue
        payload = resume.with_suffix(".safetensors")
        size = payload.stat().st_size if payload.exists() else 0
        freed += size
        print(f"{'would delete' if dry_run else 'deleted'} {payload} ({size / 1e6:.1f} MB)")
        if not dry_run:
            with Lock(weights.parent / "lock"):
                resume.unlink()
                sealed(resume).unlink(missing_ok=True)
                payload.unlink(missing_ok=True)
    print(f"{freed / 1e6:.1f} MB {'to free' if dry_run else 'freed'}")
    return freed


def _parents_of_unfinished() -> set[str]:
    """Keys of the states that unfinished ones with a frozen recipe grow out of."""
    frozen = [path.parent.name for path in paths.kind("state").glob("*/recipe.json")]
    unfinished = [key for key in frozen if not is_published(paths.manifest("state", key))]
    return {parent for key in unfinished if (parent := _parent(key)) is not None}


def _parent(key: str) -> str | None:
    with contextlib.suppress(UserError):  # of another version
        return lookup(key).parent
    return None
