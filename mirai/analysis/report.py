"""A grid's figures, and pictures and pixels by hand: states and samples in, files out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from mirai.analysis.figures import plain_grid, sample_grid
from mirai.analysis.token_maps import token_map_figure
from mirai.data.images import centre_images
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.grid import Grid, Row
from mirai.experiments.plan import figure_key, lookup, record_key, row_metrics
from mirai.experiments.scale import Numerics, load_scale
from mirai.experiments.site import load_site
from mirai.experiments.stages import SamplesStage, StateStage
from mirai.sampling.dump import load_samples
from mirai.sampling.generate import generate
from mirai.sampling.streams import uniforms
from mirai.states import atomic_file, is_published, read_json
from mirai.store import decoded_samples, open_image_set, open_state, open_tokenizer, set_numerics
from mirai.tokenizer.store import decode_images
from mirai.tokenizer.vqgan import to_float

MAX_CLASSES = 10  # columns of a sample grid
PER_CLASS = 2
MAP_IMAGES = 4  # pictures of a token-map figure
ALIGNED_TWELFTH = 8  # "layer-8 internal representations" (Fig. 6), of 12


def draw(figure: str, grid: Grid) -> None:
    """Draw one of a grid's figures from the first seed of each row."""
    numerics = load_scale(grid.scale).numerics
    set_numerics(numerics)
    path = paths.figure(grid.scale, grid.name, figure)
    {"samples": _draw_samples, "token_maps": _draw_token_maps}[figure](grid, numerics, path)
    record_key(path, figure_key(grid.name, grid.scale, figure))


def _label(row: Row) -> str:
    return " ".join([row.label, *(f"{name} {value}" for name, value in row.axes.items())])


def _draw_samples(grid: Grid, numerics: Numerics, path: Path) -> None:
    """The same classes and seeds side by side: sample i of every row has the same label and the same random numbers."""
    rows = []
    for row in grid.available():
        stage = row_metrics(row)[0].samples
        codes, labels = (part.numpy() for part in load_samples(paths.folder("samples", stage.key)))
        numbers, counts = np.unique(labels, return_counts=True)
        classes = numbers[counts >= PER_CLASS][:MAX_CLASSES]
        chosen = [index for number in classes for index in np.flatnonzero(labels == number)[:PER_CLASS]]
        tokenizer = open_tokenizer(stage.state.codes_stage().tokenizer_stage(), numerics.device)
        rows.append((_label(row), decode_images(tokenizer, codes[chosen])))
    manifest = read_json(paths.manifest("codes", stage.state.codes_stage().key))
    sample_grid(path, rows, column_titles=[manifest["class_names"][number] for number in classes], title=None)


def _draw_token_maps(grid: Grid, numerics: Numerics, path: Path) -> None:
    """Hidden states of unseen images at the aligned layer; slot s is drawn at the cell it predicts (reading 9.21)."""
    states = [row_metrics(row)[0].samples.state for row in grid.available()]
    first = states[0]
    images = open_image_set(first.data, "validation", load_site(), MAP_IMAGES)
    pictures = centre_images(images)
    tokenizer = open_tokenizer(first.codes_stage().tokenizer_stage(), numerics.device)
    maps = []
    with torch.inference_mode():
        tokens = tokenizer.encode(to_float(torch.from_numpy(pictures).to(numerics.device)))  # (M,N)
        labels = torch.from_numpy(images.labels).to(numerics.device)
        for row, state in zip(grid.available(), states, strict=True):
            layer = ALIGNED_TWELFTH * state.model.num_layers // 12
            hidden = open_state(state, "raw", numerics).hidden_states(tokens[:, :-1], labels, layer)  # (M,N,D)
            maps.append((_label(row), hidden.float().cpu().numpy()))
    token_map_figure(path, pictures, maps, grid_side=first.grid_side, seed=0, layer=ALIGNED_TWELFTH)


def sample_picture(
    state_key: str,
    *,
    classes: list[int],
    rows: int,
    guidance: float,
    top_k: int,
    seed: int,
    weights: Literal["raw", "ema"],
    path: Path,
) -> None:
    """Draw `rows` samples of each class from a trained state into one picture, a column per class."""
    if path.suffix != ".png":
        raise UserError(f"--grid {path}: the picture is written as PNG; give a name that ends in .png")
    planned = lookup(state_key)
    stage, numerics = planned.stage, load_scale(planned.scale).numerics
    if not isinstance(stage, StateStage):
        raise UserError(f"{state_key} is a {stage.kind} stage, not a state")
    if not is_published(paths.manifest("state", state_key)):
        raise UserError(f"state {state_key} is not trained yet; `mirai train {state_key}` or Snakemake does that")
    set_numerics(numerics)
    model = open_state(stage, weights, numerics)
    wrong = [number for number in classes if not 0 <= number < model.num_classes]
    if wrong:
        raise UserError(f"--classes {wrong[0]}: classes go from 0 to {model.num_classes - 1}")
    labels = torch.tensor(classes * rows, device=numerics.device)
    indices = np.arange(len(labels))
    codes = generate(
        model,
        labels,
        torch.from_numpy(uniforms(seed, indices, model.num_tokens)).to(numerics.device),
        guidance=guidance,
        top_k=top_k,
    )
    tokenizer = open_tokenizer(stage.codes_stage().tokenizer_stage(), numerics.device)
    plain_grid(path, decode_images(tokenizer, codes.cpu().numpy()), columns=len(classes))


def export_samples(key: str, *, npz: Path | None, png: Path | None) -> None:
    """Decode a samples stage to an ADM .npz (arr_0, uint8, n x H x W x 3) or to one PNG per sample."""
    planned = lookup(key)
    if not isinstance(planned.stage, SamplesStage):
        raise UserError(f"{key} is a {planned.stage.kind} stage, not a samples stage")
    if not is_published(paths.manifest("samples", key)):
        raise UserError(f"samples {key} are not drawn yet; `mirai sample {key}` or Snakemake does that")
    images, labels = decoded_samples(planned.stage, load_scale(planned.scale).numerics)
    if npz is not None:
        with atomic_file(npz) as file:
            np.savez(file, images)
    if png is not None:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            with atomic_file(png / f"{index:06d}_class{label:04d}.png") as file:
                Image.fromarray(image).save(file, "PNG")
