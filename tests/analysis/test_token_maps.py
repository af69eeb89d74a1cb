"""Token maps: the smoothness of a field of states, the embedding, its colours and the figure."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.manifold import TSNE

from mirai.analysis import token_maps
from mirai.analysis.style import Sheet
from mirai.analysis.token_maps import (
    CORNERS,
    Maps,
    colours,
    embed_tokens,
    neighbour_ratio,
    neighbour_smoothness,
    token_map_figure,
)
from mirai.randomness import stream

pytestmark = pytest.mark.full


def smooth_field(side: int, width: int = 16) -> token_maps.Array:
    """States (side^2, width) that turn slowly over the grid."""
    y, x = np.array(np.divmod(np.arange(side**2), side)) / side
    waves = stream(0, "waves").uniform(-2, 2, (2, width))
    return np.cos(np.outer(x, waves[0]) + np.outer(y, waves[1]) + np.arange(width))


def shuffled(states: token_maps.Array) -> token_maps.Array:
    return stream(0, "shuffle").permutation(states)


@pytest.mark.parametrize("side", [4, 8, 16])
def test_a_smooth_field_is_smoother_than_chance_and_a_shuffled_one_is_not(side: int) -> None:
    states = smooth_field(side)
    assert neighbour_smoothness(states, side) < 0.5
    assert neighbour_smoothness(shuffled(states), side) == pytest.approx(1, abs=0.2)


def test_neighbours_are_right_and_below_without_wrapping_around() -> None:
    rows_differ = np.repeat(np.eye(4), 4, axis=0)  # the 4 tokens of a row are equal, tokens of two rows orthogonal
    chance = 6 * 16 / 120  # pairs of rows times pairs of tokens, of all pairs
    assert neighbour_smoothness(rows_differ, 4) == pytest.approx(0.5 / chance)
    columns_differ = np.tile(np.eye(4), (4, 1))
    assert neighbour_smoothness(columns_differ, 4) == pytest.approx(0.5 / chance)


def test_smoothness_is_of_directions_so_that_a_states_length_does_not_count() -> None:
    states = smooth_field(4)
    lengths = stream(0, "lengths").uniform(0.1, 10, (16, 1))
    assert neighbour_smoothness(states * lengths, 4) == pytest.approx(neighbour_smoothness(states, 4))


def test_collapsed_states_have_no_smoothness() -> None:
    assert math.isnan(neighbour_smoothness(np.full((16, 3), 2.0), 4))
    assert math.isnan(neighbour_smoothness(np.outer(np.arange(1, 17), [0.1, 0.2, 0.3]), 4))


def test_tokens_that_are_no_grid_of_the_side_are_refused() -> None:
    with pytest.raises(AssertionError, match="no grid of side 3"):
        neighbour_smoothness(np.eye(16), 3)


def test_embedding_is_a_function_of_states_and_seed() -> None:
    states = smooth_field(4).astype(np.float32)
    np.random.seed(1)
    first = embed_tokens(states, seed=3)
    np.random.seed(2)
    assert first.shape == (16, 2)
    assert np.array_equal(first, embed_tokens(states, seed=3))


@pytest.mark.parametrize("tokens", [4, 16, 64])
def test_perplexity_is_clipped_to_what_the_tokens_allow(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def recorded(*dimensions: int, perplexity: float, init: str, random_state: int) -> TSNE:
        asked.append(perplexity)
        return TSNE(*dimensions, perplexity=perplexity, init=init, random_state=random_state, max_iter=250)

    monkeypatch.setattr(token_maps, "TSNE", recorded)
    states = stream(0, "states").normal(size=(tokens, 8))
    assert np.isfinite(embed_tokens(states, seed=0, perplexity=12)).all()
    assert asked == [min(12, (tokens - 1) / 3)]


def test_embedding_keeps_two_groups_of_states_apart() -> None:
    states = stream(0, "groups").normal(size=(36, 8))
    states[18:] += 20
    embedding = embed_tokens(states, seed=0)
    distances = np.linalg.norm(embedding[:, None] - embedding, axis=-1)
    assert distances[:18, 18:].min() > distances[:18, :18].max() / 2
    assert distances[:18, 18:].mean() > 2 * distances[:18, :18].mean()


def test_equal_states_are_embedded_in_one_place_and_have_one_colour() -> None:
    embedding = embed_tokens(np.ones((16, 5)), seed=0)
    assert not embedding.any()
    assert colours(embedding) == pytest.approx(np.tile(CORNERS.mean(axis=0), (16, 1)))


def test_extreme_tokens_have_the_corner_colours() -> None:
    square = np.array([[0, 0], [5, 0], [0, 7], [5, 7]], np.float64)
    # Ties share their mean rank, 1/6 and 5/6 of four; a middle token keeps both axes symmetric.
    assert colours(square)[0] == pytest.approx((25 * CORNERS[0] + 5 * CORNERS[1] + 5 * CORNERS[2] + CORNERS[3]) / 36)
    diagonal = np.array([[0, 0], [1, 1], [9, 9]], np.float64)
    assert colours(diagonal) == pytest.approx(np.stack([CORNERS[0], CORNERS.mean(axis=0), CORNERS[3]]))
    falling = diagonal * [1, -1]
    assert colours(falling)[[0, 2]] == pytest.approx(CORNERS[[2, 1]])


def test_an_outlier_does_not_squeeze_the_colours_of_the_others() -> None:
    embedding = stream(0, "embedding").normal(size=(25, 2))
    embedding[0] = 10
    far = embedding.copy()
    far[0] = 1e6
    assert np.array_equal(colours(embedding), colours(far))


def maps_of(images: int, side: int) -> list[Maps]:
    smooth = np.stack([smooth_field(side) * (image + 1) + image for image in range(images)])
    scrambled = np.stack([shuffled(states) for states in smooth])
    return [Maps("LlamaGen-B", "#595959", scrambled), Maps("+ Mirai-I", "#0069B4", smooth)]


def test_figure_has_a_row_per_image_its_maps_in_raster_order_and_the_numbers_beside(tmp_path: Path) -> None:
    maps = maps_of(3, 4)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, ..., 1], images[1, ..., 1] = 200, 255
    token_map_figure(tmp_path / "map.png", images, maps, grid_side=4, seed=0, layer="layer 8", title="Layer 8")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.csv", "map.pdf", "map.png"]

    page = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    tops, lefts, sides = [], [], []
    for green in (200, 255):
        rows, columns = np.nonzero((page == (0, green, 0)).all(axis=-1))
        tops.append(rows.min())
        lefts.append(columns.min())
        sides.append(np.ptp(rows) + 1)
        assert len(rows) == (np.ptp(rows) + 1) ** 2
    assert lefts[0] == lefts[1]
    assert tops[1] > tops[0] + sides[0]
    cell = int(sides[0])
    middles = (np.arange(4) + 0.5) * cell / 4
    for image, top in enumerate(tops):
        for column, one in enumerate(maps, 1):
            left = lefts[0] + column * (cell + token_maps.GAP)
            field = page[np.ix_((top + middles).astype(int), (left + middles).astype(int))]
            expected = (colours(embed_tokens(one.hidden[image], seed=0)) * 255).round().reshape(4, 4, 3)
            assert np.array_equal(field, expected)

    with (tmp_path / "map.csv").open() as file:
        table = list(csv.DictReader(file))
    names = ["0", "1", "2", "mean", "standard deviation"]  # also of the third image, which is not drawn
    assert [(row["image"], row["method"]) for row in table] == [(name, one.label) for name in names for one in maps]
    hidden = {one.label: one.hidden for one in maps}
    for row in table[:6]:
        states = hidden[row["method"]][int(row["image"])]
        assert float(row["smoothness"]) == pytest.approx(neighbour_smoothness(states, 4), abs=1e-6)
        distances = token_maps.pdist(embed_tokens(states, seed=0))
        assert float(row["embedding_smoothness"]) == pytest.approx(neighbour_ratio(distances, 4), abs=1e-6)
    for measure in ("smoothness", "embedding_smoothness"):
        of_baseline = [float(row[measure]) for row in table[0:6:2]]
        assert float(table[6][measure]) == pytest.approx(np.mean(of_baseline), abs=1e-5)
        assert float(table[8][measure]) == pytest.approx(np.std(of_baseline, ddof=1), abs=1e-5)


@pytest.mark.parametrize(("images", "side", "pixels"), [(3, 4, 8), (1, 8, 32), (2, 16, 256)])
def test_numbers_stand_below_their_maps_and_means_only_where_there_are_several_images(
    images: int, side: int, pixels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets: list[Sheet] = []
    monkeypatch.setattr(Sheet, "save", lambda sheet, path: sheets.append(sheet))
    monkeypatch.setattr(token_maps, "embed_tokens", lambda hidden, *, seed: hidden[:, :2])
    maps = maps_of(images, side)
    pictures = np.zeros((images, pixels, pixels, 3), np.uint8)
    token_map_figure(tmp_path / "map.png", pictures, maps, grid_side=side, seed=0, layer="layer 8")

    values = {one.label: [neighbour_smoothness(states, side) for states in one.hidden] for one in maps}
    numbers = [
        text for _, _, text, _ in sorted(sheets[0].texts, key=lambda item: item[:2][::-1]) if text[:2] in ("0.", "1.")
    ]
    below = [f"{values[label][image]:.2f}" for image in range(images) for label in values]
    means = [f"{np.mean(values[label]):.2f} ± {np.std(values[label], ddof=1):.2f}" for label in values if images > 1]
    assert numbers == means + below
    heads = [text for _, _, text, _ in sheets[0].texts if text in ("Image", "LlamaGen-B", "+ Mirai-I")]
    assert heads == ["Image", "LlamaGen-B", "+ Mirai-I"]


def test_many_methods_stay_inside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[Sheet] = []
    monkeypatch.setattr(Sheet, "save", lambda sheet, path: sheets.append(sheet))
    monkeypatch.setattr(token_maps, "embed_tokens", lambda hidden, *, seed: hidden[:, :2])
    maps = [Maps(f"+ Mirai-E, K = {k}", "#C14A00", smooth_field(4)[None]) for k in range(14)]
    images = np.zeros((1, 8, 8, 3), np.uint8)
    token_map_figure(tmp_path / "map.png", images, maps, grid_side=4, seed=0, layer="layer 8")
    sheet = sheets[0]
    assert sheet.width <= token_maps.pixels(token_maps.TEXT_WIDTH)
    assert (sheet.canvas == np.round(CORNERS[0] * 255)).all(axis=-1).any(axis=None)  # the whole colour map is there
    assert (sheet.canvas == np.round(CORNERS[1] * 255)).all(axis=-1).any(axis=None)
    assert all(0 <= x <= sheet.width and 0 < y < sheet.height for x, y, _, _ in sheet.texts)
