"""`mirai gc`: give back the disk space of optimisers that nothing is waiting for."""

from __future__ import annotations

from mirai.experiments import paths
from mirai.states import Lock, is_published, sealed


def collect_optimisers(*, dry_run: bool) -> int:
    """Delete the resume points of all finished states -> bytes freed. Weights stay, so tables and samples do."""
    freed = 0
    for weights in sorted(paths.folder("state", "").glob(f"*/{paths.MANIFESTS['state']}")):
        resume = paths.resume(weights.parent.name)
        if not is_published(weights) or not resume.exists():
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
