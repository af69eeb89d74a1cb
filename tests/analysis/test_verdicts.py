"""A difference counts when it is more than the seeds' own, and its sign means what the metric means."""

from __future__ import annotations

import pytest

from mirai.analysis.verdicts import Verdict, verdict


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def compare(differences: list[float], metric: str = "fid") -> Verdict:
    """Of a row that differs so from a baseline whose own values are all over the place."""
    baseline = [40.0, 10.0, 25.0, 31.0][: len(differences)]
    mine = [value + difference for value, difference in zip(baseline, differences, strict=True)]
    found = verdict(seeds(*mine), seeds(*baseline), metric)
    assert found is not None
    return found


def test_the_interval_is_students() -> None:
    found = compare([-1.0, -2.0, -3.0])
    margin = 4.302653 / 3**0.5  # t(0.975, 2) times a deviation of 1 over the root of n
    assert (found.difference, found.seeds) == (pytest.approx(-2.0), 3)
    assert (found.low, found.high) == (pytest.approx(-2 - margin), pytest.approx(-2 + margin))
    assert found.word == "within noise"


def test_differences_are_paired_so_that_what_seeds_share_cancels() -> None:
    assert compare([-2.0, -2.1, -1.9]).word == "better"
    assert compare([2.0, 2.1, 1.9]).word == "worse"


@pytest.mark.parametrize(
    ("metric", "word"),
    [("fid", "worse"), ("sfid", "worse"), ("inception_score", "better"), ("precision", "better"), ("recall", "better")],
)
def test_more_is_better_or_worse_as_the_metric_means_it(metric: str, word: str) -> None:
    assert compare([2.0, 2.1, 1.9], metric).word == word


def test_one_common_seed_gives_a_difference_and_no_verdict() -> None:
    found = verdict({0: 5.0, 1: 6.0}, {1: 7.0, 2: 1.0}, "fid")
    assert found == Verdict("one seed", 1, -1.0)
    assert verdict({0: 5.0}, {1: 7.0}, "fid") is None


def test_no_difference_at_all_is_within_noise() -> None:
    assert compare([0.0, 0.0, 0.0]).word == "within noise"
