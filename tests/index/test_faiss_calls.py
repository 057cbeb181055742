"""What FAISS is told and asked for each kind, by hand."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from lookalike.index import base, build, flat
from lookalike.index.build import Design
from lookalike.index.candidates import make_index, predicted_bytes
from lookalike.index.flat import Flat
from lookalike.index.hnsw import Hnsw
from lookalike.index.ivf import Ivf
from lookalike.index.ivf import Settings as IvfSettings
from lookalike.index.storage import quantizer
from lookalike.refinement.faiss_setup import faiss
from tests.helpers.index_parts import COSINES, IP, LISTS, PLANS, QUERIES, VECTORS, Raw, Told, exactly, vectors_of

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
