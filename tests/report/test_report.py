"""What people look at: the right rows, and no crash on odd collections."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context

from lookalike.report import diagnostics, plots
from lookalike.report import page as report
from stages.evaluate import figures_of

RNG = np.random.default_rng(0)


def table(features: np.ndarray, labels: list[str], hashes: list[str] | None = None) -> pd.DataFrame:
    paths = np.array([f"{row:03}" for row in range(len(labels))])
    return diagnostics.near_duplicates(features, paths, np.array(labels), np.array(hashes or paths.tolist()), 5, 0)


@pytest.mark.parametrize("last", [True, False])
def test_a_near_duplicate_is_found_from_either_end(last: bool) -> None:
    """Sixty images of one class lie closer to each other than to the stranger, who is close to all of them."""
    dense = np.array([1, 0, 0]) + RNG.standard_normal((60, 3)) * 1e-3
    stranger = np.array([[1, 0.05, 0]])
    features = np.concatenate([dense, stranger] if last else [stranger, dense]).astype(np.float32)
    labels = ["a"] * 60 + ["b"] if last else ["b"] + ["a"] * 60
    found = table(features, labels)
    assert len(found) == 5
    assert all({row.label, row.other_label} == {"a", "b"} for row in found.itertuples())
    assert found["cosine"].is_monotonic_decreasing
    assert not found.duplicated(["path", "other_path"]).any()


def test_same_bytes_are_told_and_the_unlabelled_left_out() -> None:
    features = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    found = table(features, ["a", "b", ""], ["x", "x", "x"])
    assert found[["path", "other_path", "same_bytes"]].to_numpy().tolist() == [["000", "001", True]]
    assert list(table(features, ["", "", ""]).columns) == list(found.columns)


def test_of_too_many_images_a_seeded_sample_of_the_labelled_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "MOST_COMPARED", 10)
    features, labels = RNG.standard_normal((60, 3)).astype(np.float32), ["", "a", "b"] * 20
    paths = np.array([f"{row:03}" for row in range(60)])
    one, again, other = (
        diagnostics.near_duplicates(features, paths, np.array(labels), paths, 1000, seed) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, again)
    drawn, drawn_anew = ({*found["path"], *found["other_path"]} for found in (one, other))
    assert len(drawn) == len(drawn_anew) == 10 and drawn != drawn_anew
    assert not {labels[int(path)] for path in drawn | drawn_anew} & {""}


@pytest.mark.parametrize(
    "vectors", [np.ones((50, 4)), RNG.standard_normal((50, 1)), RNG.standard_normal((3, 4)), np.ones((0, 4))]
)
def test_what_has_no_map_gets_none(vectors: np.ndarray) -> None:
    places = diagnostics.gallery_map(vectors.astype(np.float32), np.full(len(vectors), "a"), 100, 0)
    assert list(places.columns) == ["x", "y", "class"] and len(places) == 0


def test_the_map_is_the_same_each_time_and_sampled() -> None:
    vectors, labels = RNG.standard_normal((60, 5)).astype(np.float32), np.full(60, "a")
    one, two = (diagnostics.gallery_map(vectors, labels, 40, 0) for _ in range(2))
    assert len(one) == 40
    pd.testing.assert_frame_equal(one, two)


@pytest.mark.parametrize("ranks", [[1, 10], [5, 10], [5]])
def test_the_headline_has_the_figures_that_were_asked_for(ranks: list[int]) -> None:
    names = ["mAP", "mAP_class_mean", "MRR", *(f"P@{k}" for k in ranks)]
    table = pd.DataFrame({"figure": names, "value": np.arange(len(names)) / 10, "low": 0.1, "high": 0.9, "raw": 0.25,
                          "seeds_mean": np.nan, "seeds_sd": np.nan})  # fmt: skip
    expected = {"mAP": 0.0, "mAP_low": 0.1, "mAP_high": 0.9, "mAP_raw": 0.25, "mAP_class_mean": 0.1, "MRR": 0.2}
    expected |= {"P@1": 0.3, "P@1_raw": 0.25} if 1 in ranks else {}
    expected |= {"P@10": names.index("P@10") / 10} if 10 in ranks else {}
    assert figures_of(table) == expected


def test_a_report_without_traces_has_question_marks(tmp_path: Path) -> None:
    for name in ("map", "examples"):
        (tmp_path / f"{name}.png").write_bytes(b"picture")
    tables = {
        "per_class": pd.DataFrame({"class": ["a"], "queries": [0]}),
        "confusion": pd.DataFrame({"actual": ["a"], "predicted": ["a"]}),
        "near_duplicates": table(np.eye(2, dtype=np.float32), ["", ""]),
        "figures": pd.DataFrame(columns=["figure"]),
    }
    headline = {"queries": 0, "gallery": 2, "unmeasurable": "no image has a label"}
    report.write_evaluation(tmp_path, tables, headline, None)
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert "? images (? files rejected), ? classes, from ?. ? (? weights), layer ?" in page
    assert "Quality cannot be measured: no image has a label." in page
    (tmp_path / "raw.json").write_text('{"origin": "a folder", "dataset": "mine"}')
    report.write_evaluation(tmp_path, tables, headline, tmp_path)
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert "? images (? files rejected), ? classes, from a folder." in page and "Lookalike report: mine" in page


def test_figures_are_the_same_whatever_the_users_style(tmp_path: Path) -> None:
    counts = pd.DataFrame({"class": ["$_$", "a"], "images": [2, 1], "gallery": [1, 1], "queries": [1, 0]})
    plots.images_per_class(counts, tmp_path / "a.png")  # $_$ is a broken formula, and a name that a folder may have
    with rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        plots.images_per_class(counts, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
