"""Metrics of a ranking: pure functions from ranked relevance to numbers.

In all functions, `relevant` is bool, (..., K): whether the image at each rank is relevant, best first, without the
query itself; `n_relevant` is int, (...): R >= 1, the number of relevant images in the whole gallery, so that a miss
costs. Leading axes are queries; each function returns float64 of their shape.
"""

import numpy as np


def precision_at_k(relevant: np.ndarray, k: int) -> np.ndarray:
    """P@k = (hits among the first k) / k.

    The denominator is k even if fewer than k images are relevant, so P@k can stay below 1.
    Source: Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 8.4.

    >>> float(precision_at_k(np.array([True, False, True, False]), k=2))
    0.5
    """
    return np.asarray(_first(relevant, k).sum(axis=-1) / k)


def recall_at_k(relevant: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """R@k = (hits among the first k) / R.

    The denominator counts all relevant images of the gallery, uncapped, so R@k stays below 1 if R > k.
    Source: Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 8.3.

    >>> float(recall_at_k(np.array([True, False, True, False]), n_relevant=np.array(4), k=3))
    0.5
    """
    return np.asarray(_first(relevant, k).sum(axis=-1) / n_relevant)


def hit_at_k(relevant: np.ndarray, k: int) -> np.ndarray:
    """Top-k accuracy (hit rate): 1 if any of the first k is relevant, else 0. Neighbours do not vote.

    Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015, on top-5; retrieval's
    "Recall@k" of Jegou, Douze, Schmid, Product quantization for nearest neighbor search, 2011.

    >>> float(hit_at_k(np.array([False, False, True]), k=2)), float(hit_at_k(np.array([False, False, True]), k=3))
    (0.0, 1.0)
    """
    return np.asarray(_first(relevant, k).any(axis=-1), dtype=np.float64)


def average_precision(relevant: np.ndarray, n_relevant: np.ndarray) -> np.ndarray:
    """Average precision of a ranked list, without interpolation; its mean over queries is mAP.

        AP = 1/R * sum over hit ranks r of (hits among the first r) / r

    Source: Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 8.4.

    >>> float(average_precision(np.array([True, False, True]), n_relevant=np.array(2)))
    0.8333333333333333
    """
    hits = np.cumsum(relevant, axis=-1)
    ranks = np.arange(1, relevant.shape[-1] + 1)
    return np.asarray((hits / ranks * relevant).sum(axis=-1) / n_relevant)


def average_precision_at_k(relevant: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """Average precision of the first k; its mean over queries is mAP@k.

        AP@k = 1/min(R, k) * sum over hit ranks r <= k of (hits among the first r) / r

    k places hold at most min(R, k) relevant images, so a perfect list scores 1. (trec_eval's map_cut divides by R.)
    Source: Weyand, Araujo, Cao, Sim, Google Landmarks Dataset v2, CVPR 2020, section 5.1, mAP@100.

    >>> float(average_precision_at_k(np.array([True, False, True]), n_relevant=np.array(5), k=2))
    0.5
    """
    first = _first(relevant, k)
    return average_precision(first, np.minimum(n_relevant, k))


def r_precision(relevant: np.ndarray, n_relevant: np.ndarray) -> np.ndarray:
    """R-precision = (hits among the first R) / R.

    Source: Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 8.4.

    >>> float(r_precision(np.array([True, False, True]), n_relevant=np.array(2)))
    0.5
    """
    within = np.arange(relevant.shape[-1]) < np.asarray(n_relevant)[..., None]  # (..., K): ranks up to R
    return np.asarray((relevant & within).sum(axis=-1) / n_relevant)


def average_precision_at_r(relevant: np.ndarray, n_relevant: np.ndarray) -> np.ndarray:
    """Average precision of the first R; its mean over queries is mAP@R.

        AP@R = 1/R * sum over hit ranks r <= R of (hits among the first r) / r

    Source: Musgrave, Belongie, Lim, A Metric Learning Reality Check, ECCV 2020, section 3.2.

    >>> float(average_precision_at_r(np.array([True, False, True]), n_relevant=np.array(2)))
    0.5
    """
    within = np.arange(relevant.shape[-1]) < np.asarray(n_relevant)[..., None]
    return average_precision(relevant & within, n_relevant)


def ndcg_at_k(relevant: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain of the first k, gain 1 for a relevant image.

        NDCG@k = sum over hit ranks r <= k of 1/log2(r + 1)  /  sum over r = 1 .. min(R, k) of 1/log2(r + 1)

    The ideal list contains the relevant images of the whole gallery, so a miss costs.
    Source: Jarvelin, Kekalainen, Cumulated gain-based evaluation of IR techniques, TOIS 2002, with Burges's discount.

    >>> float(ndcg_at_k(np.array([False, True]), n_relevant=np.array(1), k=2).round(3))
    0.631
    """
    discount = 1 / np.log2(np.arange(2, k + 2))  # (k,)
    ideal = np.cumsum(discount)[np.minimum(n_relevant, k) - 1]
    return np.asarray((_first(relevant, k) * discount).sum(axis=-1) / ideal)


def reciprocal_rank(relevant: np.ndarray) -> np.ndarray:
    """1 / rank of the first hit, 0 without one; its mean over queries is MRR.

    Source: Voorhees, The TREC-8 Question Answering Track Report, 1999.

    >>> float(reciprocal_rank(np.array([False, True, True])))
    0.5
    """
    return np.asarray(relevant.any(axis=-1) / (relevant.argmax(axis=-1) + 1))


def interpolated_precision(relevant: np.ndarray, n_relevant: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Compute the precision-recall curve of each query: the best precision at each recall level or above.

    levels  float, (L,), in [0, 1].

    Returns float64, (..., L); 0 where the list never reaches the level.
    Source: Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 8.4, interpolated precision.

    >>> interpolated_precision(np.array([True, False, True]), np.array(2), np.array([0.0, 0.5, 1.0])).round(3).tolist()
    [1.0, 1.0, 0.667]
    """
    hits = np.cumsum(relevant, axis=-1)  # (..., K)
    precision = hits / np.arange(1, relevant.shape[-1] + 1)
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]  # best precision from each rank on
    needed = np.ceil(levels * np.asarray(n_relevant)[..., None] - 1e-9)  # (..., L) hits that reach the level
    flat_hits, flat_best, flat_needed = (array.reshape(-1, array.shape[-1]) for array in (hits, best, needed))
    curves = np.zeros((len(flat_hits), len(levels)))
    for row, (found, value, target) in enumerate(zip(flat_hits, flat_best, flat_needed, strict=True)):
        rank = np.searchsorted(found, target)  # the first rank with that many hits
        reached = rank < len(found)
        curves[row, reached] = value[rank[reached]]
    return curves.reshape(needed.shape)


def _first(relevant: np.ndarray, k: int) -> np.ndarray:
    if not 1 <= k <= relevant.shape[-1]:
        raise ValueError(f"k is {k}, but the list has {relevant.shape[-1]} ranks")
    return relevant[..., :k]
