"""Each part of the refinement against its definition, written out; and nothing fitted ever sees a query."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import convert, to_builtins
from sklearn.decomposition import PCA

from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED
from lookalike.base.vectors import STEPS, on_grid, unit_length
from lookalike.evaluation import measure, protocol
from lookalike.evaluation.bootstrap import interval
from lookalike.evaluation.protocol import Split
from lookalike.evaluation.ranking import map_rankings
from lookalike.index import build
from lookalike.index.searcher import Searcher
from lookalike.refinement import faiss_setup
from lookalike.refinement import refinement as refine
from lookalike.refinement.refinement import OFF, Refinement, Settings
from lookalike.refinement.reranking import rerank

RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((8, 24)) * 2
LABELS = np.repeat(np.arange(8), 30).astype(str)
FEATURES = (CENTRES.repeat(30, axis=0) + RNG.standard_normal((240, 24)) * np.linspace(0.2, 3, 24)).astype(np.float32)
FULL = Settings(power=0.5, pca=10, whiten=0.5, augment=5, expand=4, alpha=1.5, rerank=0)


def changed(**changes: object) -> Settings:
    return convert(to_builtins(OFF) | changes, Settings)


def test_off_is_raw_cosine() -> None:
    raw = Refinement.fit(FEATURES, OFF)
    assert np.array_equal(raw.gallery(FEATURES), unit_length(FEATURES))
    assert np.array_equal(raw.project(FEATURES[:3]), unit_length(FEATURES[:3]))
    assert np.array_equal(raw.project(FEATURES.astype(np.float64)), raw.project(FEATURES))  # float32 from the start


def test_power_keeps_signs() -> None:
    vectors = Refinement.fit(FEATURES, changed(power=0.5)).project(np.array([[4, -9, 0]], np.float32))
    assert vectors[0] == pytest.approx(np.array([2, -3, 0]) / np.sqrt(13))


@pytest.mark.parametrize("whiten", [0.0, 1.0])
def test_pca_is_scikit_learns(whiten: float) -> None:
    refinement = Refinement.fit(FEATURES, changed(pca=6, whiten=whiten))
    theirs = PCA(6, whiten=bool(whiten), svd_solver="full").fit(unit_length(FEATURES).astype(np.float64))
    expected = unit_length(theirs.transform(unit_length(FEATURES)).astype(np.float32))
    ours = unit_length(refinement.project(FEATURES))
    # Axes may point either way, and scikit-learn divides variances by N - 1; neither changes a cosine. The grid does.
    assert np.allclose(ours @ ours.T, expected @ expected.T, atol=5e-4)


def test_full_whitening_makes_variances_equal() -> None:
    refinement = Refinement.fit(FEATURES, changed(pca=6, whiten=1))
    projected = (unit_length(FEATURES) - refinement.mean) @ refinement.components
    assert np.allclose(np.cov(projected.T, bias=True), np.eye(6), atol=1e-3)


def test_pca_in_blocks_is_pca_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    once = Refinement.fit(FEATURES, FULL).gallery(FEATURES)
    monkeypatch.setattr("lookalike.refinement.refinement.BLOCK", 37)
    blocks = Refinement.fit(FEATURES, FULL).gallery(FEATURES)
    assert np.array_equal(once, blocks)


def test_a_projection_takes_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, taken, powered = Refinement.fit(FEATURES, changed(pca=6)), [], refine._powered
    monkeypatch.setattr(refine, "BLOCK", 100)
    monkeypatch.setattr(refine, "_powered", lambda block, power: taken.append(len(block)) or powered(block, power))
    projected = fitted.project(FEATURES)
    assert taken == [100, 100, 40]
    assert (projected.shape, projected.dtype) == ((240, 6), np.float32)


def test_augmentation_by_its_definition() -> None:
    vectors = unit_length(FEATURES)
    cosines = vectors @ vectors.T
    expected = np.zeros_like(vectors)
    for row in range(len(vectors)):
        nearest = np.argsort(-cosines[row])[:5]
        expected[row] = (np.maximum(cosines[row, nearest], 0)[:, None] ** 1.5 * vectors[nearest]).sum(axis=0)
    ours = Refinement.fit(FEATURES, changed(augment=5, alpha=1.5)).gallery(FEATURES)
    assert np.allclose(ours, unit_length(expected), atol=1e-5)


def exact(refinement: Refinement, features: np.ndarray, gallery: np.ndarray, exclude: np.ndarray | None = None):
    exclude = np.zeros((len(features), 0), np.int64) if exclude is None else exclude
    (found,) = map_rankings(lambda ranking: ranking, refinement, features, gallery, exclude, 1 << 30)
    return found


def searcher_of(kind: str, features: np.ndarray, chosen: Settings) -> Searcher:
    refinement = Refinement.fit(features, chosen)
    graph = {"neighbors": 32, "ef_construction": 400, "effort": 400} if kind == "hnsw" else {}
    design = build.Design(kind=kind, storage="float32", **graph)
    return Searcher(refinement, build.build(refinement.gallery(features), design))


def test_query_expansion_by_its_definition() -> None:
    refinement = Refinement.fit(FEATURES, changed(expand=4, alpha=2))
    gallery, query = unit_length(FEATURES[20:]), unit_length(FEATURES[:1])[0]
    cosines = gallery @ query
    nearest = np.argsort(-cosines)[:4]
    expanded = query + (np.maximum(cosines[nearest], 0)[:, None] ** 2 * gallery[nearest]).sum(axis=0)
    order = np.argsort(-(gallery @ unit_length(expanded[None])[0]))
    assert exact(refinement, FEATURES[:1], gallery).rows[0].tolist() == order.tolist()


def halves(count: int) -> np.ndarray:
    """Of each vector's eight entries four are 0.5 or -0.5: cosines are exact multiples of 0.25, many of them equal."""
    vectors, rng = np.zeros((count, 8), np.float32), np.random.default_rng(2)
    for vector in vectors:
        vector[rng.choice(8, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return vectors


@pytest.mark.parametrize("vectors", [unit_length(FEATURES[:120]), halves(120)], ids=["distinct", "ties"])
def test_reranking_by_its_definition(vectors: np.ndarray) -> None:
    """k-reciprocal encoding written with sets and loops, as in the paper's equations 3, 7, 10, 11 and 12."""
    query, shortlist = vectors[0], vectors[1:]
    shortlist = shortlist[np.argsort(-(shortlist @ query), kind="stable")]
    points = [query, *shortlist]
    cosines = np.array([[float(a @ b) for b in points] for a in points])
    nearest = [np.argsort(-row, kind="stable").tolist() for row in cosines]
    near = [set(order[:31]) for order in nearest]
    encoded = np.zeros_like(cosines)
    for p in range(len(points)):
        for g in near[p]:
            if p in near[g]:
                encoded[p, g] = np.exp(cosines[p, g] - 1)
    encoded /= encoded.sum(axis=1, keepdims=True)
    encoded = np.array([np.mean([encoded[g] for g in order[:6]], axis=0) for order in nearest])
    jaccard = [1 - np.minimum(encoded[0], v).sum() / np.maximum(encoded[0], v).sum() for v in encoded]
    distance = 0.7 * np.array(jaccard) + 0.3 * (1 - cosines[0])
    ours = rerank(query, shortlist)
    assert sorted(ours.tolist()) == list(range(119))
    assert np.all(np.diff(distance[1:][ours]) >= -1e-5)  # in the order of that distance, up to rounding


def test_reranking_moves_the_shortlist_and_nothing_else() -> None:
    gallery = unit_length(FEATURES[20:])
    plain = exact(Refinement.fit(FEATURES, OFF), FEATURES[:5], gallery).rows
    moved = exact(Refinement.fit(FEATURES, changed(rerank=50)), FEATURES[:5], gallery).rows
    assert np.array_equal(plain[:, 50:], moved[:, 50:])
    assert np.array_equal(np.sort(plain[:, :50]), np.sort(moved[:, :50]))
    assert not np.array_equal(plain, moved)


def test_order_is_that_of_a_stable_sort() -> None:
    from lookalike.evaluation.ranking import _order

    cosines = np.round(RNG.standard_normal((50, 300)), 1).astype(np.float32)  # many ties
    cosines[0, :3], cosines[1, ::7] = [0.0, -0.0, 0.0], -np.inf
    assert np.array_equal(_order(cosines), np.argsort(-cosines, axis=1, kind="stable"))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("chosen", [OFF, FULL, changed(rerank=40, pca=10), changed(expand=4, rerank=40, augment=3)])
def test_the_searcher_finds_what_the_evaluation_ranks(kind: str, chosen: Settings) -> None:
    """One code path: through an index that misses nothing here, the faces' search gives the measured ranking."""
    built = searcher_of(kind, FEATURES[20:], chosen)
    cosines, rows = built.search(FEATURES[:20], 10)
    ranked = exact(built.refinement, FEATURES[:20], built.refinement.gallery(FEATURES[20:]))
    assert np.allclose(cosines, ranked.cosines[:, :10], atol=1e-5)
    assert (rows == ranked.rows[:, :10]).mean() > 0.98  # equal but where two cosines differ in the last bits


@pytest.mark.parametrize("chosen", [OFF, changed(expand=4), changed(rerank=30), changed(expand=3, rerank=30, alpha=0)])
def test_excluded_rows_are_neither_found_nor_used(chosen: Settings) -> None:
    """A search that excludes rows equals a search in a gallery without them."""
    exclude = np.array([[3, 7, -1], [7, -1, -1]])
    without = [np.setdiff1d(np.arange(240), rows) for rows in ([3, 7], [7])]
    refinement = Refinement.fit(FEATURES, chosen)
    ranked = exact(refinement, FEATURES[[3, 7]], unit_length(FEATURES), exclude)
    _, found = searcher_of("flat", FEATURES, chosen).search(FEATURES[[3, 7]], 10, exclude)
    for number, rows in enumerate(without):
        alone = exact(refinement, FEATURES[[[3, 7][number]]], unit_length(FEATURES[rows]))
        expected = rows[alone.rows[0]]
        assert ranked.rows[number, : len(rows)].tolist() == expected.tolist()
        assert found[number].tolist() == expected[:10].tolist()


def test_fewer_left_than_asked_for_gives_minus_one() -> None:
    _, rows = searcher_of("flat", FEATURES[:3], OFF).search(FEATURES[:1], 3, np.array([[0]]))
    assert rows[0, 2] == -1
    assert set(rows[0, :2]) == {1, 2}


SHUFFLED = np.random.default_rng(1).permutation(240)


def measured(queries: np.ndarray) -> tuple[np.ndarray, measure.Evaluation]:
    """The gallery, of 200 rows whoever asks, and the figures of some of the first 40."""
    features, labels = FEATURES[SHUFFLED], LABELS[SHUFFLED]
    split = Split(queries, np.arange(40, 240), np.zeros((len(queries), 0), np.int64), "", ())
    refinement = Refinement.fit(features[split.gallery], FULL)
    gallery = refinement.gallery(features[split.gallery])
    return gallery, measure.evaluate(features, labels, split, refinement, gallery, [1, 5], memory=1)


@cache
def everybody() -> tuple[np.ndarray, measure.Evaluation]:
    return measured(np.arange(40))


@settings(max_examples=30)  # of 40 ms each
@given(st.permutations(list(range(40))), st.integers(1, 40))
def test_a_query_cannot_influence_what_it_is_measured_against(order: list[int], kept: int) -> None:
    """With the gallery fixed, permuting or removing queries changes no gallery vector and no other query's figures."""
    all_gallery, all_figures = everybody()
    some_gallery, some_figures = measured(np.array(order[:kept]))
    assert np.array_equal(all_gallery, some_gallery)
    expected = all_figures.per_query.iloc[order[:kept]].reset_index(drop=True)
    assert some_figures.per_query.equals(expected)


def test_changing_the_queries_pixels_changes_no_gallery_vector() -> None:
    """Not even other features of the queries themselves reach the gallery."""
    split = protocol.split(
        np.array([f"{row:03}" for row in range(240)]), LABELS, np.array([f"{row:064}" for row in range(240)]),
        protocol.Settings(kind="holdout", fraction=0.2, seed=0, queries=UNUSED, gallery=UNUSED),
    )  # fmt: skip
    other = FEATURES.copy()
    other[split.queries] = RNG.standard_normal((len(split.queries), 24))
    before, after = (Refinement.fit(f[split.gallery], FULL).gallery(f[split.gallery]) for f in (FEATURES, other))
    assert np.array_equal(before, after)


@pytest.mark.parametrize(
    ("features", "chosen", "message"),
    [
        (
            FEATURES,
            changed(pca=25),
            r"index\.refine\.pca is 25, but the gallery has 240 images of 24 dim",
        ),
        (FEATURES[:8], changed(pca=8), r"pca is 8, but the gallery has 8 images .* choose at most 7 \(one less"),
        (FEATURES, changed(whiten=0.5), r"index\.refine\.whiten needs index\.refine\.pca"),
        (np.zeros((30, 4), np.float32), changed(pca=2), r"30 of 30 vectors are zero or not finite"),
        (np.full((30, 4), np.nan, np.float32), changed(pca=2), r"zero or not finite"),
    ],
)
def test_mistakes_are_named(features: np.ndarray, chosen: Settings, message: str) -> None:
    with pytest.raises(LookalikeError, match=message):
        Refinement.fit(features, chosen)


def test_neighbourhoods_larger_than_the_gallery_take_all_of_it() -> None:
    few = FEATURES[:4]
    refinement = Refinement.fit(few, changed(augment=100, expand=100, rerank=100))
    assert refinement.gallery(few).shape == (4, 24)
    assert np.sort(exact(refinement, FEATURES[5:6], refinement.gallery(few)).rows[0]).tolist() == [0, 1, 2, 3]


def test_the_projection_is_saved(tmp_path: Path) -> None:
    refinement = Refinement.fit(FEATURES, FULL)
    refinement.save(tmp_path)
    assert np.array_equal(np.load(tmp_path / "components.npy", allow_pickle=False), refinement.components)
    assert np.array_equal(np.load(tmp_path / "mean.npy", allow_pickle=False), refinement.mean)


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


def test_a_querys_copies_do_not_reach_a_listed_gallery(tmp_path: Path) -> None:
    """Row 200 has the bytes of query 0: its pixels, and so the query's, must not shape the gallery."""
    paths = np.array([f"{row:03}" for row in range(240)])
    hashes = np.array([f"{row:064}" for row in range(240)])
    hashes[200] = hashes[0]
    (tmp_path / "q.txt").write_text("000\n001\n")
    split = protocol.split(
        paths, LABELS, hashes, protocol.Settings(kind="lists", fraction=0.2, seed=0, queries=str(tmp_path / "q.txt"),
                                                 gallery=UNUSED),
    )  # fmt: skip
    assert 200 not in split.gallery
    assert "1 images are byte-identical to a listed query: left out of the gallery" in split.notes


@pytest.mark.parametrize("setting", ["pca", "augment"])
def test_a_gallery_that_saw_its_queries_is_refused(setting: str) -> None:
    paths = np.array([f"{row:03}" for row in range(240)])
    split = protocol.split(
        paths, LABELS, np.array([f"{row:064}" for row in range(240)]),
        protocol.Settings(kind="leave-one-out", fraction=0.2, seed=0, queries=UNUSED, gallery=UNUSED),
    )  # fmt: skip
    refinement = Refinement.fit(FEATURES, changed(**{setting: 5}))
    with pytest.raises(LookalikeError, match=rf"leave-one-out .* index\.refine\.{setting} would be fitted on"):
        measure.evaluate(FEATURES, LABELS, split, refinement, refinement.gallery(FEATURES), [1])


def test_the_memory_that_is_allowed_changes_no_bit() -> None:
    gallery = unit_length(FEATURES)
    refinement = Refinement.fit(FEATURES, changed(power=0.5, expand=4))
    none = np.zeros((240, 0), np.int64)

    def cosines(memory: int) -> np.ndarray:
        return np.concatenate(list(map_rankings(lambda r: r.cosines, refinement, FEATURES, gallery, none, memory)))

    assert np.array_equal(cosines(1), cosines(1 << 30))


def test_the_fit_does_not_depend_on_the_number_of_cores() -> None:
    from threadpoolctl import threadpool_limits

    one, two = [], []
    for found, threads in ((one, 1), (two, 2)):
        with threadpool_limits(threads):
            found.append(Refinement.fit(FEATURES, FULL).components)
    assert np.array_equal(one[0], two[0])


def test_images_that_are_all_the_same_are_named() -> None:
    with pytest.raises(LookalikeError, match="all 30 images of the gallery have the same embedding"):
        Refinement.fit(np.ones((30, 6), np.float32), changed(pca=2, whiten=0.5))


# --- each part by hand -----------------------------------------------------------------------------------------------


class Nearest:
    """Notes what is asked for; its second answer of each query is none, with a cosine that must not count."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.asked = vectors, []

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((len(queries), k))
        cosines = queries @ self.vectors.T
        rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        cosines = np.take_along_axis(cosines, rows, axis=1)
        rows[:, 1:2] = -1
        return cosines, rows

    def sums(self, queries: np.ndarray, k: int, alpha: float) -> np.ndarray:
        cosines, rows = self(queries, k)
        self.asked.pop()
        weights = np.where(rows < 0, 0, np.maximum(cosines, 0) ** alpha)
        return (weights[:, :, None] * self.vectors[rows]).sum(axis=1)


@pytest.mark.parametrize("budget, step", [(1, 1), (2 * 24 * 4 * 2 - 1, 1), (2 * 24 * 4 * 7, 7), (1 << 20, 50)])
def test_a_gallery_is_augmented_in_steps_of_so_many_bytes(
    budget: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = unit_length(FEATURES[:50])
    nearest = Nearest(vectors)
    monkeypatch.setattr(
        "lookalike.refinement.refinement._among",
        lambda given, exact: nearest if np.array_equal(given, vectors) else None,
    )
    monkeypatch.setattr("lookalike.refinement.refinement.NEIGHBOUR_BYTES", budget)
    found = Refinement.fit(FEATURES[:50], changed(augment=2, alpha=1.5)).gallery(FEATURES[:50])
    assert nearest.asked == [(min(step, 50 - start), 2) for start in range(0, 50, step)]
    assert (found.dtype, found.shape) == (np.float32, (50, 24))
    assert found == pytest.approx(unit_length(nearest.sums(vectors, 2, 1.5).astype(np.float32)), abs=1e-6)


def test_who_joins_a_gallery_is_mixed_with_its_neighbours() -> None:
    gallery, vectors = unit_length(FEATURES[5:]), unit_length(FEATURES[:20])  # the first row is a neighbour too
    for augment, count in ((2, 1), (5, 4)):
        nearest = Nearest(gallery)
        ours = Refinement.fit(FEATURES, changed(augment=augment, alpha=2)).join(vectors, nearest, lambda r: gallery[r])
        assert nearest.asked == [(20, count)]
        assert ours.dtype == np.float32
        assert ours == pytest.approx(unit_length(vectors + 0.2 * nearest.sums(vectors, count, 2)), abs=1e-6)
    for augment in (0, 1):
        refinement = Refinement.fit(FEATURES, changed(augment=augment))
        assert refinement.join(vectors, None, None) is vectors  # its only neighbour would be itself
        assert np.array_equal(refinement.gallery(FEATURES[:20]), vectors)


def test_an_expansion_by_hand() -> None:
    gallery, queries = unit_length(FEATURES[5:]), unit_length(FEATURES[:20])
    for expand in (1, 3):
        nearest = Nearest(gallery)
        ours = Refinement.fit(FEATURES, changed(expand=expand, alpha=3)).expand(queries, nearest, lambda r: gallery[r])
        assert nearest.asked == [(20, expand)]
        assert ours == pytest.approx(unit_length(queries + nearest.sums(queries, expand, 3)), abs=1e-6)
    assert Refinement.fit(FEATURES, OFF).expand(queries, None, None) is queries


def test_a_cosine_below_0_weighs_nothing() -> None:
    vectors = np.array([[1, 0], [-0.6, 0.8]], np.float32)
    nearest = lambda queries, k: (np.array([[-0.6, 0.5]], np.float32), np.array([[1, 0]]))  # noqa: E731
    ours = Refinement.fit(vectors, changed(expand=2)).expand(
        np.array([[0, 1]], np.float32), nearest, lambda r: vectors[r]
    )
    assert ours == pytest.approx(unit_length(np.array([[0.5, 1]], np.float32)))


def test_only_the_shortlist_is_reordered_and_only_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def reversed_list(query: np.ndarray, shortlist: np.ndarray) -> np.ndarray:
        asked.append((query.tolist(), shortlist.tolist()))
        return np.arange(len(shortlist))[::-1]

    monkeypatch.setattr("lookalike.refinement.refinement.rerank", reversed_list)
    cosines = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, -np.inf, -np.inf]])
    rows = np.array([[0, 5, 6, 7], [3, 0, -1, -1]])
    changed_cosines, changed_rows = cosines.copy(), rows.copy()
    refinement = Refinement.fit(FEATURES, changed(rerank=3))
    refinement.reorder(np.array([[1.0], [2.0]]), changed_cosines, changed_rows, lambda r: 10.0 * r[:, None])
    assert asked == [([1], [[0], [50], [60]]), ([2], [[30], [0]])]
    assert changed_rows.tolist() == [[6, 5, 0, 7], [0, 3, -1, -1]]
    assert changed_cosines.tolist() == [[0.7, 0.8, 0.9, 0.6], [0.4, 0.5, -np.inf, -np.inf]]
    Refinement.fit(FEATURES, OFF).reorder(np.zeros((2, 1)), cosines, rows, None)
    assert len(asked) == 2


@pytest.mark.filterwarnings("error")
def test_of_equals_a_shortlist_keeps_the_order() -> None:
    same = np.repeat(unit_length(FEATURES[:1]), 100, axis=0)
    assert rerank(same[0], same).tolist() == list(range(100))
    two = np.concatenate([np.repeat(unit_length(FEATURES[30:31]), 40, axis=0), same[:40]])
    assert rerank(two[0], two).tolist() == list(range(80))


def test_equals_among_others_keep_their_order() -> None:
    """Two pictures as near the query and copied, two of the first for each of the second: that one comes first."""
    query, often, seldom = np.array([[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, 1]], np.float32) / 2
    shortlist = np.stack([often, often, seldom] * 10)
    rows = np.arange(30)
    assert rerank(query, shortlist).tolist() == [*rows[rows % 3 < 2], *rows[rows % 3 == 2]]


def test_near_and_average_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neighbour each beside itself, averaged over two: query and 0 choose each other, 1 and 2 too."""
    monkeypatch.setattr("lookalike.refinement.reranking.RECIPROCAL", 1)
    monkeypatch.setattr("lookalike.refinement.reranking.LOCAL", 2)
    angles = np.radians([0, 10, -50, -55])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    monkeypatch.setattr("lookalike.refinement.reranking.ORIGINAL_WEIGHT", 0.0)
    assert rerank(points[0], points[1:]).tolist() == [0, 1, 2]
    monkeypatch.setattr("lookalike.refinement.reranking.ORIGINAL_WEIGHT", 1.0)  # cosines alone
    assert rerank(points[0], points[[3, 1, 2]]).tolist() == [1, 2, 0]


# --- the fit, to the letter ------------------------------------------------------------------------------------------


def test_as_many_dimensions_as_there_are() -> None:
    assert Refinement.fit(FEATURES, changed(pca=24)).components.shape == (24, 24)
    fitted = Refinement.fit(FEATURES[:8], changed(pca=7))
    assert (fitted.components.shape, fitted.components.dtype, fitted.mean.dtype) == ((24, 7), np.float32, np.float32)
    off = Refinement.fit(FEATURES, OFF)
    assert (off.mean.shape, off.mean.dtype) == ((0,), np.float32)
    assert (off.components.shape, off.components.dtype) == ((0, 0), np.float32)


def test_mistakes_to_the_letter() -> None:
    for count, most in ((8, 7), (0, 0)):
        with pytest.raises(LookalikeError) as caught:
            Refinement.fit(FEATURES[:count], changed(pca=8))
        assert str(caught.value) == (
            f"index.refine.pca is 8, but the gallery has {count} images of 24 dimensions; choose at most {most} (one "
            "less than the images), or 0 for none, with whiten 0"
        )
    with pytest.raises(LookalikeError) as caught:
        Refinement.fit(FEATURES, changed(whiten=0.5))
    assert str(caught.value) == "index.refine.whiten needs index.refine.pca; set pca above 0 or whiten to 0"
    with pytest.raises(LookalikeError) as caught:
        Refinement.fit(np.ones((30, 6), np.float32), changed(pca=2))
    assert str(caught.value) == (
        "all 30 images of the gallery have the same embedding, so PCA finds no directions; set index.refine.pca and "
        "index.refine.whiten to 0, or check the images and the network"
    )


def test_a_gallery_of_one_direction_can_be_whitened() -> None:
    """Two pictures, ten times each: of the three directions asked for one has a variance, and the rest stay small."""
    features = np.repeat(unit_length(FEATURES[[0, 50]]), 10, axis=0)
    fitted = Refinement.fit(features, changed(pca=3, whiten=1))
    variance = ((features[0] - features[10]) ** 2).sum() / 4
    lengths = np.linalg.norm(fitted.components, axis=0)
    assert lengths[0] == pytest.approx(variance**-0.5, rel=1e-3)
    assert lengths[1:] == pytest.approx((variance * 1e-10) ** -0.5, rel=1e-3)
    assert Refinement.fit(features, changed(pca=1, whiten=0.5)).components.shape == (24, 1)
    half = np.linalg.norm(Refinement.fit(features, changed(pca=1, whiten=0.5)).components)
    assert half == pytest.approx(variance**-0.25, rel=1e-3)


def test_directions_are_ordered_and_the_mean_is_of_powered_vectors() -> None:
    fitted = Refinement.fit(FEATURES, changed(pca=5, power=0.5))
    vectors = unit_length(FEATURES)
    powered = unit_length(np.sign(vectors) * np.sqrt(np.abs(vectors)))
    assert fitted.mean == pytest.approx(powered.mean(axis=0), abs=1e-6)
    variances = ((powered - fitted.mean) @ fitted.components).var(axis=0)
    true = np.linalg.eigvalsh(np.cov(powered.T, bias=True))[::-1]
    assert variances == pytest.approx(true[:5], rel=1e-3)
    cubic = Refinement.fit(FEATURES, changed(power=0.3)).project(FEATURES[:9])
    assert cubic == pytest.approx(unit_length(np.sign(vectors[:9]) * np.abs(vectors[:9]) ** 0.3), abs=1e-5)


def test_the_fit_is_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    limits = []
    monkeypatch.setattr("threadpoolctl.threadpool_limits", lambda limit: limits.append(limit) or nullcontext())
    Refinement.fit(FEATURES, FULL)
    assert limits == [1]


# --- neighbours among many -------------------------------------------------------------------------------------------


def test_many_are_looked_for_in_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    from lookalike.refinement.faiss_setup import faiss
    from lookalike.refinement.refinement import _among

    made, vectors = [], on_grid(FEATURES.astype(np.float64))

    class Noted(faiss.IndexIVFFlat):
        def __init__(self, coarse, *arguments) -> None:
            super().__init__(coarse, *arguments)
            made.append({"given": (type(coarse), coarse.d, *arguments), "added": [], "index": self})

        def add(self, block: np.ndarray) -> None:
            made[-1]["added"].append(block)
            super().add(block)

    samples = []

    def noted(sample: np.ndarray, count: int, seed: int) -> np.ndarray:
        samples.append((len(sample), count, seed))
        return faiss_setup.centroids(sample, count, seed) if count < 2000 else np.zeros((count, 2), np.float32)

    monkeypatch.setattr(faiss, "IndexIVFFlat", Noted)
    monkeypatch.setattr("lookalike.refinement.refinement.centroids", noted)
    monkeypatch.setattr("lookalike.refinement.refinement.EXACT_NEIGHBOURS", 240)
    exactly = _among(vectors, exact=True)
    assert not made
    monkeypatch.setattr("lookalike.refinement.refinement.EXACT_NEIGHBOURS", 239)
    monkeypatch.setattr("lookalike.refinement.refinement.NEIGHBOUR_LISTS", 61)
    monkeypatch.setattr("lookalike.refinement.refinement.BLOCK", 100)
    everywhere = _among(vectors, exact=True)
    (first,) = made
    assert first["given"] == (faiss.IndexFlatIP, 24, 24, 61, faiss.METRIC_INNER_PRODUCT)  # 61: 4 times the root of 240
    assert (first["index"].nprobe, samples) == (61, [(240, 61, 0)])
    assert [len(block) for block in first["added"]] == [100, 100, 40]
    for mine, theirs in zip(everywhere(vectors[:9], 5), exactly(vectors[:9], 5), strict=True):
        assert np.array_equal(mine, theirs)
    assert exactly(vectors[:9], 5)[1][:, 0].tolist() == list(range(9))
    monkeypatch.setattr(Noted, "add", lambda self, block: None)
    _among(np.zeros((270_000, 2), np.float32), exact=True)
    assert made[-1]["given"][2:4] == (2, 2078)
    assert samples[-1] == (135_000, 2078, 0)  # every second, which leaves 64 for each list


def test_neighbours_off_the_grid_are_compared_again_in_float64() -> None:
    from lookalike.refinement.refinement import _among

    vectors = unit_length(FEATURES)
    cosines, rows = _among(vectors, exact=False)(vectors[:9], 5)
    wide = vectors.astype(np.float64)
    order = np.argsort(-(wide[:9] @ wide.T), axis=1)[:, :5]
    assert np.array_equal(rows, order)
    assert np.array_equal(cosines, np.take_along_axis(wide[:9] @ wide.T, order, axis=1).astype(np.float32))


def test_centroids_are_on_the_grid_and_near_what_they_stand_for() -> None:
    vectors = on_grid(FEATURES.astype(np.float64))
    found = faiss_setup.centroids(vectors, 8, seed=1)
    assert np.array_equal(found * STEPS, np.rint(found * STEPS)) and np.linalg.norm(found, axis=1).max() <= 1
    theirs = faiss_setup.faiss.Kmeans(24, 8, spherical=True, seed=1)
    theirs.train(vectors)
    assert (vectors @ found.T).max(axis=1).mean() > 0.99 * (vectors @ theirs.centroids.T).max(axis=1).mean()
    assert np.array_equal(faiss_setup.centroids(vectors, 8, seed=1), found)
    opposite = np.concatenate([vectors, -vectors])
    assert np.isfinite(faiss_setup.centroids(opposite, 1, seed=1)).all()


# --- the folder ------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    for chosen in (FULL, OFF):
        fitted = Refinement.fit(FEATURES, chosen)
        fitted.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["components.npy", "mean.npy"]
        loaded = Refinement.load(tmp_path, chosen)
        assert loaded.settings == chosen
        assert np.array_equal(loaded.mean, fitted.mean)
        assert np.array_equal(loaded.components, fitted.components)
        for other in (changed(pca=9), changed(pca=11), FULL if chosen is OFF else OFF):
            with pytest.raises(LookalikeError) as caught:
                Refinement.load(tmp_path, other)
            assert str(caught.value) == (
                f"{tmp_path}: the projection is not the one that index.json describes; make both anew: dvc repro "
                "--force index"
            )
    for name in ("mean", "components"):
        fitted = Refinement.fit(FEATURES, FULL)
        setattr(fitted, name, getattr(fitted, name).astype(np.float64))
        fitted.save(tmp_path)
        with pytest.raises(LookalikeError, match="is not the one that"):
            Refinement.load(tmp_path, FULL)
    np.save(tmp_path / "mean.npy", np.zeros(3))
    with pytest.raises(LookalikeError, match="is not the one that"):
        Refinement.load(tmp_path, OFF)


@pytest.mark.parametrize("name", ["mean.npy", "components.npy"])
def test_what_cannot_be_loaded_is_named(name: str, tmp_path: Path) -> None:
    Refinement.fit(FEATURES, FULL).save(tmp_path)
    np.save(tmp_path / name, np.array([{}]), allow_pickle=True)
    for content in (None, b"", b"nothing"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(LookalikeError) as caught:
            Refinement.load(tmp_path, FULL)
        said = str(caught.value)
        assert said.startswith(f"{tmp_path}: the refinement cannot be read (")
        assert said.endswith("); make it anew: dvc repro --force index (or fetch it: dvc pull)")
