from __future__ import annotations

import numpy as np
import pytest

from mirai.sampling import streams


def test_a_row_depends_on_the_seed_and_its_index_only() -> None:
    rows = streams.uniforms(0, range(10), 16)
    assert rows.shape == (10, 16)
    assert rows.dtype == np.float64
    assert 0 <= rows.min() < rows.max() < 1
    assert np.array_equal(streams.uniforms(0, [7, 2], 16), rows[[7, 2]])
    assert len(np.unique(rows)) == 160
    assert not np.isin(streams.uniforms(1, range(10), 16), rows).any()
    assert streams.uniforms(0, [], 16).shape == (0, 16)


@pytest.mark.parametrize("kind", ["uniform", "balanced"])
def test_a_label_depends_on_the_seed_and_its_index_only(kind: str) -> None:
    labels = streams.labels(0, range(3000), 10, kind)  # type: ignore[arg-type]
    assert labels.dtype == np.int64
    assert set(labels) == set(range(10))
    chosen = [2999, 0, 1024, 17]
    assert np.array_equal(streams.labels(0, chosen, 10, kind), labels[chosen])  # type: ignore[arg-type]
    assert not np.array_equal(streams.labels(1, range(3000), 10, kind), labels)  # type: ignore[arg-type]


def test_balanced_labels_hold_every_class_once_per_block_in_changing_order() -> None:
    blocks = streams.labels(0, range(50), 10, "balanced").reshape(5, 10)
    assert all(sorted(block) == list(range(10)) for block in blocks.tolist())
    assert len({tuple(block) for block in blocks.tolist()}) == 5


def test_uniform_labels_are_independent_draws() -> None:
    counts = np.bincount(streams.labels(0, range(20_000), 10, "uniform"), minlength=10)
    assert (
        1800 < counts.min() < 2000 < counts.max() < 2200
    )  # standard deviation 42; exactly 2000 each would be balanced
