"""Each kind of index against exact search over what it stores, its tuning, and the folder that describes it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import NO_TAGS
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import to_builtins
from msgspec.structs import replace
from tqdm import tqdm

from lookalike.artifacts.arrays import save_strings
from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base import params
from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import on_grid, unit_length
from lookalike.index import build, files, tuning
from lookalike.index.base import EXACT_K, EXACT_SHARE, TARGET_K
from lookalike.index.build import Design, Index, Sample
from lookalike.index.candidates import SCAN_BYTES, Wanted, candidates, make_index, predicted_bytes
from lookalike.index.hnsw import Settings as HnswSettings
from lookalike.index.ivf import CODES, PER_LIST
from lookalike.index.ivf import Settings as IvfSettings
from lookalike.index.tuning import Tuned, tune
from lookalike.refinement.faiss_setup import faiss
from lookalike.refinement.refinement import OFF, Refinement
from stages import index as index_stage

ROOT = Path(__file__).resolve().parents[1]
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


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


# --- what a search returns -----------------------------------------------------------------------------------------


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


# --- how it is built -------------------------------------------------------------------------------------------------


@each_of
def test_the_same_vectors_give_the_same_bytes(kind: str, storage: str, tmp_path: Path) -> None:
    big(kind, storage).save(tmp_path / "a")
    build.build(random_vectors(BIG, 16), design(kind, storage)).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_building_leaves_the_number_of_threads_alone() -> None:
    before = faiss.omp_get_max_threads()
    build.build(random_vectors(10, 8), design("hnsw", "float16"), threads=before + 1)
    assert faiss.omp_get_max_threads() == before


@each_of
@pytest.mark.parametrize("neighbors", [2, 16])
def test_the_size_is_known_before_building(kind: str, storage: str, neighbors: int) -> None:
    count, dim = 5000, 32
    plan = replace(design(kind, storage, lists=100), neighbors=neighbors, ef_construction=20)
    size = build.build(random_vectors(count, dim), plan).nbytes
    assert abs(predicted_bytes(plan, count, dim) - size) <= 0.05 * size + 4096


# --- choosing and tuning ---------------------------------------------------------------------------------------------


@cache
def clustered() -> tuple[np.ndarray, Sample]:
    """6,000 vectors in 150 clusters that overlap; 300 are held back, and asked for a little moved."""
    rng = np.random.default_rng(0)
    centres = random_vectors(150, 24, seed=1)
    vectors = unit_length(centres[rng.integers(0, 150, 6000)] + 0.6 * random_vectors(6000, 24, seed=2))
    held = np.sort(rng.choice(6000, 300, replace=False))
    queries = unit_length(vectors[held] + 0.3 * random_vectors(300, 24, seed=3))
    return vectors, Sample.of(vectors, held, queries)


def wanted(**changes: object) -> build.Settings:
    """Settings with a graph that is not too good, so that effort matters."""
    graph = HnswSettings(neighbors=8, ef_construction=40)
    return replace(RAW, hnsw=graph, ivf=IvfSettings(lists=60, code_bytes=8), **changes)


def choose(vectors: np.ndarray, sample: Sample, asked_for: build.Settings) -> tuple[Tuned, str]:
    return build.choose(vectors, sample, asked_for, no_news, no_news)


def recall_by_hand(rows: np.ndarray, vectors: np.ndarray, queries: np.ndarray, allowed: np.ndarray) -> float:
    """Recall@10 among some rows, counted in float64 and plain Python."""
    total = 0.0
    for query, found in zip(queries, rows.tolist(), strict=True):
        cosines = vectors.astype(np.float64) @ query.astype(np.float64)
        tenth = np.sort(cosines[allowed])[-10]
        total += sum(row >= 0 and allowed[row] and cosines[row] >= tenth - 1e-6 for row in found[:10]) / 10
    return total / len(queries)


@pytest.mark.parametrize("kind, least", [("hnsw", TARGET_K), ("ivf", 1)])
@pytest.mark.parametrize("target", [0.9, 0.99, 1.0])
def test_tuning_reaches_the_recall_with_the_least_effort_that_does(
    kind: str, least: int, target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, sample = clustered()
    others = np.ones(len(vectors), bool)
    others[sample.held] = False

    def looked_over(index: Index, given: Sample, asked_for: float) -> Tuned:
        """Tune, and count again while the index is as it was then."""
        tuned = tune(index, given, asked_for)
        effort = tuned.index.design.effort
        assert len(index) == others.sum()

        def recall(effort: int) -> float:
            return recall_by_hand(index.distances(sample.queries, 10, effort)[0], vectors, sample.queries, others)

        assert recall(effort) == pytest.approx(tuned.recall, abs=1e-9)
        assert effort > least or target == 0.9
        assert effort == least or recall(effort - 1) < target
        return tuned

    monkeypatch.setattr(build, "tune", looked_over)
    tuned, _ = choose(vectors, sample, wanted(kind=kind, storage="float32", target_recall=target))
    assert tuned.recall >= target
    assert 10 < tuned.distances < len(vectors)
    everything = np.ones(len(vectors), bool)  # and it holds for new queries, once all images are in
    queries = unit_length(vectors[1::20] + 0.3 * random_vectors(300, 24, seed=4))
    assert recall_by_hand(tuned.index.search(queries, 10)[1], vectors, queries, everything) >= target - 0.02


@each_of
def test_what_was_held_back_for_tuning_is_in_the_index_in_its_place(kind: str, storage: str) -> None:
    vectors, built = random_vectors(BIG, 16), big(kind, storage)
    held = np.sort(np.random.default_rng(1).choice(BIG, 500, replace=False))
    sample = Sample.of(vectors, held, vectors[held])
    tuned = build.build_and_tune(vectors, built.design, sample, 0.5)
    assert len(tuned.index) == BIG
    everything = np.arange(BIG)
    assert np.array_equal(tuned.index.vectors(everything), built.vectors(everything))
    few = np.arange(BIG) % 10 == 0
    check_hits(tuned.index, vectors[held[:20]], 10, None, exact=False)
    check_hits(tuned.index, vectors[held[:20]], 10, few, exact=True)
    if kind != "ivfpq":  # whose codes are too coarse to tell an image from its neighbours
        itself = tuned.index.search(vectors[held], 10)[1] == held[:, None]
        assert itself.any(axis=1).mean() > 0.95


def test_more_recall_costs_more_comparisons() -> None:
    vectors, sample = clustered()
    plan = design("ivf", "float16", lists=60)
    costs = [build.build_and_tune(vectors, plan, sample, target).distances for target in (0.5, 0.9, 0.99)]
    assert costs == sorted(costs) and costs[0] < costs[-1]


def test_a_recall_out_of_reach_stops_with_what_was_reached() -> None:
    vectors, sample = clustered()
    said = r"index.target_recall is 1.0, which no candidate index reaches \(hnsw, int8: 0\.9\d+\)"
    with pytest.raises(LookalikeError, match=said) as caught:
        choose(vectors, sample, wanted(kind="hnsw", storage="int8", target_recall=1.0))
    assert "index.kind hnsw, index.storage int8, index.memory 0 MB" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_misses_the_recall_is_told_and_the_next_is_tried() -> None:
    vectors, sample = clustered()
    news: list[str] = []
    asked_for = wanted(kind="auto", storage="int8", target_recall=1.0)
    with pytest.raises(LookalikeError, match=r"\(flat, int8: [\d.]+; hnsw, int8: [\d.]+; ivf, int8: [\d.]+"):
        build.choose(vectors, sample, asked_for, news.append, no_news)
    assert [line.split(" reaches")[0] for line in news][:2] == ["flat, int8", "hnsw, int8"]


def test_the_stage_counts_the_vectors_of_each_kind_that_it_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, source = clustered()[0][:2000], tmp_path / "features"
    source.mkdir()
    np.save(source / "features.npy", vectors)
    save_strings(source / "image_paths.npy", [f"{row:04}.png" for row in range(2000)])
    save_strings(source / "labels.npy", [""] * 2000)
    Embedding(Network("Net", "random", "", "avg", 24, 1, "0" * 64), 32, "pad").save(source)
    section = {**to_builtins(wanted(storage="int8", target_recall=1.0)), "tags": NO_TAGS, "refine": to_builtins(OFF)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"index": section}))
    seen: list[tuple[int, int]] = []

    class Bar(tqdm):
        def update(self, rows: float | None = 1) -> bool | None:
            done = super().update(rows)
            seen.append((self.n, self.total))
            return done

    monkeypatch.setattr("tqdm.tqdm", Bar)
    command = ["index.py", source, tmp_path / "index", "--params", tmp_path / "params.yaml"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    with pytest.raises(LookalikeError, match=r"no candidate index reaches \(flat, int8: 0\.\d+; hnsw, int8: 0\.\d+;"):
        index_stage.main()
    assert [count for count, _ in seen].count(2000) >= 3  # each kind was built to the end, and none went beyond it
    assert max(count for count, _ in seen) == 2000 and {total for _, total in seen} == {2000}
    assert "flat, int8 reaches recall" in capsys.readouterr().err
    assert not (tmp_path / "index").exists() and not (tmp_path / "index.json").exists()


def test_too_little_memory_stops_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build_and_tune", None)
    vectors = random_vectors(20_000, 16)
    sample = Sample.of(vectors, np.arange(5), vectors[:5])
    said = (
        r"index.memory is 1 MB, but 20000 vectors of 16 dimensions take at least 1\.3 MB as flat, float32; allow more"
    )
    with pytest.raises(LookalikeError, match=said):
        choose(vectors, sample, wanted(kind="flat", storage="float32", memory=1))


def in_question(count: int, dim: int, **changes: object) -> list[tuple[Design, str]]:
    chosen = replace(RAW, **changes)
    return list(candidates(Wanted(chosen.kind, chosen.storage, chosen.memory, chosen.hnsw, chosen.ivf), count, dim))


@pytest.mark.parametrize("storage", ["auto", "float32", "float16", "int8"])
def test_few_vectors_are_best_compared_one_by_one(storage: str) -> None:
    first, why = in_question(SCAN_BYTES // (4 * 128), 128, storage=storage)[0]
    assert (first.kind, first.storage) == ("flat", "float32" if storage == "auto" else storage)
    assert "as fast as by an index" in why
    assert not any("one by one" in other for _, other in in_question(SCAN_BYTES // (4 * 128), 128, memory=1))


def test_many_vectors_are_best_linked() -> None:
    first, why = in_question(SCAN_BYTES // (4 * 128) + 1, 128)[0]
    assert (first.kind, first.storage, first.neighbors) == ("hnsw", "float16", DEFAULTS.hnsw.neighbors)
    assert "too many to compare one by one" in why
    assert "no limit" in why


@pytest.mark.parametrize("memory", [100, 150, 200, 300, 400])
def test_tight_memory_brings_something_smaller_that_fits(memory: int) -> None:
    count, dim = 1_000_000, 128
    unlimited, limited = in_question(count, dim), in_question(count, dim, memory=memory)
    fitting = [chosen for chosen, _ in unlimited if predicted_bytes(chosen, count, dim) <= memory * 1_000_000]
    assert [chosen for chosen, _ in limited] == fitting != [chosen for chosen, _ in unlimited]
    for chosen, why in limited:
        assert "\n" not in why
        assert f"of {memory} allowed" in why
        assert ("one by one" in why) == (chosen == unlimited[0][0])  # any other is chosen for another reason


def test_a_gallery_gets_what_its_memory_allows() -> None:
    vectors = random_vectors(18_000, 32)  # 2.3 MB: too many to scan
    queries = unit_length(vectors[:100] + 0.3 * random_vectors(100, 32, seed=1))
    sample = Sample.of(vectors, np.arange(100), queries)
    large, _ = choose(vectors, sample, wanted(target_recall=0.8))
    small, why = choose(vectors, sample, wanted(target_recall=0.8, memory=1))
    assert large.index.kind == "hnsw"
    assert small.index.nbytes <= 1_000_000 < large.index.nbytes
    everything = np.ones(len(vectors), bool)
    assert recall_by_hand(small.index.search(queries, 10)[1], vectors, queries, everything) >= 0.8
    assert "of 1 allowed" in why


def test_a_flat_index_that_rounds_is_measured_without_what_was_held_back() -> None:
    vectors, sample = clustered()
    others = np.ones(len(vectors), bool)
    others[sample.held] = False
    index = build.build(vectors, design("flat", "int8"))
    tuned = tune(index, sample, 1.0)
    rows = index.search(sample.queries, 10, others)[1]
    assert 0.9 < tuned.recall < 1.0
    assert tuned.recall == pytest.approx(recall_by_hand(rows, vectors, sample.queries, others), abs=1e-9)


def degrees(*angles: float) -> np.ndarray:
    """Unit vectors in a plane: the cosine of two is that of the angle between them."""
    radians = np.radians(np.array(angles))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_recall_by_hand_with_ties_and_without_what_is_held_back() -> None:
    # Row 0 asks. Rows 1 to 8 are its eight nearest; rows 9 to 12 tie for the ninth and tenth place; row 13 is far.
    vectors = degrees(0, 1, 2, 3, 4, 5, 6, 7, 8, 20, -20, 20, -20, 90)
    sample = Sample.of(vectors, np.array([0]), vectors[:1])
    assert sample.kth == pytest.approx(np.cos(np.radians(20)))

    def recall(*rows: int) -> float:
        return sample.recall(np.array([rows]))

    assert recall(1, 2, 3, 4, 5, 6, 7, 8, 9, 10) == 1.0
    assert recall(8, 7, 6, 5, 4, 3, 2, 1, 12, 11) == 1.0  # any two of those that tie
    assert recall(1, 2, 3, 4, 5, 6, 7, 8, 9, 13) == 0.9
    assert recall(1, 2, 3, 4, -1, -1, -1, -1, -1, -1) == 0.4
    assert recall(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1) == 0.0


@pytest.mark.parametrize("block", [7, 50, 1000])
def test_the_nearest_others_are_the_same_however_many_are_compared_at_a_time(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "BLOCK", block)
    vectors, queries = random_vectors(200, 8), random_vectors(20, 8, seed=1)
    held = np.arange(0, 200, 3)
    cosines, rows = tuning.nearest_others(queries, vectors, held, 12)
    true = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    true[:, held] = -np.inf
    assert np.array_equal(rows, np.argsort(-true, axis=1)[:, :12])
    assert np.allclose(cosines, np.take_along_axis(true, rows, axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5, 19, 20, 10_000, 10**6])
def test_a_sample_leaves_most_images_to_be_found(count: int) -> None:
    held = build.draw(count, seed=0)
    assert len(held) == {1: 0, 2: 1, 5: 1, 19: 1, 20: 2}.get(count, 1000)
    assert (np.diff(held) > 0).all()
    assert np.array_equal(held, build.draw(count, seed=0))
    assert count < 20 or not np.array_equal(held, build.draw(count, seed=1))


@pytest.mark.parametrize("count", [2, 5, 10, 11])
def test_fewer_than_ten_others_are_all_wanted(count: int) -> None:
    vectors = degrees(*range(count))
    sample = Sample.of(vectors, np.array([0]), vectors[:1])
    others = np.arange(1, count)[None]
    assert sample.k == others.shape[1]
    assert sample.recall(others) == 1.0
    others[0, -1] = -1
    assert sample.recall(others) == pytest.approx((count - 2) / (count - 1))


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


def test_codes_must_divide_the_dimensions_and_have_images_to_learn_from() -> None:
    enough = CODES * PER_LIST
    with pytest.raises(
        LookalikeError, match=r"index\.ivf\.code_bytes is 64, which does not divide 100 dimensions; choose"
    ):
        in_question(enough, 100, kind="ivfpq")
    with pytest.raises(
        LookalikeError, match=f"learns 256 codes from {enough} images or more, not {enough - 1}; choose"
    ):
        in_question(enough - 1, 128, kind="ivfpq")
    assert [chosen.kind for chosen, _ in in_question(enough, 128, kind="ivfpq")] == ["ivfpq"]
    assert "ivfpq" not in [chosen.kind for chosen, _ in in_question(10**6, 100)]  # auto passes over it


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
