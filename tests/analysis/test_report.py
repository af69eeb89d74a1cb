"""Figures of grids: which samples, which states, which lines are handed to the drawing."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from mirai.analysis import convergence, curves, report
from mirai.analysis.figures import Method
from mirai.analysis.style import METHOD_COLOURS
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.grid import Grid, Row, load_grid
from mirai.experiments.plan import figure_key, plan_grid
from mirai.experiments.recipe import Run
from tests.conftest import WriteGrid

ARMS = ("baseline", "mirai-i", "mirai-e")
LABELS = np.array([3, 7, 7, 0, 7, 3, 7, 1])  # of the samples: class 7 at 1, 2, 4, 6


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Callable[[Row], int]:
    """Eight samples of every row; the code and then the colour of sample i of row r is 20 r + i."""
    seen: list[Run] = []

    def number(row: Row) -> int:
        if row.runs[0] not in seen:
            seen.append(row.runs[0])
        return seen.index(row.runs[0])

    def decoded(tokenizer: object, codes: np.ndarray) -> np.ndarray:
        return np.broadcast_to(codes[:, :1, None, None], (len(codes), 8, 8, 3)).astype(np.uint8)

    monkeypatch.setattr(report, "_codes", lambda row: (20 * number(row) + np.arange(8)[:, None], LABELS))
    monkeypatch.setattr(report, "read_json", lambda path: {"class_names": [f"digit {name}" for name in range(10)]})
    monkeypatch.setattr(report, "open_tokenizer", lambda stage, device: None)
    monkeypatch.setattr(report, "decode_images", decoded)
    return number


def shown(methods: list[Method]) -> list[list[list[int]]]:
    """Per method and class, the colour of each sample."""
    return [[images[:, 0, 0, 0].tolist() for images in method.classes] for method in methods]


def arms(write_grid: WriteGrid, **keys: Any) -> Grid:
    rows = ({"label": arm, "arm": arm} for arm in ARMS)
    return plan_grid(write_grid(*rows, **keys), "digits")


def test_samples_of_every_row_are_those_of_the_same_indices_which_the_csv_names(
    write_grid: WriteGrid, stored: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(report, "sample_grid", lambda path, methods, **options: drawn.append((methods, options)))
    grid = arms(write_grid, figure={"kind": "samples", "classes": [207, 980, 3], "per_class": 2})
    report.draw(grid)
    methods, options = drawn[0]
    assert shown(methods) == [[[20 * row + i for i in part] for part in ([1, 2], [3], [0, 5])] for row in range(3)]
    assert [method.colour for method in methods] == [METHOD_COLOURS[arm] for arm in ARMS]
    assert options["class_names"] == ["digit 7", "digit 0", "digit 3"]  # modulo ten classes
    assert "digit 0: all 1 samples there are" in options["note"]
    assert "digit 7" not in options["note"]

    made = paths.product("digits", "own", ".png")
    with made.with_suffix(".csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["model"], row["class"], row["sample"]) for row in table[:5]] == [
        ("baseline", number, sample) for number, sample in (("7", "1"), ("7", "2"), ("0", "3"), ("3", "0"), ("3", "5"))
    ]
    assert {row["guidance"] for row in table} == {"1.5"}
    assert len({row["state"] for row in table}) == 3
    assert paths.key_record(made).read_text().strip() == figure_key("own", "digits")


def test_classes_that_are_one_at_a_small_scale_are_shown_once(write_grid: WriteGrid, stored: object) -> None:
    rows = arms(write_grid).available()
    chosen = report.choose(rows, (207, 817, 7, 9), 3)
    assert (chosen.classes, chosen.names) == ([7], ["digit 7"])  # there is no sample of 9
    assert [indices.tolist() for indices in chosen.indices] == [[1, 2, 4]]


def test_a_figure_of_classes_without_any_sample_is_refused(write_grid: WriteGrid, stored: object) -> None:
    sentence = "none of the figure's classes 9, 19 has a sample among the 8 of baseline; name other `classes`"
    with pytest.raises(UserError, match=sentence):
        report.choose(arms(write_grid).available(), (9, 19), 3)


def test_imagenets_folders_are_shown_by_their_names_in_words() -> None:
    folders = [f"n{number:08d}" for number in range(1000)]
    assert report.readable(folders, 207) == "golden retriever"
    assert report.readable(folders[:10], 7) == "n00000007"
    assert report.readable(["cat"] * 1000, 7) == "cat"


def fake_metrics(runs: tuple[Run, ...]) -> list[dict[str, Any]]:
    return [{"fid": 100.0 / run.epochs + (run.foresight is None), "spread": {}} for run in runs]


def test_a_curve_is_drawn_from_the_grids_metrics(write_grid: WriteGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "metrics_of", fake_metrics)
    drawn: list[Any] = []
    monkeypatch.setattr(report, "curve_figure", lambda path, lines, **options: drawn.append((path, lines, options)))
    rows = ({"label": arm, "arm": arm, "vary": {"epochs": [40, 80]}} for arm in ARMS)
    figure = {"kind": "curve", "x": "epochs", "curve": "trajectory"}
    report.draw(plan_grid(write_grid(*rows, figure=figure), "digits"))
    path, lines, options = drawn[0]
    assert path == Path("results/digits/own.png")
    assert [(line.label, list(line.curve)) for line in lines] == [(arm, [40, 80]) for arm in ARMS]
    assert (options["axis"], options["metric"], options["trajectory"]) == ("epochs", "fid", True)
    assert not path.with_suffix(".csv").exists()  # the table's


def test_convergence_shows_samples_after_the_longest_training_that_all_methods_have(
    write_grid: WriteGrid, stored: Callable[[Row], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (curves, convergence):
        monkeypatch.setattr(module, "metrics_of", fake_metrics)
    rows = [{"label": arm, "arm": arm, "vary": {"epochs": [40, 80]}} for arm in ARMS]
    rows[0] = {"label": "baseline", "arm": "baseline", "vary": {"epochs": [80, 40, 300]}}
    figure = {"kind": "convergence", "classes": [7], "per_class": 1}
    grid = plan_grid(write_grid(*rows, figure=figure), "digits")
    assert [row.runs[0].epochs for row in report._longest(grid)] == [80, 80, 80]
    figures: list[Figure] = []
    monkeypatch.setattr(report, "save_figure", lambda path, figure: figures.append(figure))
    report.draw(grid)
    samples, plotted = figures[0].axes
    assert [text.get_text() for text in samples.texts if text.get_text() in ARMS] == list(ARMS)
    assert any(text.get_text().startswith("Samples after 80 epochs.") for text in samples.texts)
    assert plotted.get_xlabel() == "Epochs"
    assert samples.get_position().x1 < plotted.get_position().x0


def test_token_maps_show_some_images_and_measure_more_at_the_asked_layer(
    write_grid: WriteGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    asked: list[tuple[int, int]] = []

    class Model:
        def hidden_states(
            self, tokens: torch.Tensor, labels: torch.Tensor, layer: int, *, consumed: bool
        ) -> torch.Tensor:
            asked.append((len(tokens), layer))
            assert len(tokens) == len(labels)
            assert not consumed
            return tokens[..., None].expand(-1, -1, 3)

    def encode(images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))[:, None].expand(-1, 16)

    codebook = SimpleNamespace(embedding=SimpleNamespace(weight=torch.zeros(1)))
    opened: list[str] = []
    monkeypatch.setattr(report, "open_state", lambda state, weights, numerics: opened.append(weights) or Model())
    monkeypatch.setattr(
        report, "open_tokenizer", lambda stage, device: SimpleNamespace(encode=encode, quantize=codebook)
    )
    drawn: list[Any] = []
    monkeypatch.setattr(
        report, "token_map_figure", lambda path, images, maps, **options: drawn.append((images, maps, options))
    )
    figure = {"kind": "token_maps", "images": 2, "measured_images": 11, "layer": 6}
    raw = arms(write_grid, figure=figure), figure_key("own", "digits")
    plan_grid.cache_clear()
    report.draw(arms(write_grid, figure=figure, defaults={"weights": "ema"}))
    assert opened == ["ema"] * 3
    assert figure_key("own", "digits") != raw[1]
    images, maps, options = drawn[0]
    assert images.shape == (2, 32, 32, 3)
    assert [(one.label, one.hidden.shape) for one in maps] == [(arm, (11, 16, 3)) for arm in ARMS]
    assert len(np.unique(maps[0].hidden[:, 0, 0])) == 11  # every image once, in order
    assert {layer for _, layer in asked} == {6}
    assert options["layer"] == "layer 6"
    assert options["grid_side"] == 4


@pytest.mark.parametrize(("scale", "cells"), [("digits", 16), ("demo", 64), ("imagenet256", 256)])
def test_neighbourhoods_are_of_the_scales_own_token_grid(
    scale: str, cells: int, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(report, "neighbourhood_figure", lambda path, shown, **options: drawn.append(shown))
    monkeypatch.setattr(report, "set_numerics", lambda numerics: None)
    monkeypatch.setattr(report, "record_key", lambda path, key: None)
    report.draw(load_grid("figure2", scale))
    assert [(one.layout, len(one.offsets)) for one in drawn[0]] == [
        (layout, k) for layout in ("1D", "2D") for k in (1, 3, 4, 9)
    ]
    assert {one.valid.shape[0] for one in drawn[0]} == {cells}
