"""Intervals of the figures."""

import numpy as np
import pytest

from lookalike.evaluation.bootstrap import interval
from tests.helpers.clustered_features import RNG


def test_an_interval_holds_the_mean_and_shrinks_with_more_queries() -> None:
    values = RNG.random(4000)
    labels = np.repeat(["a", "b"], 2000)
    many, few = interval(values, labels, 2000, 0), interval(values[::40], labels[::40], 2000, 0)
    assert many.low < many.mean < many.high
    assert many.mean == pytest.approx(values.mean())
    # normal theory: half-width 1.96 sd / sqrt(n)
    assert (many.high - many.low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(4000), rel=0.1)
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(np.sqrt(40), rel=0.25)


def test_resampling_stays_within_the_class() -> None:
    """Queries that agree within their class leave nothing to resample, however much the classes differ."""
    values = np.array([0.0] * 10 + [1.0] * 30)
    labels = np.array(["a"] * 10 + ["b"] * 30)
    assert interval(values, labels, 500, 0) == interval(values, labels, 500, 1)
    assert interval(values, labels, 500, 0).low == pytest.approx(0.75) == interval(values, labels, 500, 0).high
    assert interval(values, labels, 500, 0, by_class=True).mean == 0.5


def test_the_same_seed_gives_the_same_interval() -> None:
    values, labels = RNG.random(100), np.array(["a"] * 100)
    assert interval(values, labels, 500, 3) == interval(values, labels, 500, 3) != interval(values, labels, 500, 4)
