"""A grid's figure: samples, states and metrics in, files out. Pictures are of the first seed of each row."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mirai.analysis.convergence import epochs_to_reach, goal
from mirai.analysis.curves import convergence_plot, curve_figure, lines_of
from mirai.analysis.figures import Method, sample_grid, sample_sheet
from mirai.analysis.neighbourhoods import Neighbourhood, neighbourhood_figure
from mirai.analysis.style import DPI, base_colour, look, pixels, run_colour, save_figure
from mirai.analysis.token_maps import Maps, token_map_figure
from mirai.data.images import centre_images
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.figures import Convergence, Curve, Neighbourhoods, Samples, TokenMaps
from mirai.experiments.grid import Grid, Row
from mirai.experiments.offsets import grid_offsets, scan_offsets
from mirai.experiments.plan import figure_key, record_key, row_metrics
from mirai.experiments.scale import Numerics, load_scale
from mirai.experiments.site import load_site
from mirai.foresight.neighbourhoods import targets_of
from mirai.sampling.dump import load_samples
from mirai.states import read_json, write_text
from mirai.store import open_image_set, open_state, open_tokenizer, set_numerics
from mirai.tokenizer.passes import encode_pixels
from mirai.tokenizer.store import decode_images

Indices = npt.NDArray[np.int64]

FIRST_CLASSES = 10  # of a figure that names none
SAMPLES_WIDTH, CONVERGENCE_PLOT, MOST_HEIGHT = 3.5, (3.3, 2.8), 3.8  # inches: Fig. 1's samples; its curves
MAP_BATCH = 8  # images through the model at once


def draw(grid: Grid) -> None:
    """Write a grid's figure as .png and .pdf, and its data as .csv unless a table has them."""
    path = paths.product(grid.scale, grid.name, ".png")
    numerics = load_scale(grid.scale).numerics
    set_numerics(numerics)
    match grid.figure:
        case Curve():
            draw_curve(grid, grid.figure, path)
        case Convergence():
            draw_convergence(grid, grid.figure, path, numerics.device)
        case Samples():
            draw_samples(grid, grid.figure, path, numerics.device)
        case TokenMaps():
            draw_token_maps(grid, grid.figure, path, numerics)
        case Neighbourhoods():
            draw_neighbourhoods(grid, grid.figure, path)
        case None:
            raise AssertionError(f"{grid.name} has no figure")  # figure_inputs has refused it
    record_key(path, figure_key(grid.name, grid.scale))


def draw_curve(grid: Grid, figure: Curve, path: Path) -> None:
    """A metric along an axis (Figs. 3, 4, 5, 7)."""
    trajectory = figure.curve == "trajectory"
    lines = lines_of(grid, figure.x, figure.metric)
    note = _seeds(grid) + ("; states on the way of the longest runs" if trajectory else "")
    curve_figure(path, lines, axis=figure.x, metric=figure.metric, trajectory=trajectory, note=note)


def draw_convergence(grid: Grid, figure: Convergence, path: Path, device: str) -> None:
    """Fig. 1: samples after the longest training that all methods have, beside the metric against epochs."""
    rows = _longest(grid)
    chosen = choose(rows, figure.classes, figure.per_class)
    papers = [(SAMPLES_WIDTH, bands) for bands in range(1, len(chosen.classes) + 1)]
    after = ", ".join(map(str, sorted({row.epochs for row in rows})))
    note = f"Samples after {after} epochs. Curves: {_seeds(grid)[0].lower()}{_seeds(grid)[1:]}."
    sheet = sample_sheet(
        _methods(rows, [row.label for row in rows], chosen, device), class_names=chosen.names, papers=papers, note=note
    )
    width, height = CONVERGENCE_PLOT
    trajectory = figure.curve == "trajectory"
    with look():
        drawn = sheet.figure(beside=pixels(width), least_height=pixels(height))
        top = drawn.get_figheight()
        used = min(top, MOST_HEIGHT)
        box = sheet.width / DPI + 0.6, top - used + 1.15, width - 0.65, used - 1.2
        lines = lines_of(grid, "epochs", figure.metric)
        plotted = goal(grid), epochs_to_reach(grid)
        convergence_plot(drawn, box, lines, *plotted, metric=figure.metric, trajectory=trajectory)
        save_figure(path, drawn)


def _longest(grid: Grid) -> list[Row]:
    """A row per label: of the longest training that all labels have, or of each one's own longest."""
    lines = grid.by_epochs().values()
    common = set.intersection(*map(set, lines))
    return [rows[max(common or rows)] for rows in lines]


def _seeds(grid: Grid) -> str:
    count = len(grid.seeds)
    return f"Scale {grid.scale}, " + (f"mean ± standard deviation of {count} seeds" if count > 1 else "one seed")


@dataclass(frozen=True)
class Choice:
    """Which samples a figure shows: per class, indices into the samples of every row alike."""

    classes: list[int]
    names: list[str]
    indices: list[Indices]


def choose(rows: Sequence[Row], classes: Sequence[int] | None, per_class: int) -> Choice:
    """The first samples of each class: sample i of every row has the same label and the same random numbers."""
    _, labels = _codes(rows[0])
    names = read_json(paths.manifest("codes", row_metrics(rows[0])[0].samples.state.codes_stage().key))["class_names"]
    wanted = range(FIRST_CLASSES) if classes is None else classes
    # a small set's classes, each once; one without a single sample has no column
    present = [number for number in dict.fromkeys(one % len(names) for one in wanted) if (labels == number).any()]
    if not present:
        raise UserError(
            f"none of the figure's classes {', '.join(map(str, wanted))} has a sample among the {len(labels)} of "
            f"{rows[0].label}; name other `classes`, or draw more samples"
        )
    indices = [np.flatnonzero(labels == number)[:per_class] for number in present]
    return Choice(present, [readable(names, number) for number in present], indices)


