"""How an index is built, chosen and tuned, on random vectors."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from msgspec import to_builtins
from msgspec.structs import replace
from tqdm import tqdm

from lookalike.artifacts.arrays import save_strings
from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import unit_length
from lookalike.index import build, tuning
from lookalike.index.base import TARGET_K
from lookalike.index.build import Design, Index, Sample
from lookalike.index.candidates import SCAN_BYTES, Wanted, candidates, predicted_bytes
from lookalike.index.hnsw import Settings as HnswSettings
from lookalike.index.ivf import CODES, PER_LIST
from lookalike.index.ivf import Settings as IvfSettings
from lookalike.index.tuning import Tuned, tune
from lookalike.refinement.faiss_setup import faiss
from lookalike.refinement.refinement import OFF
from stages import index as index_stage
from tests.helpers.index_kinds import BIG, DEFAULTS, RAW, big, check_hits, design, each_of, no_news, random_vectors
from tests.helpers.small_collection import NO_TAGS

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
    return build.choose(vectors, sample, asked_for, no_news)


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


def test_what_misses_the_recall_is_told_and_the_next_is_tried(told: list[str]) -> None:
    vectors, sample = clustered()
    asked_for = wanted(kind="auto", storage="int8", target_recall=1.0)
    with pytest.raises(LookalikeError, match=r"\(flat, int8: [\d.]+; hnsw, int8: [\d.]+; ivf, int8: [\d.]+"):
        build.choose(vectors, sample, asked_for, no_news)
    assert [line.split(" reaches")[0] for line in told][:2] == ["flat, int8", "hnsw, int8"]


def test_the_stage_counts_the_vectors_of_each_kind_that_it_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
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
    assert told[0].startswith("flat, int8 reaches recall")
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
