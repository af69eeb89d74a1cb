"""Released weights in this project's format: a folder each, safetensors beside a manifest with recipe and origin."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mirai.errors import UserError
from mirai.experiments import paths, recipe
from mirai.experiments.public_files import check_released
from mirai.experiments.scale import load_scale
from mirai.models.transformer import Transformer
from mirai.models.weights import load_model, transformer_tensors
from mirai.ranks import Ranks
from mirai.released import read_checkpoint
from mirai.sampling.dump import refuse_other_samples, sample_codes
from mirai.states import is_published, publish, read_json, save_tensors, sha256
from mirai.tokenizer.store import MANIFEST as TOKENIZER
from mirai.tokenizer.store import import_tokenizer, save_tokenizer, tokenizer_recipe

TRANSFORMER = "transformer.json"
VQ_MULTIPLIERS = {5: (1, 1, 2, 2, 4), 4: (1, 2, 2, 4)}  # levels -> widths of VQ-16 and VQ-8


@dataclass(frozen=True)
class Imported:
    """A released model, and where the tokenizer of its codes is."""

    name: str
    model: Transformer
    tokenizer_folder: Path
    origin: str  # SHA-256 of the weights


def import_transformer(
    file: Path, folder: Path, *, order: Literal["llamagen", "par"], resolution: int | None = None, ema: bool = False
) -> None:
    """Write a released LlamaGen or PAR file as weights.safetensors and transformer.json.

    The resolution it was trained at is in no tensor: it is taken from the stored arguments (image_size), else from the
    file's name (c2i_B_256.pt). UserError if that says nothing, or the file is something else.
    """
    weights_kind = "ema" if ema else "raw"
    if _is_there(folder / TRANSFORMER, file):
        there = read_json(folder / TRANSFORMER)
        same_order = (there["model"]["token_order"] != "raster") == (order == "par")
        if there["weights"] != weights_kind or resolution not in (None, there["resolution"]) or not same_order:
            raise UserError(
                f"{folder} holds the {there['weights']} weights of {file.name} at {there['resolution']} px in "
                f"{there['model']['token_order']} order, imported before; choose another folder by --to, or delete it"
            )
        return
    checkpoint, source = read_checkpoint(file, ema=ema), _source(file)
    sizes = {name: size.model for name, size in load_scale(paths.PAPER_SCALE).sizes.items()}
    size, model, tensors = transformer_tensors(checkpoint, sizes)
    if (order == "par") != (model.token_order != "raster"):
        right = "llamagen" if order == "par" else "par"
        raise UserError(f"{file} is of the other kind; `mirai import {right} {file}` takes it")
    side = resolution or _resolution(file, checkpoint.arguments.get("image_size"))
    downsampling = int(checkpoint.arguments.get("downsample_size", 16))  # sharded files do not say: LlamaGen's default
    if side < 1 or side % downsampling:
        raise UserError(f"a resolution of {side} is no multiple of {downsampling}, the pixels of one token")
    across, grid_side = math.isqrt(recipe.GROUP_SIZES[model.token_order]), side // downsampling
    if grid_side % across or (across > 1 and grid_side == across):
        raise UserError(
            f"a resolution of {side} gives {grid_side}x{grid_side} tokens, which {model.token_order} cannot cut into "
            f"{across}x{across} equal regions of several tokens"
        )
    content = {
        "name": file.stem,
        "size": size,
        "model": model.model_dump(mode="json"),
        "codebook_size": len(tensors["tok_embeddings.weight"]),
        "resolution": side,
        "downsampling": downsampling,
        "weights": weights_kind,
        "source": source,
    }
    weights = save_tensors(folder / "weights.safetensors", {f"model/{name}": value for name, value in tensors.items()})
    publish(folder / TRANSFORMER, content, {"weights": weights})


def import_vq(file: Path, folder: Path, *, ema: bool = False) -> None:
    """Write LlamaGen's released VQ-16 or VQ-8 as weights.safetensors and tokenizer.json."""
    weights_kind = "ema" if ema else "raw"
    if _is_there(folder / TOKENIZER, file):
        there = read_json(folder / TOKENIZER)["report"]["weights"]
        if there != weights_kind:
            raise UserError(f"{folder} holds the {there} weights of {file.name}; choose another folder by --to")
        return
    tensors, source = read_checkpoint(file, ema=ema).tensors, _source(file)
    levels = {name.split(".")[2] for name in tensors if name.startswith("encoder.conv_blocks.")}
    if "tok_embeddings.weight" in tensors:
        raise UserError(f"{file} holds a transformer, no tokenizer; `mirai import llamagen {file}` takes it")
    if len(levels) not in VQ_MULTIPLIERS:
        raise UserError(f"{file} holds neither VQ-16 nor VQ-8: its encoder has {len(levels)} levels, theirs 5 and 4")
    multipliers = VQ_MULTIPLIERS[len(levels)]
    tokenizer = recipe.Tokenizer(name=f"VQ-{2 ** (len(levels) - 1)}", multipliers=multipliers, weights=file.stem)
    report = {"source": source, "weights": weights_kind}
    save_tokenizer(folder, import_tokenizer(file, tokenizer, ema=ema), tokenizer, report)


