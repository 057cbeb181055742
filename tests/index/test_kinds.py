"""Each kind of index against exact search over what it stores, and its folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import on_grid, unit_length
from lookalike.index import build, files
from lookalike.index.base import EXACT_K, EXACT_SHARE
from lookalike.index.build import Design, Index
from lookalike.index.candidates import make_index
from lookalike.index.ivf import PER_LIST
from lookalike.index.tuning import Tuned
from lookalike.refinement.faiss_setup import faiss
from lookalike.refinement.refinement import OFF, Refinement
from tests.helpers.index_kinds import (
    BIG,
    KINDS,
    RAW,
    big,
    check_hits,
    compared_exactly,
    design,
    each_of,
    random_vectors,
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


# --- what a search returns -----------------------------------------------------------------------------------------


@st.composite
def galleries(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors and queries; some vectors are equal, and with few values many are equally far from a query."""
    count, dim = draw(st.integers(1, 600)), draw(st.integers(4, 32))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    distinct = draw(st.integers(1, count))
    if draw(st.booleans()):
        raw = rng.standard_normal((distinct + 2, dim))
    else:
        raw = rng.integers(-1, 2, (distinct + 2, dim))
        raw[~raw.any(axis=1), 0] = 1
    vectors = unit_length(raw.astype(np.float32))
    return vectors[rng.integers(0, distinct, count)], np.concatenate([vectors[:1], vectors[distinct:]])


