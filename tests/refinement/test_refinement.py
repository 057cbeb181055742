"""Each part of the refinement against its definition, written out."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import unit_length
from lookalike.evaluation.ranking import map_rankings
from lookalike.refinement import refinement as refine
from lookalike.refinement.refinement import OFF, Refinement, Settings
from tests.helpers.clustered_features import FEATURES, FULL, changed, exact


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


def test_query_expansion_by_its_definition() -> None:
    refinement = Refinement.fit(FEATURES, changed(expand=4, alpha=2))
    gallery, query = unit_length(FEATURES[20:]), unit_length(FEATURES[:1])[0]
    cosines = gallery @ query
    nearest = np.argsort(-cosines)[:4]
    expanded = query + (np.maximum(cosines[nearest], 0)[:, None] ** 2 * gallery[nearest]).sum(axis=0)
    order = np.argsort(-(gallery @ unit_length(expanded[None])[0]))
    assert exact(refinement, FEATURES[:1], gallery).rows[0].tolist() == order.tolist()


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
