"""Losses of fine-tuning: by hand, and against a loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.finetuning import losses
from tests.helpers.finetuning_settings import changed

pytestmark = pytest.mark.slow  # TensorFlow trains networks


ANGLES = np.deg2rad([0, 30, 60, 180])
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)  # (4, 2)


def test_supcon_by_hand() -> None:
    """Classes a, a, b: cosines 0.5 within a; b's image has no partner and is no anchor."""
    vectors = np.array([[1, 0], [0.5, 3**0.5 / 2], [0, 1]], np.float32)
    to_b = np.exp([0.0, 3**0.5 / 2])  # of the two images of a
    expected = np.mean([-np.log(np.exp(0.5) / (np.exp(0.5) + other)) for other in to_b])
    assert float(losses.supervised_contrastive(vectors, np.array([0, 0, 1]), 1.0)) == pytest.approx(expected, rel=1e-5)


def test_batch_hard_by_hand() -> None:
    """On a circle at 0, 30 (a), 60, 180 degrees (b): chords are 2 sin(angle / 2)."""
    chord = lambda degrees: 2 * np.sin(np.deg2rad(degrees / 2))  # noqa: E731
    anchors = [
        0.2 + chord(30) - chord(60),  # below zero: counts as zero
        0.2 + chord(30) - chord(30),
        0.2 + chord(120) - chord(30),
        0.2 + chord(120) - chord(150),
    ]
    expected = np.mean(np.maximum(anchors, 0))
    assert float(losses.triplet_hard(CIRCLE, np.array([0, 0, 1, 1]), 0.2)) == pytest.approx(expected, rel=1e-5)


def test_semi_hard_by_hand() -> None:
    """The same four. Where no negative is further than the pair, the furthest is taken."""
    square = lambda degrees: 4 * np.sin(np.deg2rad(degrees / 2)) ** 2  # noqa: E731
    pairs = [
        0.5 + square(30) - square(60),  # 0 with 30: negatives at 60, 180; the nearest beyond 30
        0.5 + square(30) - square(150),  # 30 with 0: negatives 30 away, which is not beyond, and 150
        0.5 + square(120) - square(60),  # 60 with 180: negatives 60 and 30 away, none beyond: the furthest
        0.5 + square(120) - square(150),  # 180 with 60: negatives 180 and 150 away: the nearer
    ]
    found = float(losses.triplet_semihard(CIRCLE, np.array([0, 0, 1, 1]), 0.5))
    assert found == pytest.approx(np.mean(np.maximum(pairs, 0)), abs=1e-5)


def naive(name: str, z: np.ndarray, y: np.ndarray, value: float) -> float:
    """The formulas of the docstrings, a loop a sum, float64."""
    z = z.astype(np.float64)
    n, terms = len(z), []
    distance = lambda i, j: np.sqrt(max(2 - 2 * z[i] @ z[j], 1e-12))  # noqa: E731
    for i in range(n):
        positives = [j for j in range(n) if j != i and y[j] == y[i]]
        negatives = [j for j in range(n) if y[j] != y[i]]
        if name == "supcon" and positives:
            total = sum(np.exp(z[i] @ z[a] / value) for a in range(n) if a != i)
            terms.append(-np.mean([np.log(np.exp(z[i] @ z[p] / value) / total) for p in positives]))
        elif name == "hard" and positives and negatives:
            worst = max(distance(i, p) for p in positives) - min(distance(i, k) for k in negatives)
            terms.append(max(0.0, value + worst))
        elif name == "semihard" and negatives:
            for p in positives:
                beyond = [distance(i, k) for k in negatives if distance(i, k) > distance(i, p)]
                chosen = min(beyond) if beyond else max(distance(i, k) for k in negatives)
                terms.append(max(0.0, value + distance(i, p) ** 2 - chosen**2))
    return float(np.mean(terms)) if terms else 0.0


LOSSES = {
    "supcon": losses.supervised_contrastive, "hard": losses.triplet_hard, "semihard": losses.triplet_semihard
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 4))
def test_losses_agree_with_a_loop_and_with_a_rotated_copy(name: str, seed: int, classes: int) -> None:
    """The reference, and the law: neither turning all vectors nor reordering the batch changes a loss."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(9, 5))
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    y = rng.integers(0, classes, 9)
    found = float(LOSSES[name](z, y, 0.3))
    assert found == pytest.approx(naive(name, z, y, 0.3), rel=1e-4, abs=1e-5)
    turn, order = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32), rng.permutation(9)
    assert float(LOSSES[name]((z @ turn)[order], y[order], 0.3)) == pytest.approx(found, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "reference", "value"),
    [
        ("supcon", "supcon", "temperature"),
        ("triplet-hard", "hard", "margin"),
        ("triplet-semihard", "semihard", "margin"),
    ],
)
def test_the_loss_is_the_one_that_is_set(name: str, reference: str, value: str) -> None:
    from lookalike.finetuning.trainer import loss_of

    codes = np.array([0, 0, 1, 1])
    found = float(loss_of(CIRCLE, codes, changed(**{"loss": name, value: 0.4})))
    assert found == pytest.approx(naive(reference, CIRCLE, codes, 0.4), rel=1e-4)
