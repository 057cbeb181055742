"""The parts of the index, each by hand: what a design becomes in FAISS, when it is asked how, what is tried and chosen.

tests/test_indexes.py holds every kind against exact search; here each line has its own small case, in milliseconds.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import convert, to_builtins
from msgspec.structs import replace

from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import unit_length
from lookalike.index import base, build, files, flat, tuning
from lookalike.index.build import Design, Index, Sample
from lookalike.index.candidates import Wanted, candidates, make_index, predicted_bytes
from lookalike.index.flat import Flat
from lookalike.index.hnsw import Hnsw
from lookalike.index.hnsw import Settings as HnswSettings
from lookalike.index.ivf import Ivf
from lookalike.index.ivf import Settings as IvfSettings
from lookalike.index.storage import quantizer
from lookalike.index.tuning import Tuned, tune
from lookalike.refinement.faiss_setup import faiss
from lookalike.refinement.refinement import OFF, Refinement

IP = faiss.METRIC_INNER_PRODUCT
GRAPH = HnswSettings(neighbors=5, ef_construction=30)
LISTS = IvfSettings(lists=0, code_bytes=4)


def vectors_of(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return unit_length(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


VECTORS, QUERIES = vectors_of(120), vectors_of(6, seed=1)
COSINES = QUERIES @ VECTORS.T  # (6, 120)
PLANS = {
    "flat": Design(kind="flat", storage="float32"),
    "hnsw": Design(kind="hnsw", storage="float32", neighbors=16, ef_construction=60, effort=120),
    "ivf": Design(kind="ivf", storage="float32", lists=3, effort=3),
}


def exactly(message: str) -> Any:
    return pytest.raises(LookalikeError, match=f"^{re.escape(message)}$")


# --- what FAISS is told ----------------------------------------------------------------------------------------------


def test_a_storage_has_faisss_name() -> None:
    assert quantizer("float16") == faiss.ScalarQuantizer.QT_fp16
    assert quantizer("int8") == faiss.ScalarQuantizer.QT_8bit


def test_flat_in_faiss() -> None:
    whole = Flat.make(Design(kind="flat", storage="float32"), 7)
    assert (type(whole), whole.d, whole.metric_type) == (faiss.IndexFlatIP, 7, IP)
    for storage in ("float16", "int8"):
        rounded = Flat.make(Design(kind="flat", storage=storage), 7)
        assert (rounded.d, rounded.metric_type, rounded.sq.qtype) == (7, IP, quantizer(storage))


def test_hnsw_in_faiss() -> None:
    for storage in ("float32", "float16", "int8"):
        made = Hnsw.make(Design(kind="hnsw", storage=storage, neighbors=5, ef_construction=33), 7)
        assert (made.d, made.metric_type, made.hnsw.nb_neighbors(1), made.hnsw.efConstruction) == (7, IP, 5, 33)
        inner = faiss.downcast_index(made.storage)
        assert inner.metric_type == IP
        assert isinstance(inner, faiss.IndexFlat) if storage == "float32" else inner.sq.qtype == quantizer(storage)


def test_ivf_in_faiss() -> None:
    for storage in ("float32", "float16", "int8"):
        made = Ivf.make(Design(kind="ivf", storage=storage, lists=9), 8)
        assert (made.d, made.metric_type, made.nlist, made.cp.spherical, made.own_fields) == (8, IP, 9, True, True)
        coarse = faiss.downcast_index(made.quantizer)
        assert (type(coarse), coarse.d) == (faiss.IndexFlatIP, 8)
        if storage == "float32":
            assert isinstance(made, faiss.IndexIVFFlat)
        else:
            assert (made.sq.qtype, made.by_residual) == (quantizer(storage), False)


def test_ivfpq_in_faiss() -> None:
    made = Ivf.make(Design(kind="ivfpq", storage="int8", lists=9, code_bytes=4), 8)
    assert (type(made), made.own_fields) == (faiss.IndexPreTransform, True)
    rotation = faiss.downcast_VectorTransform(made.chain.at(0))
    assert (rotation.d_in, rotation.d_out, rotation.M, rotation.max_train_points, rotation.niter) == (
        8,
        8,
        4,
        16_384,
        10,
    )
    inner = faiss.downcast_index(made.index)
    assert (inner.d, inner.metric_type, inner.nlist, inner.pq.M, inner.pq.nbits) == (8, IP, 9, 4, 8)
    assert (inner.cp.spherical, inner.own_fields) == (True, True)


def test_sizes_by_hand() -> None:
    def size(kind: str, storage: str, **more: int) -> int:
        return predicted_bytes(Design(kind=kind, storage=storage, **more), 1000, 8)

    assert [size("flat", storage) for storage in ("float32", "float16", "int8")] == [32_000, 16_000, 8_000]
    assert size("hnsw", "float16", neighbors=5) == 1000 * (16 + 4 * 5 * 2.25 + 12)
    assert size("hnsw", "float32", neighbors=2) == 1000 * (32 + 4 * 2 * 3 + 12)
    assert size("ivf", "float16", lists=10) == 1000 * (16 + 16) + 10 * (32 + 8)
    # codes of 4 bytes, twice a row number, centroids; a codebook of 256 and a rotation of 8 vectors of 8 float32
    assert size("ivfpq", "int8", lists=10, code_bytes=4) == 1000 * (4 + 16) + 10 * (32 + 8) + 4 * 8 * (256 + 8)


def test_lists_for_a_number_of_vectors() -> None:
    assert [LISTS.lists_for(count) for count in (0, 5, 100, 10_000, 1_000_000)] == [1, 1, 2, 256, 4000]
    seven = IvfSettings(lists=7, code_bytes=4)
    assert [seven.lists_for(count) for count in (100, 1_000_000)] == [2, 7]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_effort_is_in_the_file(kind: str, tmp_path: Path) -> None:
    built = build.build(VECTORS, PLANS[kind]).tuned(2)
    assert built.design == replace(PLANS[kind], effort=2)
    built.save(tmp_path / "i")
    found = faiss.read_index(str(tmp_path / "i"))
    assert (found.hnsw.efSearch if kind == "hnsw" else found.nprobe) == 2


# --- how FAISS is asked ----------------------------------------------------------------------------------------------


class Raw:
    """In the place of a FAISS index: notes with which parameters it is searched."""

    d, ntotal = 8, 100

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(params)
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)


def test_only_many_rows_are_compared_with_a_selector_of_all() -> None:
    for count, expected in ((9_999, None), (10_000, flat.EVERYTHING), (10_001, flat.EVERYTHING)):
        raw = Raw()
        raw.ntotal = count
        flat.compare_all(raw, QUERIES, 1, None)
        assert raw.asked == [expected]


@pytest.mark.parametrize("selected", [False, True])
def test_the_effort_of_a_graph_grows_with_k(selected: bool) -> None:
    selector = faiss.IDSelectorAll() if selected else None
    index = Hnsw(replace(PLANS["hnsw"], effort=7), Raw())
    for k in (1, 10, 11, 20, 21):
        index._find(QUERIES, k, selector)
    assert [params.efSearch for params in index.raw.asked] == [7, 7, 14, 14, 21]


def test_lists_looked_into() -> None:
    index = Ivf(PLANS["ivf"], Raw())
    for effort in (0, 1, 2, 3, 4):
        index._probe(QUERIES, 1, effort, None)
    assert [params.nprobe for params in index.raw.asked] == [1, 1, 2, 3, 3]
    index = Ivf(replace(PLANS["ivf"], effort=2), Raw())
    index._find(QUERIES, 1, None)
    index._compare_all(QUERIES, 1, None)
    assert [params.nprobe for params in index.raw.asked] == [2, 3]


class Told(Index):
    """Notes by which way it is asked; the walk finds nothing for some queries."""

    def __init__(self, lost: tuple[int, ...] = ()) -> None:
        super().__init__(PLANS["hnsw"], Raw())
        self.lost, self.told = lost, []

    def _find(self, queries: np.ndarray, k: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
        self.told.append(("find", len(queries), k, selector is not None))
        rows = np.tile(np.arange(k), (len(queries), 1))
        rows[list(self.lost), -1] = -1
        return np.full((len(queries), k), 0.5, np.float32), rows

    def _compare_all(self, queries: np.ndarray, k: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
        self.told.append(("all", len(queries), k, selector is not None))
        return np.full((len(queries), k), 0.25, np.float32), np.tile(np.arange(k), (len(queries), 1))


def test_few_rows_or_a_large_k_are_compared_all() -> None:
    """Of 100 rows: fewer than 30, or more than 5 wanted."""
    index = Told()
    assert (len(index), index.dim, index.kind) == (100, 8, "hnsw")
    index.search(QUERIES, 5)
    index.search(QUERIES, 6)
    index.search(QUERIES, 5, np.arange(100) < 30)
    index.search(QUERIES, 5, np.arange(100) < 29)
    index.search(QUERIES, 8, np.arange(100) < 4)
    assert index.told == [("find", 6, 5, False), ("all", 6, 6, False), ("find", 6, 5, True), ("all", 6, 5, True),
                          ("all", 6, 4, True)]  # fmt: skip


def test_what_the_walk_misses_is_compared_all() -> None:
    index = Told(lost=(1, 4))
    cosines, rows = index.search(QUERIES, 3)
    assert index.told == [("find", 6, 3, False), ("all", 2, 3, False)]
    assert cosines[:, 0].tolist() == [0.5, 0.25, 0.5, 0.5, 0.25, 0.5]
    assert (rows == [0, 1, 2]).all()
    index = Told(lost=(2,))
    index.search(QUERIES, 3, np.arange(100) < 50)
    assert index.told == [("find", 6, 3, True), ("all", 1, 3, True)]


def test_what_is_allowed_decides() -> None:
    cosines, rows = Told().search(QUERIES, 3, np.zeros(100, bool))
    assert (cosines.dtype, rows.dtype, cosines.shape, rows.shape) == (np.float32, np.int64, (6, 3), (6, 3))
    assert (cosines == -np.inf).all()
    assert (rows == -1).all()
    for allowed in (np.ones(99, bool), np.ones(100, int), np.ones((100, 1), bool)):
        with exactly(
            f"the filter is {allowed.dtype} {allowed.shape}, but the index holds 100 images; give a bool for each"
        ):
            Told().search(QUERIES, 3, allowed)


@pytest.mark.parametrize("kind", PLANS)
def test_hits_by_hand(kind: str) -> None:
    """Both ways to be asked, with a filter and without."""
    index = build.build(VECTORS, PLANS[kind])
    for k in (4, 20):
        for allowed in (None, np.arange(120) % 2 == 1, np.arange(120) % 5 == 3):
            true = COSINES if allowed is None else np.where(allowed, COSINES, -9)
            cosines, rows = index.search(QUERIES, k, allowed)
            assert rows.tolist() == np.argsort(-true, axis=1)[:, :k].tolist()
            assert cosines == pytest.approx(np.take_along_axis(true, rows, axis=1), abs=1e-6)


def test_codes_are_compared_as_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Design(kind="ivfpq", storage="int8", lists=3, code_bytes=4, effort=3)
    vectors = vectors_of(400)
    index = build.build(vectors, plan)
    decoded = index.vectors(np.arange(400))
    cosines, rows = index.search(QUERIES, 4)
    assert cosines == pytest.approx(-np.sort(-(QUERIES @ decoded.T), axis=1)[:, :4], abs=1e-5)
    assert cosines == pytest.approx(np.einsum("qd,qkd->qk", QUERIES, decoded[rows]), abs=1e-5)
    rotated = index._rotated(QUERIES)
    assert rotated.dtype == np.float32
    # Rotated one by one: FAISS's own product would make a query's last bits depend on the others.
    monkeypatch.setattr(Ivf, "_rotated", lambda self, queries: -rotated)
    assert (index.search(QUERIES, 4)[0] == np.sort(index.search(QUERIES, 400)[0])[:, ::-1][:, :4]).all()
    assert index.search(QUERIES, 4)[0] == pytest.approx(-np.sort(QUERIES @ decoded.T, axis=1)[:, :4], abs=1e-5)


# --- before and after it is asked ------------------------------------------------------------------------------------


def test_what_cannot_be_asked() -> None:
    base.check_queries(QUERIES, 1, 9, 8)
    base.check_queries(QUERIES, 9, 9, 8)
    with exactly("the index is empty, so nothing can be found in it"):
        base.check_queries(QUERIES, 1, 0, 8)
    for k in (0, 10):
        with exactly(f"k is {k}, but the index holds 9 images; choose 1 to 9"):
            base.check_queries(QUERIES, k, 9, 8)
    for queries in (QUERIES[:, :7], QUERIES[0], QUERIES[None]):
        with exactly(f"queries are {queries.shape}, but the index holds vectors of 8 dimensions; they come from "
                     "another network or refinement"):  # fmt: skip
            base.check_queries(queries, 1, 9, 8)
    with exactly("a query contains NaN or infinity, so it has no cosine; embed the image again"):
        base.check_queries(np.where(QUERIES == QUERIES[3, 3], np.nan, QUERIES), 1, 9, 8)


@pytest.mark.parametrize(
    ("cosines", "rows", "sorted_cosines", "sorted_rows"),
    [
        ([0.9, 0.5, 0.4, 0.1], [3, 2, 1, 0], [0.9, 0.5, 0.4, 0.1], [3, 2, 1, 0]),
        ([0.9, 0.5, 0.6, 0.1], [0, 1, 2, 3], [0.9, 0.6, 0.5, 0.1], [0, 2, 1, 3]),
        ([0.9, 0.5, 0.5, 0.1], [0, 7, 2, 3], [0.9, 0.5, 0.5, 0.1], [0, 2, 7, 3]),  # a tie: in the order of rows
        ([1.5, 0.5, -0.5, -1.5], [0, 1, 2, 3], [1, 0.5, -0.5, -1], [0, 1, 2, 3]),
        ([0.9, 0.0, -0.5, 0.0], [5, -1, 0, -1], [0.9, -0.5, -np.inf, -np.inf], [5, 0, -1, -1]),
        ([0.9, 0.5], [5, 4], [0.9, 0.5, -np.inf, -np.inf], [5, 4, -1, -1]),
        ([0.5, 0.9], [5, 4], [0.9, 0.5, -np.inf, -np.inf], [4, 5, -1, -1]),
    ],
)
def test_hits_are_put_in_order(cosines: list, rows: list, sorted_cosines: list, sorted_rows: list) -> None:
    # A second query that is in order already.
    both = np.array([cosines, [0.8, 0.7, 0.6, 0.5][: len(cosines)]], np.float32)
    found = base.in_order(both, np.array([rows, list(range(len(rows)))]), 4)
    assert found[0].dtype == np.float32
    assert found[0][0].tolist() == [np.float32(value) for value in sorted_cosines]
    assert found[1][0].tolist() == sorted_rows
    assert found[1][1].tolist() == [*range(len(rows)), -1, -1][:4]


def test_no_queries_have_no_hits() -> None:
    cosines, rows = base.in_order(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.int64), 3)
    assert cosines.shape == rows.shape == (0, 3)
    assert Told().search(QUERIES[:0], 3)[1].shape == (0, 3)


@pytest.mark.parametrize("kind", PLANS)
def test_vectors_come_back_by_row(kind: str) -> None:
    index = build.build(VECTORS, PLANS[kind])
    found = index.vectors(np.array([[0, -1], [119, 1]]))
    assert found == pytest.approx(np.stack([[VECTORS[0], np.zeros(8)], [VECTORS[119], VECTORS[1]]]), abs=1e-6)


@pytest.mark.parametrize("rows", [[0, 2, 1], [1, 0, 2], [2, 0, 1], [0, 1, 2]])
def test_rows_added_in_any_order_get_their_place(rows: list[int]) -> None:
    index = make_index(PLANS["hnsw"], 8)
    index.add(VECTORS[rows[:2]], np.array(rows[:2]))
    index.add(VECTORS[rows[2:]], np.array(rows[2:]))
    found, compared = index.distances(VECTORS[:3], 1, 9)
    assert found.tolist() == [[0], [1], [2]]
    assert compared > 0
    index.finish(np.array(rows))
    assert index.vectors(np.arange(3)) == pytest.approx(VECTORS[:3], abs=1e-6)
    assert index._added == []


def test_distances_are_counted_by_hand() -> None:
    lists = make_index(PLANS["ivf"], 8)
    lists.raw.train(VECTORS)
    lists.add(VECTORS, np.arange(120)[::-1])
    rows, compared = lists.distances(QUERIES, 2, 3)
    assert compared == 6 * 120 + 6 * 3  # all lists' vectors, and each query with the three centroids
    assert (119 - rows).tolist() == np.argsort(-COSINES, axis=1)[:, :2].tolist()
    assert lists.distances(QUERIES, 2, 1)[1] < compared
    graph = make_index(PLANS["hnsw"], 8)
    graph.add(VECTORS, np.arange(120))
    assert graph.distances(QUERIES, 2, 1)[1] < graph.distances(QUERIES, 2, 60)[1] < graph.distances(QUERIES, 2, 120)[1]
    small = make_index(PLANS["hnsw"], 8)
    small.add(VECTORS[:2], np.arange(2))
    assert np.sort(small.distances(QUERIES, 4, 4)[0], axis=1).tolist() == [[-1, -1, 0, 1]] * 6


# --- what comes into question ----------------------------------------------------------------------------------------


def reasons(count: int, dim: int, kind: str = "auto", storage: str = "auto", memory: int = 0) -> list[str]:
    found = candidates(Wanted(kind, storage, memory, GRAPH, LISTS), count, dim)
    return [f"{design.kind} {design.storage}: {why}" for design, why in found]


def test_what_is_chosen_is_designed() -> None:
    made = {design.kind: design for design, _ in candidates(Wanted("auto", "auto", 0, GRAPH, LISTS), 1_000_000, 8)}
    assert made["hnsw"] == Design(kind="hnsw", storage="int8", neighbors=5, ef_construction=30)
    assert made["ivf"] == Design(kind="ivf", storage="int8", lists=4000)
    assert made["ivfpq"] == Design(kind="ivfpq", storage="int8", lists=4000, code_bytes=4)
    assert made["flat"] == Design(kind="flat", storage="int8")


def test_few_vectors_are_compared_one_by_one_first() -> None:
    quick = "65536 x 8 are compared one by one as fast as by an index, and none is missed"
    later = "what is quicker takes too much or finds too little"
    assert reasons(65_536, 8) == [
        f"flat float32: {quick}; 2.1 MB, no limit", f"hnsw float16: {later}; 4.8 MB, no limit",
        f"ivf float16: {later}; 2.1 MB, no limit", f"hnsw int8: {later}; 4.3 MB, no limit",
        f"ivf int8: {later}; 1.6 MB, no limit", f"flat float16: {later}; 1.0 MB, no limit",
        f"flat int8: {later}; 0.5 MB, no limit", f"ivfpq int8: {later}; 1.4 MB, no limit",
    ]  # fmt: skip
    assert [line.split(":")[0] for line in reasons(65_536, 8, storage="int8")] == [
        "flat int8", "hnsw int8", "ivf int8", "flat int8",
    ]  # fmt: skip


def test_many_are_linked_first_and_memory_limits() -> None:
    many = "65537 x 8 are too many to compare one by one"
    later = "what is quicker takes too much or finds too little"
    assert reasons(65_537, 8)[:2] == [
        f"hnsw float16: {many}; 4.8 MB, no limit", f"ivf float16: {later}; 2.1 MB, no limit"
    ]  # fmt: skip
    assert [line.split(";")[0] for line in reasons(65_537, 8, memory=2)] == [
        f"ivf int8: {later}", f"flat float16: {later}", f"flat int8: {later}", f"ivfpq int8: {later}"
    ]  # fmt: skip
    assert reasons(65_537, 8, memory=2)[-1].endswith("; 1.4 MB, of 2 allowed")
    assert reasons(125_000, 8, "flat", "int8", memory=1) == ["flat int8: as index.kind says; 1.0 MB, of 1 allowed"]
    assert reasons(10**10, 8, "flat") == ["flat float32: as index.kind says; 320000.0 MB, no limit"]
    with exactly(
        "index.memory is 1 MB, but 1000001 vectors of 1 dimensions take at least 1.0 MB as flat, int8; allow more, or "
        "set index.kind and index.storage to auto, or keep fewer dimensions (index.refine.pca)"
    ):
        reasons(1_000_001, 1, "flat", "int8", memory=1)
    with pytest.raises(LookalikeError, match=r" take at least 320000\.0 MB as "):
        reasons(10**10, 8, "flat", memory=1)


@pytest.mark.parametrize(
    "kind, storage", [("flat", "float32"), ("hnsw", "float16"), ("ivf", "float16"), ("ivfpq", "int8")]
)
def test_a_kind_has_its_storage(kind: str, storage: str) -> None:
    (line,) = reasons(20_000, 8, kind)
    assert line.startswith(f"{kind} {storage}: as index.kind says; ")
    assert reasons(20_000, 8, "flat", "int8") == ["flat int8: as index.kind says; 0.2 MB, no limit"]


def test_what_cannot_be_built_is_passed_over_or_named() -> None:
    assert [line.split()[0] for line in reasons(38, 8)] == ["flat", "hnsw", "hnsw", "flat", "flat"]  # too few for lists
    assert "ivf" in {line.split()[0] for line in reasons(39, 8)}
    assert "ivfpq" not in {line.split()[0] for line in reasons(9_983, 8)}
    assert "ivfpq" in {line.split()[0] for line in reasons(9_984, 8)}
    assert "ivfpq" not in {line.split()[0] for line in reasons(9_984, 9)}
    with exactly("index.ivf.code_bytes is 4, which does not divide 9 dimensions; choose another, or set index.kind to "
                 "auto"):  # fmt: skip
        reasons(9_984, 9, "ivfpq")
    with exactly("index.kind ivfpq learns 256 codes from 9984 images or more, not 9983; choose another, or set "
                 "index.kind to auto"):  # fmt: skip
        reasons(9_983, 8, "ivfpq")
    with exactly(
        "index.memory is 1 MB, but 1000000 vectors of 8 dimensions take at least 8.0 MB as auto, auto; allow more, or "
        "set index.kind and index.storage to auto, or keep fewer dimensions (index.refine.pca)"
    ):
        reasons(1_000_000, 8, memory=1)


def test_an_empty_index_is_of_its_design() -> None:
    for kind, made in (("flat", Flat), ("hnsw", Hnsw), ("ivf", Ivf)):
        index = make_index(PLANS[kind], 8)
        assert (type(index), index.design, index.dim, len(index)) == (made, PLANS[kind], 8, 0)


# --- tuning ----------------------------------------------------------------------------------------------------------


def degrees(*angles: float) -> np.ndarray:
    radians = np.radians(np.array(angles))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 2, 19, 20, 9_990, 10_000, 30_000])
def test_the_sample_is_a_seeded_tenth(count: int) -> None:
    held = tuning.draw(count, 3)
    assert len(held) == {0: 0, 1: 0, 2: 1, 19: 1, 20: 2, 9_990: 999}.get(count, 1000)
    assert (np.diff(held) > 0).all()
    assert held.tolist() == tuning.draw(count, 3).tolist()
    assert count < 20 or held.tolist() != tuning.draw(count, 4).tolist()


def test_the_nearest_others_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, held = degrees(0, 10, 20, 30, 30, 180, 50, 60), np.array([0, 6])
    for block in (1, 3, 8, 100):
        monkeypatch.setattr(tuning, "BLOCK", block)
        cosines, rows = tuning.nearest_others(degrees(0, 60), vectors, held, 3)
        assert (cosines.dtype, rows.dtype) == (np.float32, np.int64)
        assert rows[0].tolist() == [1, 2, 3] or rows[0].tolist() == [1, 2, 4]  # which of two equals is left open
        assert rows[1].tolist() == [7, 3, 4]
        assert cosines[1] == pytest.approx(np.cos(np.radians([0, 30, 30])), abs=1e-6)
        assert tuning.nearest_others(degrees(0), vectors, held, 99)[1].tolist() == [[1, 2, 3, 4, 7, 5]]
        assert tuning.nearest_others(degrees(0), vectors, np.arange(8), 3)[1].shape == (1, 0)
        assert tuning.nearest_others(degrees(0), vectors, held[:0], 2)[1].tolist() == [[0, 1]]


def test_recall_counts_what_is_as_near_as_the_kth() -> None:
    vectors = degrees(0, 1, 2, 3, 4, 5, 6, 7, 8, 20, -20, 20, 90)
    sample = Sample.of(vectors, np.array([0]), vectors[:1])
    assert (sample.k, sample.held.tolist(), sample.vectors is vectors) == (10, [0], True)
    assert sample.kth == pytest.approx(np.cos(np.radians([20])))
    assert sample.kth.dtype == np.float32
    hits = [1, 2, 3, 4, 5, 6, 7, 8]
    assert sample.recall(np.array([[*hits, 9, 11]])) == 1
    assert sample.recall(np.array([[*hits, 9, 12]])) == 0.9
    assert sample.recall(np.array([[*hits, -1, -1]])) == 0.8
    two = Sample.of(vectors, np.array([0]), vectors[[0, 0]])
    assert two.recall(np.array([[*hits, 9, 10], [*hits, -1, -1]])) == pytest.approx(0.9)
    few = Sample.of(vectors[:4], np.array([0]), vectors[:1])
    assert (few.k, few.recall(np.array([[1, 2, -1]]))) == (3, pytest.approx(2 / 3))
    # A row that is -1 counts nothing, though the first vector, which it would name, is near.
    assert Sample.of(vectors, np.array([1]), vectors[1:2]).recall(np.full((1, 10), -1)) == 0
    assert Sample.of(vectors[:1], np.array([0]), vectors[:1]).recall(np.zeros((1, 0), np.int64)) == 1  # nobody else
    nobody = Sample.of(vectors[:1], np.array([0]), vectors[:1])
    assert (nobody.kth.tolist(), nobody.kth.dtype) == ([0], np.float32)
    # The first row counts as any other, by its own cosine, though the next is far.
    first = Sample.of(degrees(0, 180, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), np.array([11]), degrees(0))
    assert first.recall(np.array([[0, 2, 3, 4, 5, 6, 7, 8, 9, 10]])) == 1
    assert Sample.of(vectors, np.zeros(0, np.int64), vectors[:0]).recall(np.zeros((0, 10), np.int64)) == 1


class Rising:
    """In the place of an index: its recall rises by steps; it notes what was tried."""

    kind = "ivf"

    def __init__(self, needed: dict[int, float], lists: int = 0, size: int = 500) -> None:
        self.needed, self.size, self.tried = needed, size, []
        self.design = Design(kind="ivf" if lists else "hnsw", storage="float32", lists=lists)

    def __len__(self) -> int:
        return self.size

    def distances(self, queries: np.ndarray, k: int, effort: int) -> tuple[float, int]:
        assert queries is Fake.queries
        self.tried.append(effort)
        self.k = k
        return max(recall for least, recall in self.needed.items() if least <= effort), 40 * effort

    def tuned(self, effort: int) -> tuple[str, int]:
        return "tuned", effort


class Fake:
    """A sample of four whose recall is what the index says it is."""

    queries, k = np.zeros((4, 2)), 3

    def recall(self, rows: float) -> float:
        return rows


@pytest.mark.parametrize(
    ("needed", "lists", "target", "tried"),
    [
        ({0: 0.5, 13: 0.9}, 0, 0.9, [10, 20, 15, 12, 13]),  # a graph begins with ten
        ({0: 0.9}, 0, 0.9, [10]),  # enough at once
        ({0: 0.5}, 0, 0.9, [10, 20, 40, 80, 160, 320, 500]),  # never: the most, which is its size
        ({0: 0.5, 5: 0.9}, 30, 0.9, [1, 2, 4, 8, 6, 5]),  # lists begin with one
        ({0: 0.5, 4: 0.9}, 30, 0.9, [1, 2, 4, 3]),
        ({0: 0.5, 30: 0.9}, 30, 0.9, [1, 2, 4, 8, 16, 30, 23, 26, 28, 29]),
        ({0: 0.5}, 30, 0.9, [1, 2, 4, 8, 16, 30]),
    ],
)
def test_the_least_effort_that_reaches_the_target(needed: dict, lists: int, target: float, tried: list[int]) -> None:
    index = Rising(needed, lists)
    tuned = tune(index, Fake(), target)
    assert index.tried == tried
    reaching = [effort for effort in tried if max(v for least, v in needed.items() if least <= effort) >= target]
    chosen = min(reaching, default=tried[-1])
    assert tuned.index == ("tuned", chosen)
    assert tuned.recall == max(v for least, v in needed.items() if least <= chosen)
    assert (tuned.distances, index.k) == (10 * chosen, 3)


def test_effort_ends_at_4096_and_at_the_size() -> None:
    for size, last in ((100_000, 4096), (12, 12), (3, 10)):
        index = Rising({0: 0.5}, size=size)
        tune(index, Fake(), 1.0)
        assert index.tried[-1] == last


def test_an_empty_sample_divides_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "queries", np.zeros((0, 2)))
    nobody = Fake()
    nobody.k = 0
    index = Rising({0: 1.0})
    assert tune(index, nobody, 1.0).distances == 400
    assert index.k == 1


def test_a_flat_index_only_rounds() -> None:
    sample = Sample.of(VECTORS, np.arange(5), QUERIES)
    whole = tune(build.build(VECTORS, PLANS["flat"]), sample, 0.5)
    assert (whole.recall, whole.distances, whole.index.design) == (1, 120, PLANS["flat"])
    rounded = build.build(VECTORS, Design(kind="flat", storage="int8"))
    others = np.arange(120) >= 5
    assert tune(rounded, sample, 0.5).recall == sample.recall(rounded.search(QUERIES, 10, others)[1]) > 0.9
    close, held = unit_length(1 + 0.02 * vectors_of(600, 16)), np.arange(0, 600, 20)
    near = Sample.of(close, held, close[held])
    rounded_close = build.build(close, Design(kind="flat", storage="int8"))
    rows = rounded_close.search(close[held], 10, ~np.isin(np.arange(600), held))[1]
    assert tune(rounded_close, near, 0.5).recall == near.recall(rows) < 1
    assert near.recall(rows) != near.recall(rounded_close.search(close[held], 10)[1])  # their own rows are left out
    unasked = Told()  # which would find the wrong rows
    unasked.design = PLANS["flat"]
    assert tune(unasked, near, 0.5).recall == 1
    assert tune(rounded, Sample.of(VECTORS, np.zeros(0, np.int64), QUERIES[:0]), 1).recall == 1
    assert tune(rounded, Sample.of(VECTORS, np.arange(120), QUERIES), 1).recall == 1  # nobody else


# --- building and choosing -------------------------------------------------------------------------------------------


def settings(**changes: Any) -> build.Settings:
    from conftest import NO_TAGS

    content = {
        "kind": "auto", "storage": "auto", "target_recall": 0.9, "memory": 0, "threads": 3, "seed": 7,
        "hnsw": to_builtins(GRAPH), "ivf": to_builtins(LISTS), "tags": NO_TAGS, "refine": to_builtins(OFF),
    }  # fmt: skip
    return convert(content | changes, build.Settings)


def test_the_first_that_reaches_the_recall_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, news, calls = object(), [], []
    recalls = iter([0.2, 0.899, 0.9])

    def built(*arguments: Any) -> Tuned:
        calls.append(arguments)
        return Tuned(arguments[1], next(recalls), 5.0)

    monkeypatch.setattr(build, "build_and_tune", built)
    tuned, why = build.choose(VECTORS, sample, settings(), news.append, print)
    assert (tuned.index.kind, tuned.index.storage) == ("ivf", "float16")
    assert why == "what is quicker takes too much or finds too little; 0.0 MB, no limit"
    assert news == [
        "flat, float32 reaches recall 0.2000, below 0.9; trying the next",
        "hnsw, float16 reaches recall 0.8990, below 0.9; trying the next",
    ]
    for number, (design, _) in zip(range(3), candidates(Wanted("auto", "auto", 0, GRAPH, LISTS), 120, 8), strict=False):
        assert calls[number] == (VECTORS, design, sample, 0.9, 3, 7, print)


def test_where_none_reaches_it_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build_and_tune", lambda _, design, *more: Tuned(design, 0.51239, 1.0))
    with exactly(
        "index.target_recall is 0.9, which no candidate index reaches (hnsw, int8: 0.5124) with index.kind hnsw, "
        "index.storage int8, index.memory 4 MB; lower it, allow more memory (0 for no limit), or set kind and "
        "storage to auto"
    ):
        build.choose(VECTORS, None, settings(kind="hnsw", storage="int8", memory=4), print, print)
    with pytest.raises(LookalikeError, match=r"no candidate index reaches \(ivf, int8: 0\.5124; flat, float16: 0"):
        build.choose(np.zeros((65_537, 8), np.float32), None, settings(memory=2), lambda _: None, print)
    with pytest.raises(LookalikeError, match=r"\(flat, int8: 0\.5124; hnsw, int8: 0\.5124; ivf, int8: 0\.5124; flat"):
        build.choose(VECTORS, None, settings(storage="int8"), lambda _: None, print)


class Noted(Index):
    """Notes what it is given, in what order, and by how many threads."""

    def __init__(self, design: Design, trained: bool = True) -> None:
        super().__init__(design, self)
        self.is_trained, self.notes = trained, []

    def train(self, vectors: np.ndarray) -> None:
        self.notes.append(("train", vectors, faiss.omp_get_max_threads()))

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        self.notes.append(("add", vectors, rows.tolist(), faiss.omp_get_max_threads()))

    def finish(self, rows: np.ndarray) -> None:
        self.notes.append(("finish", rows.tolist()))


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Noted]]:
    made: list[Noted] = []

    def make(design: Design, dim: int) -> Noted:
        assert dim == 8
        made.append(Noted(design, trained=design.kind != "ivf"))
        return made[-1]

    monkeypatch.setattr(build, "make_index", make)
    monkeypatch.setattr(build, "BLOCK", 50)
    yield made


def test_vectors_are_added_in_blocks_and_in_order(noted: list[Noted]) -> None:
    assert build.build(VECTORS, PLANS["flat"], threads=2) is noted[0]
    *added, finished = noted[0].notes
    assert [rows for _, _, rows, _ in added] == [list(range(50)), list(range(50, 100)), list(range(100, 120))]
    assert all(np.array_equal(block, VECTORS[rows]) and threads == 2 for _, block, rows, threads in added)
    assert finished == ("finish", list(range(120)))
    with exactly("there are no vectors to index"):
        build.build(VECTORS[:0], PLANS["flat"])


@pytest.mark.parametrize("kind, lists, least", [("ivf", 300, 300), ("ivfpq", 20, 256), ("ivfpq", 300, 300)])
def test_too_few_vectors_for_the_lists_of_a_larger_collection_are_said(kind: Any, lists: int, least: int) -> None:
    """As where the gallery of the protocol is a small part of it; FAISS's own message is of its source."""
    design = Design(kind=kind, storage="float32", lists=lists, code_bytes=4 if kind == "ivfpq" else 0, effort=1)
    said = (
        f"{least - 1} images are too few to train {kind} with {lists} lists, which needs {least}; set index.kind to "
        "auto, flat or hnsw, or, if section protocol made this gallery, make it larger"
    )
    with exactly(said):
        build.build(vectors_of(least - 1), design)
    assert len(build.build(vectors_of(least), design)) == least


