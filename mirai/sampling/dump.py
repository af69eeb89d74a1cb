"""Many samples into a folder of shards: restartable at any point, the same for any number of processes.

A shard is one batch, always computed at the full batch size and then cut to the samples that are wanted. It carries
its origin, and the zip container a checksum of each array: a restart keeps what is whole and redoes the rest.
`samples.json` appears when the last shard does.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirai import states
from mirai.errors import UserError
from mirai.experiments import recipe
from mirai.models.transformer import Transformer
from mirai.sampling import streams
from mirai.sampling.generate import generate
from mirai.tokenizer.store import weights_sha256

MANIFEST = "samples.json"
# all that a flipped bit in a shard gives
UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)


def sample_codes(
    folder: Path,
    model: Transformer,
    sampling: recipe.Sampling,
    *,
    state_key: str,
    tokenizer: Path | None = None,
    device: torch.device | str,
    progress: bool = True,
    rank: int = 0,
    ranks: int = 1,
) -> bool:
    """Draw this rank's shards into `folder` and publish `samples.json` once all are there -> whether they are.

    `tokenizer` is the folder of an imported one, for samples of imported weights; a state's is known from its key.
    The model is moved to `device` and cast to the recipe's dtype as a whole, as LlamaGen's sampler does.
    """
    assert model.codebook_size <= 2**16, "codes are stored as uint16"
    model = model.to(device=device, dtype=getattr(torch, sampling.dtype)).eval()
    origin = _origin(model, sampling, state_key, tokenizer)
    shards = list(_shards(folder, sampling))
    mine = shards[rank::ranks]
    todo = [(path, indices) for path, indices in mine if not _is_good(path, origin, len(indices))]
    total, left = (sum(len(indices) for _, indices in part) for part in (mine, todo))
    with tqdm(total=total, initial=total - left, desc="sample", unit="img", disable=not progress) as bar:
        for path, indices in todo:
            _draw_shard(path, model, sampling, indices, origin, torch.device(device))
            bar.update(len(indices))
    complete = all(_is_good(path, origin, len(indices)) for path, indices in shards)
    if complete:  # with several ranks, whoever finishes last; two at once write the same
        states.publish(folder / MANIFEST, origin, {path.stem: path for path, _ in shards})
    return complete


def load_samples(folder: Path) -> tuple[Tensor, Tensor]:
    """Codes (n,N) and labels (n,), int64, in order of the index. UserError names a missing or damaged shard."""
    manifest = states.read_json(folder / MANIFEST)
    shards = []
    for name in sorted(manifest["payloads"]):
        try:
            path = states.check_payload(folder, manifest["payloads"][name])
        except UserError as error:
            raise UserError(
                f"{folder / name}.npz is missing or damaged; remove it and run the same command again"
            ) from error
        shards.append(_read(path))
    codes, labels = (np.concatenate([shard[key] for shard in shards]).astype(np.int64) for key in ("codes", "labels"))
    expected = (manifest["sampling"]["num_samples"], manifest["grid_side"] ** 2)
    if codes.shape != expected or len(labels) != len(codes) or codes.max() >= manifest["codebook_size"]:
        raise UserError(
            f"{folder} holds codes {codes.shape} up to {codes.max()}, {MANIFEST} says {expected}; sample again"
        )
    return torch.from_numpy(codes), torch.from_numpy(labels)


def _origin(model: Transformer, sampling: recipe.Sampling, state_key: str, tokenizer: Path | None) -> dict[str, Any]:
    """Everything that decides the samples, and the tokenizer of weights that no stage made; the manifest's content."""
    origin = {
        "state": state_key,
        "sampling": sampling.model_dump(mode="json"),
        "codebook_size": model.codebook_size,
        "num_classes": model.num_classes,
        "grid_side": model.grid_side,
    }
    if tokenizer is None:
        return origin
    return origin | {"tokenizer": str(tokenizer.resolve()), "tokenizer_sha256": weights_sha256(tokenizer)}


def refuse_other_samples(
    folder: Path, model: Transformer, state_key: str, sampling: recipe.Sampling, tokenizer: Path
) -> None:
    """UserError if the shards in a folder are not of these weights and settings: they would be overwritten."""
    for path in sorted(folder.glob("shard-*.npz"))[:1]:
        with contextlib.suppress(*UNREADABLE):
            origin = json.loads(str(_read(path)["origin"]))
            if origin != _origin(model, sampling, state_key, tokenizer):
                raise UserError(
                    f"{folder} holds samples of other weights or settings, or for another tokenizer; choose another "
                    "folder or delete it"
                )


def _shards(folder: Path, sampling: recipe.Sampling) -> Iterator[tuple[Path, range]]:
    """All shards with the sample indices they hold."""
    for number, start in enumerate(range(0, sampling.num_samples, sampling.batch_size)):
        stop = min(start + sampling.batch_size, sampling.num_samples)
        yield folder / f"shard-{number:05d}.npz", range(start, stop)


def _draw_shard(
    path: Path,
    model: Transformer,
    sampling: recipe.Sampling,
    indices: range,
    origin: dict[str, Any],
    device: torch.device,
) -> None:
    """Draw the samples `indices` and write them."""
    batch = range(indices.start, indices.start + sampling.batch_size)
    labels = streams.labels(sampling.seed, batch, model.num_classes, sampling.labels)
    uniforms = streams.uniforms(sampling.seed, batch, model.num_tokens)
    codes = generate(
        model,
        torch.from_numpy(labels).to(device),
        torch.from_numpy(uniforms).to(device),
        guidance=sampling.guidance,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    size = len(indices)
    with states.atomic_file(path) as file:
        np.savez(
            file,
            codes=codes[:size].cpu().numpy().astype(np.uint16),
            labels=labels[:size],
            origin=np.array(json.dumps(origin, sort_keys=True)),
        )


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in ("codes", "labels", "origin")}


def _is_good(path: Path, origin: dict[str, Any], size: int) -> bool:
    """Whether a shard is there, undamaged (the zip's CRC-32 of each array), of this origin, and whole."""
    try:
        shard = _read(path)
    except UNREADABLE:
        return False
    return (
        str(shard["origin"]) == json.dumps(origin, sort_keys=True)
        and len(shard["codes"]) == len(shard["labels"]) == size
    )
