"""Every kind of index over random vectors, and what each search promises, against numpy."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from lookalike.base import params
from lookalike.base.vectors import unit_length
from lookalike.index import build
from lookalike.index.base import EXACT_K, EXACT_SHARE, TARGET_K
from lookalike.index.build import Design, Index
from lookalike.refinement.refinement import OFF

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = params.load(ROOT / "params.yaml", "index", build.Settings)
RAW = replace(DEFAULTS, refine=OFF)
KINDS = [(kind, storage) for kind in ("flat", "hnsw", "ivf") for storage in ("float32", "float16", "int8")]
ALL = [*KINDS, ("ivfpq", "int8")]
each_of = pytest.mark.parametrize("kind, storage", ALL, ids=["-".join(pair) for pair in ALL])
BIG = 10_240  # from 10,000 rows FAISS shares a flat search between threads; from 9,984 ivfpq is offered


def random_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return unit_length(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


def design(kind: str, storage: str, lists: int = 20, effort: int = 0) -> Design:
    """A design of which nothing is tuned: little effort unless asked for."""
    if kind == "flat":
        return Design(kind=kind, storage=storage)
    if kind == "hnsw":
        return Design(kind=kind, storage=storage, neighbors=8, ef_construction=40, effort=effort or TARGET_K)
    return Design(
        kind=kind, storage=storage, lists=lists, code_bytes=4 if kind == "ivfpq" else 0, effort=effort or min(3, lists)
    )


def no_news(*_: object) -> None:
    """Takes what `choose` and `build` tell."""


@cache
def big(kind: str, storage: str) -> Index:
    """Built once: no test changes an index."""
    return build.build(random_vectors(BIG, 16), design(kind, storage))


def true_cosines(index: Index, queries: np.ndarray) -> np.ndarray:
    """Of the vectors as they are stored, float64, (Q, N)."""
    stored = index.vectors(np.arange(len(index))).astype(np.float64)
    return np.clip(queries.astype(np.float64) @ stored.T, -1, 1)


def compared_exactly(index: Index, k: int, allowed: np.ndarray) -> bool:
    count = int(allowed.sum())
    return count < EXACT_SHARE * len(index) or min(k, count) > EXACT_K * len(index)


def check_hits(index: Index, queries: np.ndarray, k: int, allowed: np.ndarray | None, *, exact: bool) -> None:
    """Everything that Index.search promises, against numpy."""
    cosines, rows = index.search(queries, k, allowed)
    assert (cosines.shape, cosines.dtype) == (rows.shape, np.float32) == ((len(queries), k), np.float32)
    assert rows.dtype == np.int64
    chosen = np.ones(len(index), bool) if allowed is None else allowed
    found = min(k, int(chosen.sum()))
    assert (rows[:, found:] == -1).all()
    assert (cosines[:, found:] == -np.inf).all()
    cosines, rows = cosines[:, :found], rows[:, :found]
    assert (rows >= 0).all()
    assert chosen[rows].all()
    assert all(len(set(own)) == found for own in rows.tolist())
    true = true_cosines(index, queries)
    assert np.allclose(cosines, np.take_along_axis(true, rows, axis=1), rtol=0, atol=1e-5)
    falls, next_row = np.diff(cosines, axis=1) < 0, np.diff(rows, axis=1) > 0
    assert (falls | ((np.diff(cosines, axis=1) == 0) & next_row)).all()
    if exact:  # which of several rows at the same cosine is found is left open
        best = -np.sort(-true[:, chosen], axis=1)[:, :found]
        assert np.allclose(cosines, best, rtol=0, atol=1e-5)