@pytest.mark.parametrize("least, lists, count", [(40, 3, 60), (80, 3, 80), (40, 7, 120), (400, 3, 120)])
def test_what_must_be_trained_sees_a_seeded_sample(
    least: int, lists: int, count: int, noted: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 of each list, or the least there may be, or all there are."""
    monkeypatch.setattr(build, "TRAINING", 20)
    monkeypatch.setattr(build, "TRAINING_LEAST", least)
    plan = replace(PLANS["ivf"], lists=lists)
    for seed, threads in ((1, 2), (1, 1), (2, 1)):
        build.build(VECTORS, plan, threads, seed)
    trainings = [index.notes[0] for index in noted]
    assert [(name, threads) for name, _, threads in trainings] == [("train", 2), ("train", 1), ("train", 1)]
    first, again, other = (vectors for _, vectors, _ in trainings)
    rows = np.argmax(first @ VECTORS.T, axis=1)
    assert (len(rows), rows.tolist()) == (count, sorted(set(rows.tolist())))  # each once, in order
    assert np.array_equal(first, again)
    assert count == 120 or not np.array_equal(first, other)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_what_is_held_back_is_added_after_tuning(
    kind: str, noted: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    sample = Sample(np.array([3, 60]), QUERIES, QUERIES, VECTORS)

    def tuned(index: Noted, given: Sample, target: float) -> str:
        assert given is sample
        index.notes.append(("tune", target, faiss.omp_get_max_threads()))
        return "tuned"

    monkeypatch.setattr(build, "tune", tuned)
    assert build.build_and_tune(VECTORS, PLANS[kind], sample, 0.7, 2, 5, told.append) == "tuned"
    notes = noted[0].notes
    added = [row for note in notes if note[0] == "add" for row in note[2]]
    assert all(note[3] == 2 and np.array_equal(note[1], VECTORS[note[2]]) for note in notes if note[0] == "add")
    if kind == "flat":
        assert added == list(range(120))
        assert notes[-1] == ("tune", 0.7, 2)
        assert told == [50, 50, 20]
    else:
        others = [row for row in range(120) if row not in (3, 60)]
        assert added == [*others, 3, 60]
        assert notes[-3] == ("tune", 0.7, 2)
        assert notes[-1] == ("finish", added)
        assert told == [50, 50, 18, 2]


def test_one_thread_and_no_seed_unless_asked(noted: list[Noted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "tune", lambda *_: None)
    monkeypatch.setattr(build, "TRAINING_LEAST", 40)
    sample = Sample(np.array([3]), QUERIES, QUERIES, VECTORS)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        build.build(VECTORS, replace(PLANS["ivf"], lists=1))
        build.build_and_tune(VECTORS, replace(PLANS["ivf"], lists=1), sample, 0.5)
        build.build(VECTORS, replace(PLANS["ivf"], lists=1), 1, 0)
    finally:
        faiss.omp_set_num_threads(before)
    assert {note[-1] for index in noted for note in index.notes if note[0] in ("add", "train")} == {1}
    assert np.array_equal(noted[0].notes[0][1], noted[2].notes[0][1])
    assert np.array_equal(noted[1].notes[0][1], noted[2].notes[0][1])


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    index = build.build(VECTORS, PLANS["hnsw"])
    features = Refinement.fit(VECTORS, OFF)
    paths, labels = np.array([f"{row:03}.png" for row in range(120)]), np.array(["a", "b"] * 60)
    files.save(Tuned(index, 0.98765432, 12.6), "because", features, settings(), paths, labels, tmp_path)
    return tmp_path


def test_the_folder_says_what_it_is(folder: Path) -> None:
    assert json.loads((folder / "index.json").read_text()) == {
        "plan": {"design": to_builtins(PLANS["hnsw"]), "refine": to_builtins(OFF), "threads": 3, "seed": 7},
        "why": "because", "recall@10": 0.987654, "distances_a_query": 13,
        "metric": "cosine: inner product of unit vectors", "n": 120, "dim": 8, "faiss": faiss.__version__,
    }  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == [
        "components.npy", "image_paths.npy", "index.faiss", "index.json", "labels.npy", "mean.npy"
    ]  # fmt: skip
    assert np.load(folder / "image_paths.npy", allow_pickle=False)[119] == "119.png"
    assert np.load(folder / "labels.npy", allow_pickle=False)[:3].tolist() == ["a", "b", "a"]


def test_what_cannot_be_written_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("lost " + 197 * "x" + "\n  y ")

    monkeypatch.setattr(faiss, "write_index", fail)
    path = tmp_path / "i"
    said = re.escape(f"{path} cannot be written ( {197 * 'x'} y); make room, and run again")
    with pytest.raises(OSError, match=f"^{said}$"):
        build.build(VECTORS, PLANS["flat"]).save(path)


@pytest.mark.parametrize("mapped", [None, True, False])
def test_it_is_opened_as_asked(mapped: bool | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, opened = [], faiss.read_index
    monkeypatch.setattr(faiss, "read_index", lambda path, flag: flags.append(flag) or opened(path, flag))
    chosen = {} if mapped is None else {"mapped": mapped}
    index = files.open_file(folder, **chosen)
    assert (index.design, type(index)) == (PLANS["hnsw"], Hnsw)
    assert files.read(folder / "index.faiss", PLANS["hnsw"], **chosen).search(QUERIES, 1)[1].tolist() == (
        np.argmax(COSINES, axis=1)[:, None].tolist()
    )
    assert flags == [0 if mapped is False else faiss.IO_FLAG_MMAP_IFC] * 2


def test_what_cannot_be_opened_is_named(folder: Path) -> None:
    again = "dvc repro --force index"
    path = folder / "index.faiss"
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(LookalikeError) as caught:
        files.open_file(folder)
    said = re.fullmatch(
        rf"{re.escape(str(path))} cannot be read \((.+)\); make it anew: {again} \(or fetch it: dvc pull\)",
        str(caught.value),
    )
    assert 20 < len(said[1]) <= 200  # the end of what FAISS says
    assert "  " not in said[1]


def test_of_what_faiss_says_the_end_is_told_in_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("lost " + 197 * "x" + "\n  y ")

    monkeypatch.setattr(faiss, "read_index", fail)
    with exactly(f"{folder / 'index.faiss'} cannot be read ( {197 * 'x'} y); make it anew: dvc repro --force index (or "
                 "fetch it: dvc pull)"):  # fmt: skip
        files.open_file(folder)


def test_what_is_no_description_is_named(folder: Path) -> None:
    again, description = "dvc repro --force index", folder / "index.json"
    description.write_text("{}")
    with exactly(f"{description} does not describe an index; make it anew: {again}"):
        files.load_plan(folder)
    description.unlink()
    with exactly(f"{description} does not exist; make it: dvc repro index (or fetch it: dvc pull)"):
        files.load_plan(folder)


def test_a_plan_is_built_as_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(build, "build", lambda *arguments: asked.append(arguments) or "built")
    assert files.load_plan(folder).build(VECTORS) == "built"
    assert asked == [(VECTORS, PLANS["hnsw"], 3, 7)]