def open_imported(
    folder: Path,
    *,
    tokenizer: Path | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Imported:
    """The one model in a folder or in its sub-folders, with the tokenizer given or the only one beside it that fits.

    `device` None is a GPU if torch sees one; `dtype` is the transformer's. UserError where there is none,
    where the user must choose, and where the tokenizer has other codes than the model.
    """
    home = _only(folder, _holding(TRANSFORMER, [folder, *_children(folder)]), "model", "llamagen", "--weights")
    manifest = read_json(home / TRANSFORMER)
    near = _holding(TOKENIZER, [tokenizer] if tokenizer is not None else [home, *_children(home.parent)])
    fitting = [place for place in near if _fits(tokenizer_recipe(place), manifest)]
    tokenizer_folder = _only(tokenizer or home.parent, fitting or near[:1], "tokenizer", "vq", "--tokenizer")
    tokens = tokenizer_recipe(tokenizer_folder)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no GPU here; --device cpu works everywhere")
    if tokens.codebook_size != manifest["codebook_size"]:
        raise UserError(
            f"{home} has a vocabulary of {manifest['codebook_size']} codes, {tokenizer_folder} of "
            f"{tokens.codebook_size}; give its own tokenizer by --tokenizer"
        )
    if tokens.downsampling != manifest.get("downsampling", 16):
        raise UserError(
            f"{home} writes codes of {manifest.get('downsampling', 16)} pixels a side, {tokenizer_folder} decodes those of "
            f"{tokens.downsampling}; give its own tokenizer by --tokenizer"
        )
    model = load_model(
        home / TRANSFORMER,
        recipe.Model.model_validate_json(json.dumps(manifest["model"])),
        codebook_size=tokens.codebook_size,
        grid_side=manifest["resolution"] // tokens.downsampling,
        device=device,
    )
    weights = manifest["payloads"]["weights"]["sha256"]
    return Imported(manifest["name"], model.to(getattr(torch, dtype)), tokenizer_folder, weights)


def sample_imported(
    folder: Path, out: Path, sampling: recipe.Sampling, ranks: Ranks, *, tokenizer: Path | None = None
) -> None:
    """Draw many samples of imported weights into `out`, this rank its share. Interrupted, the same call goes on.

    UserError if `out` holds samples of other weights or settings.
    """
    with ranks.together():
        imported = open_imported(folder, tokenizer=tokenizer, device=str(ranks.device))
        refuse_other_samples(out, imported.model, imported.origin, sampling, imported.tokenizer_folder)
    with ranks.together():
        sample_codes(
            out,
            imported.model,
            sampling,
            state_key=imported.origin,
            tokenizer=imported.tokenizer_folder,
            device=ranks.device,
            progress=ranks.writes,
            rank=ranks.rank,
            ranks=ranks.world,
        )


def _is_there(manifest: Path, file: Path) -> bool:
    """Whether this file was imported to here before; UserError if it was another one."""
    other = any((manifest.parent / name).exists() for name in {TRANSFORMER, TOKENIZER} - {manifest.name})
    content = read_json(manifest) if is_published(manifest) else {}
    source = content.get("source") or content.get("report", {}).get("source", {})
    if other or (content and "file" not in source):  # without a file: a tokenizer that was trained, or made by a stage
        raise UserError(f"{manifest.parent} holds other weights already; choose another folder by --to")
    if content and file.is_file() and source["sha256"] != sha256(file):
        raise UserError(
            f"{manifest.parent} holds the weights of another {source['file']}; choose another folder by --to"
        )
    return bool(content)


def _source(file: Path) -> dict[str, object]:
    """For a manifest; UserError for a file under a released one's name that is another."""
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": check_released(file)}


def _resolution(file: Path, argument: object) -> int:
    named = re.search(r"_(256|384|512)\b", file.stem)
    if isinstance(argument, int):
        return argument
    if named is None:
        raise UserError(f"{file} does not say at which resolution it was trained; give --resolution 256 or 384")
    return int(named[1])


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def _holding(manifest: str, folders: Iterable[Path]) -> list[Path]:
    return [folder for folder in folders if (folder / manifest).exists()]


def _fits(tokens: recipe.Tokenizer, model: Mapping[str, Any]) -> bool:
    """Whether a tokenizer decodes what a model of this manifest writes."""
    return (tokens.codebook_size, tokens.downsampling) == (model["codebook_size"], model.get("downsampling", 16))


def _only(place: Path, found: Sequence[Path], what: str, command: str, option: str) -> Path:
    """The one folder of those found."""
    if not found:
        raise UserError(f"{place} holds no imported {what}; `mirai import {command} FILE --to {place}/NAME` makes one")
    if len(found) > 1:
        raise UserError(f"{place} holds several {what}s ({', '.join(map(str, found))}); name one by {option}")
    return found[0]