@st.composite
def asked(draw: st.DrawFn, count: int) -> tuple[int, np.ndarray | None]:
    """A k, as often small as large, and a filter."""
    k = draw(st.integers(1, count) | st.integers(1, max(1, count // 20)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([None, 0, 0.1, 0.5, 0.9, 1, "one"]))
    if share is None:
        return k, None
    return k, np.arange(count) == rng.integers(count) if share == "one" else rng.random(count) < share


@pytest.mark.parametrize("kind, storage", KINDS, ids=["-".join(pair) for pair in KINDS])
@settings(max_examples=20)
@given(data=st.data())
def test_hits_are_what_exact_search_over_the_stored_vectors_finds(kind: str, storage: str, data: st.DataObject) -> None:
    vectors, queries = data.draw(galleries())
    lists = data.draw(st.integers(1, max(1, min(20, len(vectors) // PER_LIST))))
    effort = data.draw(st.integers(1, lists if kind == "ivf" else len(vectors)))
    index = build.build(vectors, design(kind, storage, lists, effort))
    for _ in range(3):
        k, allowed = data.draw(asked(len(vectors)))
        everything = kind == "flat" or (kind == "ivf" and effort == lists)
        chosen = np.ones(len(vectors), bool) if allowed is None else allowed
        check_hits(index, queries, k, allowed, exact=everything or compared_exactly(index, k, chosen))


@settings(max_examples=30)
@given(data=st.data())
def test_hits_among_codes_are_what_exact_search_over_the_decoded_vectors_finds(data: st.DataObject) -> None:
    lists = big("ivfpq", "int8").design.lists
    effort = data.draw(st.integers(1, lists))
    index = big("ivfpq", "int8").tuned(effort)
    k, allowed = data.draw(asked(BIG))
    chosen = np.ones(BIG, bool) if allowed is None else allowed
    queries = random_vectors(3, 16, data.draw(st.integers(0, 1000)))
    check_hits(index, queries, k, allowed, exact=effort == lists or compared_exactly(index, k, chosen))


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
@pytest.mark.parametrize("count, dim", [(25, 4), (300, 8), (600, 32)])
def test_a_connected_graph_that_is_walked_whole_misses_nothing(storage: str, count: int, dim: int) -> None:
    plan = Design(kind="hnsw", storage=storage, neighbors=32, ef_construction=100, effort=count)
    index = build.build(random_vectors(count, dim), plan)
    check_hits(index, random_vectors(50, dim, seed=1), max(1, count // 20), None, exact=True)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_large_k_and_a_small_filter_are_compared_exactly_and_nothing_else_is(kind: str) -> None:
    count, dim = 2000, 16
    index = build.build(random_vectors(count, dim), design(kind, "float16", lists=40, effort=1))
    queries = random_vectors(30, dim, seed=1)
    large, small = int(EXACT_K * count) + 1, np.arange(count) < EXACT_SHARE * count - 1
    check_hits(index, queries, large, None, exact=True)
    check_hits(index, queries, 10, small, exact=True)
    for k, allowed in ((10, None), (10, ~small)):
        check_hits(index, queries, k, allowed, exact=False)
        with pytest.raises(AssertionError):  # so that little effort does miss something
            check_hits(index, queries, k, allowed, exact=True)


@each_of
def test_an_answer_has_the_same_bits_alone_in_company_and_on_any_number_of_threads(kind: str, storage: str) -> None:
    index, queries = big(kind, storage), random_vectors(20, 16, seed=1)
    half, few = np.arange(BIG) % 2 == 0, np.arange(BIG) % 10 == 0
    for k, allowed in ((10, None), (10, half), (10, few), (int(EXACT_K * BIG) + 1, None)):
        with threads(1):
            expected = index.search(queries, k, allowed)
        for count in (1, 2, 4):
            with threads(count):
                for size in (1, 3, 20):
                    parts = [index.search(queries[start : start + size], k, allowed) for start in range(0, 20, size)]
                    for whole, part in zip(expected, zip(*parts, strict=True), strict=True):
                        assert np.array_equal(whole, np.concatenate(part)), (k, count, size)


def test_a_graph_of_islands_still_returns_k() -> None:
    centres = random_vectors(250, 16)
    vectors = unit_length(np.repeat(centres, 20, axis=0) + 0.001 * random_vectors(5000, 16, seed=1))
    plan = Design(kind="hnsw", storage="float16", neighbors=4, ef_construction=20, effort=16)
    index, k = build.build(vectors, plan), 100
    walked = index.raw.search(centres, k, params=faiss.SearchParametersHNSW(efSearch=k))[1]
    assert (walked < 0).any()  # so the graph does fall apart
    assert not compared_exactly(index, k, np.ones(len(vectors), bool))
    lost = centres[(walked < 0).any(axis=1)]
    check_hits(index, lost, k, None, exact=True)
    check_hits(index, centres, k, None, exact=False)
    check_hits(index, centres, k, np.arange(5000) % 2 == 0, exact=False)


@each_of
def test_no_queries_get_no_hits(kind: str, storage: str) -> None:
    cosines, rows = big(kind, storage).search(np.zeros((0, 16), np.float32), 10)
    assert cosines.shape == rows.shape == (0, 10)


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_an_index_that_nobody_tuned_can_be_asked(kind: str) -> None:
    check_hits(big(kind, "int8").tuned(0), random_vectors(5, 16, seed=1), 10, None, exact=False)


@pytest.mark.parametrize("storage, error", [("float32", 0), ("float16", 0.0005), ("int8", 0.01)])
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_stored_vectors_come_back(kind: str, storage: str, error: float) -> None:
    rows, vectors = np.array([[5, -1], [BIG - 1, 0]]), random_vectors(BIG, 16)
    expected = np.where(rows[:, :, None] < 0, 0, vectors[rows])
    assert np.allclose(big(kind, storage).vectors(rows), expected, rtol=0, atol=error)


# --- what cannot be asked or built -----------------------------------------------------------------------------------


QUERIES = random_vectors(2, 16, seed=1)


@each_of
@pytest.mark.parametrize("k", [0, -1, BIG + 1])
def test_k_out_of_range_is_named(kind: str, storage: str, k: int) -> None:
    said = f"k is {k}, but the index holds {BIG} images; choose 1 to {BIG}"
    with pytest.raises(LookalikeError, match=said):
        big(kind, storage).search(QUERIES, k)


@each_of
@pytest.mark.parametrize("queries", [QUERIES[:, :15], QUERIES[0], QUERIES[None]], ids=["narrow", "flat", "deep"])
def test_queries_of_another_shape_are_named(kind: str, storage: str, queries: np.ndarray) -> None:
    with pytest.raises(LookalikeError, match="but the index holds vectors of 16 dimensions"):
        big(kind, storage).search(queries, 10)


@each_of
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused(kind: str, storage: str, value: float) -> None:
    queries = QUERIES.copy()
    queries[1, 3] = value
    with pytest.raises(LookalikeError, match="a query contains NaN or infinity"):
        big(kind, storage).search(queries, 10)


@each_of
@pytest.mark.parametrize(
    "allowed",
    [np.ones(BIG - 1, bool), np.ones(BIG + 1, bool), np.ones((BIG, 1), bool), np.arange(BIG), np.zeros(0, bool)],
    ids=["short", "long", "deep", "rows", "empty"],
)
def test_a_filter_of_another_gallery_is_named(kind: str, storage: str, allowed: np.ndarray) -> None:
    # FAISS would read past its end.
    with pytest.raises(LookalikeError, match=f"the filter is {allowed.dtype} .*, but the index holds {BIG} images"):
        big(kind, storage).search(QUERIES, 10, allowed)


@each_of
def test_nothing_can_be_built_of_no_vectors(kind: str, storage: str) -> None:
    with pytest.raises(LookalikeError, match="there are no vectors"):
        build.build(np.zeros((0, 16), np.float32), design(kind, storage))


@each_of
def test_nothing_can_be_found_in_an_empty_index(kind: str, storage: str) -> None:
    with pytest.raises(LookalikeError, match="the index is empty"):
        make_index(design(kind, storage), 16).search(QUERIES, 1)


@pytest.mark.parametrize("kind", ["auto", "flat", "hnsw", "ivf"])
def test_nothing_can_be_indexed_without_images(kind: str) -> None:
    with pytest.raises(LookalikeError, match="there are no images"):
        build.fit(np.zeros((0, 16), np.float32), replace(RAW, kind=kind))


@pytest.mark.parametrize("kind", ["auto", "flat", "hnsw", "ivf"])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_a_handful_of_images_is_a_gallery_too(kind: str, count: int) -> None:
    vectors = random_vectors(count, 16)
    _, tuned, _ = build.fit(vectors, replace(RAW, kind=kind))
    assert tuned.index.search(vectors, count)[1][:, 0].tolist() == list(range(count))
    assert np.allclose(tuned.index.vectors(np.arange(count)), vectors, rtol=0, atol=0.001)


def test_unit_length() -> None:
    vectors = np.array([[3, 4], [0, 2]], np.float32)
    assert unit_length(vectors).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 1]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from(["normal", "one sign", "few", "equal"]))
def test_inner_products_on_the_grid_are_exact_however_they_are_summed(seed: int, dim: int, shape: str) -> None:
    """In float32: forwards, shuffled, in pairs, by BLAS, beside other rows. A vector off the grid is not that lucky."""
    rng = np.random.default_rng(seed)
    raw = {
        "normal": rng.standard_normal((6, dim)),
        "one sign": rng.random((6, dim)) + 0.01,
        "few": rng.standard_normal((6, dim)) * (rng.random((6, dim)) < 0.1) + 1e-9,
        "equal": np.ones((6, dim)),
    }
    vectors = on_grid(raw[shape])
    assert np.linalg.norm(vectors.astype(np.float64), axis=1).max() <= 1
    assert np.abs(vectors - unit_length(raw[shape])).max() < 2**-12 + 2**-11
    true = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    order = rng.permutation(dim)
    terms = (vectors[:, None] * vectors[None])[..., order]  # float32 (6, 6, dim)
    assert np.array_equal(np.add.accumulate(terms, axis=-1)[..., -1], true)
    assert np.array_equal(terms.sum(axis=-1), true)
    assert np.array_equal(vectors @ vectors.T, true)
    assert np.array_equal((vectors[:1] @ vectors.T)[0], true[0])
    loose = unit_length(rng.standard_normal((6, dim)))
    assert dim < 100 or not np.array_equal(loose @ loose.T, loose.astype(np.float64) @ loose.T.astype(np.float64))


@pytest.mark.parametrize("bad", [[0, 0], [np.nan, 1], [np.inf, 1]])
def test_a_vector_without_direction_is_named(bad: list[float]) -> None:
    with pytest.raises(LookalikeError, match="1 of 3 vectors are zero or not finite, the first in row 1"):
        unit_length(np.array([[1, 0], bad, [0, 1]], np.float32))


# --- the folder ------------------------------------------------------------------------------------------------------


PATHS, LABELS = np.array([f"{row:05}.png" for row in range(BIG)]), np.array(["x"] * BIG)


def save(index: Index, folder: Path) -> None:
    refinement = Refinement.fit(np.zeros((0, 16), np.float32), OFF)
    files.save(Tuned(index, 0.99, 123.4), "because", refinement, RAW, PATHS, LABELS, folder)


@each_of
def test_mapped_or_read_whole_an_index_answers_as_it_did_when_built(kind: str, storage: str, tmp_path: Path) -> None:
    built, queries = big(kind, storage), random_vectors(20, 16, seed=1)
    save(built, tmp_path)
    few = np.arange(BIG) % 10 == 0
    for mapped in (True, False):
        opened = files.open_file(tmp_path, mapped=mapped)
        assert (opened.design, len(opened), opened.dim) == (built.design, BIG, 16)
        for k, allowed in ((10, None), (10, few), (600, None)):
            for mine, theirs in zip(opened.search(queries, k, allowed), built.search(queries, k, allowed), strict=True):
                assert np.array_equal(mine, theirs)
        rows = np.array([[0, -1, BIG - 1]])
        assert np.array_equal(opened.vectors(rows), built.vectors(rows))


@each_of
def test_the_folder_describes_itself(kind: str, storage: str, tmp_path: Path) -> None:
    index = big(kind, storage)
    save(index, tmp_path)
    plan = files.load_plan(tmp_path)
    assert plan == build.Plan(design=index.design, refine=RAW.refine, threads=RAW.threads, seed=RAW.seed)
    description = json.loads((tmp_path / "index.json").read_text())
    assert (description["n"], description["dim"], description["why"]) == (BIG, 16, "because")
    assert (description["recall@10"], description["distances_a_query"]) == (0.99, 123)
    assert np.load(tmp_path / "image_paths.npy", allow_pickle=False).tolist() == PATHS.tolist()
    assert index.nbytes == (tmp_path / "index.faiss").stat().st_size


def test_a_plan_builds_the_same_index_again(tmp_path: Path) -> None:
    index = big("ivf", "int8")
    save(index, tmp_path)
    files.load_plan(tmp_path).build(random_vectors(BIG, 16)).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "index.faiss").read_bytes()


def test_a_missing_or_broken_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookalikeError, match=r"index\.json does not exist; make it: dvc repro index"):
        files.load_plan(tmp_path)
    for content in ("{", "{}", "[]", '{"plan": {"design": {"kind": "flat"}}}'):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(LookalikeError, match="does not describe an index"):
            files.load_plan(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"no index", "half"])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_missing_or_broken_index_is_named(content: bytes | str | None, mapped: bool, tmp_path: Path) -> None:
    save(big("hnsw", "float16"), tmp_path)
    path = tmp_path / "index.faiss"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(LookalikeError, match=r"index\.faiss cannot be read \(.*\); make it anew") as caught:
        files.open_file(tmp_path, mapped=mapped)
    assert "\n" not in str(caught.value)
