"""What words of images add to a search, measured."""

from pathlib import Path

import numpy as np
import pytest

from lookalike.artifacts.arrays import Collection
from lookalike.base.vectors import unit_length
from lookalike.evaluation import measure, tag_fusion
from lookalike.evaluation.protocol import Split
from lookalike.index.searcher import Matched
from lookalike.index.tags import Tags
from lookalike.refinement.refinement import OFF, Refinement
from stages import evaluate
from tests.helpers.tagged_vectors import circle, searcher_of


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))


def test_evaluation_ranks_as_a_search_does_and_fits_on_the_gallery_alone() -> None:
    draw = np.random.default_rng(0)
    features = unit_length(draw.standard_normal((70, 6)).astype(np.float32))
    labels, names = np.array(["a", "b"])[draw.integers(0, 2, 70)], np.array([f"{row:02}.png" for row in range(70)])
    texts = {f"{row:02}.png": " ".join(draw.choice(["sea", "sky", "red", "hat"], 2)) for row in range(0, 70, 2)}
    texts["69.png"] = "unheard"  # a query's word that the gallery lacks must not count in idf
    queries, others = np.arange(60, 70), np.arange(60)
    split = Split(queries, others, np.full((10, 1), -1, np.int64), "", ())
    split.exclude[0, 0] = 0
    mix = tag_fusion.mix_words(texts, 0.4, names[queries], names[others])
    refinement = Refinement.fit(features[others], OFF)
    result = measure.evaluate(features, labels, split, refinement, features[others], [1, 5], mix=mix)
    fitted = Tags.fit({row: texts[names[row]] for row in others.tolist() if names[row] in texts}, 0.4)
    searcher = searcher_of(features[others])
    for row, query in enumerate(queries.tolist()):
        words = fitted.weigh(texts.get(str(names[query]), ""))
        if words is None:
            expected = np.argsort(-(features[others] @ features[query]), kind="stable")
        else:
            expected = searcher.fuse(features[query : query + 1], Matched(*fitted.match(words)), 0.4, 60).rows
        expected = expected[expected != split.exclude[row, 0]][:10]
        assert result.rows[row].tolist() == expected.tolist()
    assert tag_fusion.mix_words({"69.png": "x"}, 0.4, names[queries], names[others]) is None


def test_the_stage_measures_tags_that_tell_classes_apart(tmp_path: Path) -> None:
    """By hand: of the images of each query's class, by pictures one comes first and the other last of four."""
    features = circle(0, 10, 80, 90, 2, 88)
    collection = Collection(features, np.array([f"{row}.png" for row in range(6)]), np.array(list("abbaaa")))
    split = Split(np.array([4, 5]), np.arange(4), np.full((2, 1), -1, np.int64), "", ())
    settings = evaluate.Settings(
        k=[1], resamples=100, split_seeds=1, seed=0, memory=16, examples=1, worst=1, map_images=10
    )

    def measured(weight: float, *texts: str) -> dict[str, float]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        told = {row: text for row, text in enumerate(texts) if text}
        if told:
            Tags.fit(told, weight).save(folder, {f"{row}.png": text for row, text in told.items()})
        refinement = Refinement.fit(features[:4], OFF)
        return evaluate.with_tags(folder, collection, split, refinement, features[:4], settings)

    words = ("ant", "bee", "bee", "ant", "ant", "ant")
    pictures_alone = (1 + 2 / 4) / 2
    assert measured(0.9, *words) == {"mAP_tags": pytest.approx(1)}
    assert measured(0.9, *words[:5]) == {"mAP_tags": pytest.approx((1 + pictures_alone) / 2)}  # the last has none
    assert measured(0.9, *words[:4]) == {"mAP_tags": pytest.approx(pictures_alone)}  # no query has any
    assert measured(0.9, "", "", "", "", "ant", "ant") == {}  # no image of the gallery has any
    assert measured(0, *words) == {} == measured(0.9)  # words weigh nothing; there are none