def readable(names: Sequence[str], number: int) -> str:
    """A class's name; of ImageNet's folders, which are named by WordNet's numbers, the one in words."""
    if len(names) != 1000 or not re.fullmatch(r"n\d{8}", names[number]):
        return names[number]
    from torchvision.models import ResNet18_Weights  # a second to import

    words: str = ResNet18_Weights.DEFAULT.meta["categories"][number]
    return words


def _codes(row: Row) -> tuple[Indices, Indices]:
    """Codes (n,N) and labels (n,) of a row's samples."""
    codes, labels = load_samples(paths.folder("samples", row_metrics(row)[0].samples.key))
    return codes.numpy(), labels.numpy()


def _methods(rows: Sequence[Row], labels: Sequence[str], chosen: Choice, device: str) -> list[Method]:
    """The chosen samples of every row, decoded."""
    methods = []
    for row, label in zip(rows, labels, strict=True):
        codes, classes = _codes(row)
        tokenizer = open_tokenizer(row_metrics(row)[0].samples.state.codes_stage().tokenizer_stage(), device)
        images = decode_images(tokenizer, codes[np.concatenate(chosen.indices)])
        for number, indices in zip(chosen.classes, chosen.indices, strict=True):
            assert (classes[indices] == number).all(), "rows of one scale share the labels of their samples"
        ends = np.cumsum([len(indices) for indices in chosen.indices])
        methods.append(Method(label, base_colour(run_colour(row.runs[0])), np.split(images, ends[:-1])))
    return methods


def _label(row: Row) -> str:
    return " ".join([row.label, *(f"{name} {value}" for name, value in row.axes.items())])


def draw_samples(grid: Grid, figure: Samples, path: Path, device: str) -> None:
    """Samples of every row at the same classes and seeds (Figs. 8, 10-15)."""
    rows = grid.available()
    chosen = choose(rows, figure.classes, figure.per_class)
    guidance = sorted({row.runs[0].sampling.guidance for row in rows})
    notes = [f"Scale {grid.scale}", f"guidance scale {', '.join(f'{scale:g}' for scale in guidance)}"]
    short = {name: len(of_class) for name, of_class in zip(chosen.names, chosen.indices, strict=True)}
    if figure.classes and max(figure.classes) != max(chosen.classes):
        notes.append("classes modulo the number of classes")
    notes += [f"{name}: all {count} samples there are" for name, count in short.items() if count < figure.per_class]
    title = grid.title if len(rows) == 1 else None  # the rows' names stand beside them
    methods = _methods(rows, list(map(_label, rows)), chosen, device)
    sample_grid(path, methods, class_names=chosen.names, title=title, note="; ".join(notes) + ".")

    lines: list[tuple[object, ...]] = [("model", "class", "class_name", "sample", "guidance", "state")]
    for row in rows:
        stage = row_metrics(row)[0].samples
        for number, name, indices in zip(chosen.classes, chosen.names, chosen.indices, strict=True):
            lines += [
                (_label(row), number, name, i, stage.sampling.guidance, stage.state.key) for i in indices.tolist()
            ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text(path.with_suffix(".csv"), text.getvalue())


def draw_token_maps(grid: Grid, figure: TokenMaps, path: Path, numerics: Numerics) -> None:
    """Hidden states of unseen images at the aligned layer; a state is drawn at the cell it predicts (reading 9.21)."""
    rows = grid.available()
    states = [row_metrics(row)[0].samples.state for row in rows]
    first = states[0]
    images = open_image_set(first.data, "validation", load_site(), max(figure.images, figure.measured_images))
    pictures = centre_images(images)
    tokenizer = open_tokenizer(first.codes_stage().tokenizer_stage(), numerics.device)
    tokens = torch.from_numpy(encode_pixels(tokenizer, pictures)).to(numerics.device).split(MAP_BATCH)  # (M,N) each
    labels = torch.from_numpy(images.labels).to(numerics.device).split(MAP_BATCH)
    maps = []
    with torch.inference_mode():
        for row, state in zip(rows, states, strict=True):
            model = open_state(state, row.runs[0].sampling.weights, numerics)
            layer = max(1, figure.layer * state.model.num_layers // 12)
            hidden = [
                model.hidden_states(codes, of_codes, layer, consumed=False).float().cpu().numpy()  # (M,N,D)
                for codes, of_codes in zip(tokens, labels, strict=True)
            ]
            maps.append(Maps(_label(row), base_colour(run_colour(row.runs[0])), np.concatenate(hidden)))
    depths = {state.model.num_layers for state in states}
    layer_name = f"layer {layer}" if len(depths) == 1 else f"{figure.layer}/12 of the layers"
    token_map_figure(path, pictures[: figure.images], maps, grid_side=first.grid_side, seed=0, layer=layer_name)


def draw_neighbourhoods(grid: Grid, figure: Neighbourhoods, path: Path) -> None:
    """The positions that the objective asks `targets_of` for on this scale's grid (Fig. 2)."""
    scale = load_scale(grid.scale)
    side = scale.data.resolution // scale.tokenizer.downsampling
    shown = []
    for layout in figure.layouts:
        for k in figure.num_tokens:
            offsets = grid_offsets(k) if layout == "2D" else scan_offsets(k)
            targets, valid = targets_of(offsets, layout, side)
            shown.append(Neighbourhood(layout, offsets, targets.numpy(), valid.numpy()))
    neighbourhood_figure(path, shown, columns=len(figure.num_tokens))
