"""benchmarks/backbones.py: every row goes through the graph, and the table says what the experiments say."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from benchmarks import backbones_report
from benchmarks.backbones import Run, check
from lookalike.base.errors import LookalikeError
from tests.helpers.project import Project

SMALL = [
    "download.limit_per_class=8", "extract.runtime=openvino", "index.refine.pca=16", "index.refine.augment=4",
    "index.refine.expand=3", "evaluate.k=[1,5,10]", "evaluate.resamples=100", "evaluate.split_seeds=1",
    "evaluate.examples=3",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("keras_hub"), reason="KerasHub is not installed: pip install -r requirements/vit.txt")
def test_two_backbones_go_through_the_graph(project: Project, tmp_path: Path) -> None:
    clone = tmp_path / "scratch"
    words = [word for setting in SMALL for word in ("--set", setting)]
    words += ["--run", "cut", "model.backbone=MobileNetV2", "model.layer=block_6_expand_relu"]
    words += ["--run", "vit", "model.backbone=vit_tiny", "model.pooling=cls", "protocol.fraction=0.25"]
    words += ["--images", "40", "--rounds", "2", "--csv", "out/table.csv", "--plot", "out/plot.png"]
    shown = project.run("python", "benchmarks/backbones.py", str(clone), *words).stdout
    with (project.folder / "out/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["D"], row["weights"]) for row in rows] == [
        ("cut", "192", "random"),
        ("vit", "64", "random"),
    ]
    assert all(float(row["images/s"]) > 0 and float(row["CPU ms"]) > 0 for row in rows)
    assert all(int(row["bytes"]) >= 16 * 4 for row in rows)
    experiments = json.loads(Project.run(_in(project, clone), "dvc", "exp", "show", "--json").stdout)
    kept = {
        revision["name"]: revision["data"]["metrics"]["metrics/metrics.json"]["data"]
        for branch in experiments
        for experiment in branch["experiments"] or ()
        for revision in experiment["revs"]
    }
    for row in rows:
        for name, column in {"mAP": "mAP", "mAP_raw": "mAP raw", "P@1": "P@1", "queries": "queries"}.items():
            assert float(row[column]) == kept[row["run"]][name]
        assert f"| {row['run']} | {row['backbone']} | **random** |" in shown
    assert Image.open(project.folder / "out/plot.png").width > 500
    # Asked again, no stage runs: the experiments are the same commits, and so are the figures.
    kept_commits = _in(project, clone).run("git", "for-each-ref", "refs/exps").stdout
    again = project.run("python", "benchmarks/backbones.py", str(clone), *words).stdout
    assert _in(project, clone).run("git", "for-each-ref", "refs/exps").stdout == kept_commits != ""
    figures, first = ([line.split(" | ")[:11] for line in text.splitlines()] for text in (again, shown))
    assert figures == first and len(first) == 6
    # The settings of a row are its own: the second has neither the first one's layer nor, the first, its fraction.
    assert rows[1]["backbone"] == "vit_tiny, vi_t_backbone, cls"
    assert (rows[0]["queries"], rows[1]["queries"]) == ("20", "20")
    assert (project.folder / "params.yaml").read_text() == project.run("git", "show", "HEAD:params.yaml").stdout
    failed = project.run("python", "benchmarks/backbones.py", str(clone), "--run", "x", "model.backbon=y", check=False)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("backbones: error: dvc exp run --name x ")
    assert "model.backbon" in failed.stderr and "Traceback" not in failed.stderr


def _in(project: Project, folder: Path) -> Project:
    other = Project(folder)
    other.environment = project.environment
    return other


def test_the_front_is_what_nothing_beats_in_both() -> None:
    """By hand: c is slower and worse than b; a twin of b stays on the front beside it."""
    rate, quality = pd.Series([10, 20, 5, 20]), pd.Series([0.8, 0.7, 0.6, 0.7])
    assert backbones_report.on_the_front(rate, quality) == [True, True, False, True]


def test_mistakes_are_named(tmp_path: Path) -> None:
    for runs, message in (
        ([], "nothing to compare: give --run"),
        ([Run("a", ()), Run("a", ())], "--run a is given twice"),
        ([Run("model.seed=1", ())], "the first word is the row's name"),
        ([Run("a", ("model.seed",))], "'model.seed' is no setting; write KEY=VALUE"),
    ):
        with pytest.raises(LookalikeError, match=message):
            check(runs)
