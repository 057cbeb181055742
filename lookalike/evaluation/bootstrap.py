"""Confidence intervals of a mean over queries: percentile bootstrap, queries resampled within their class.

Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 (percentile) and 8 (strata).
The classes are fixed: an interval says how a figure would vary with other queries of the same classes.
"""

from dataclasses import dataclass

import numpy as np

BATCH = 4_000_000  # draws held in memory at a time


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of the middle 95 % of its bootstrap distribution."""

    mean: float
    low: float
    high: float


def interval(values: np.ndarray, labels: np.ndarray, resamples: int, seed: int, *, by_class: bool = False) -> Interval:
    """Compute the mean of one value per query, float (Q,), with its 95 % interval.

    labels    str, (Q,): each class keeps its number of queries in every resample.
    by_class  whether to take the mean of the classes' means instead of the mean over queries.

    For a paired comparison, pass each query's difference.
    """
    rng = np.random.default_rng(seed)
    classes = [values[labels == label] for label in sorted(set(labels.tolist()))]
    weights = [1 / len(classes) if by_class else len(own) / len(values) for own in classes]
    means = np.zeros(resamples)
    for own, weight in zip(classes, weights, strict=True):
        step = max(1, BATCH // len(own))
        for start in range(0, resamples, step):
            shape = (min(step, resamples - start), len(own))
            means[start : start + step] += weight * own[rng.integers(0, len(own), shape)].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    mean = sum(weight * own.mean() for own, weight in zip(classes, weights, strict=True))
    return Interval(float(mean), float(low), float(high))
