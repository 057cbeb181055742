"""The whole graph, run by DVC in a copy of the project, on a few real images."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proof import reproduce
from proof.patience import patience
from tests.helpers.pictures import picture
from tests.helpers.platforms import LINUX, POSIX
from tests.helpers.project import ROOT, Project, copy_project
from tests.helpers.small_run import BATCHES, RE_RUN, RESEEDED, small

pytestmark = pytest.mark.slow  # DVC


STAGES = ["download", "preprocess", "model", "extract", "index", "evaluate", "benchmark"]
RAW = {"index__refine__pca": 0, "index__refine__whiten": 0, "index__refine__augment": 0}


def metrics(project: Project) -> dict:
    return json.loads((project.folder / "metrics/metrics.json").read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small pipeline that has run once and is committed. Tests that change it work on a clone."""
    project = copy_project(tmp_path_factory.mktemp("built") / "project")
    small(project)
    assert project.repro() == ["download", "preprocess", "model", "extract", "index", "evaluate", "benchmark"]
    project.commit("built")
    return project


@pytest.fixture
def clone(built: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of the built project with its outputs and DVC cache in place."""
    shutil.copytree(built.folder, tmp_path / "clone", symlinks=True)
    yield Project(tmp_path / "clone")


def test_it_writes_what_the_readme_promises(built: Project) -> None:
    features = np.load(built.folder / "data/features/features.npy", allow_pickle=False)
    assert (features.dtype, features.shape) == (np.float32, (80, 128))
    paths = np.load(built.folder / "data/features/image_paths.npy", allow_pickle=False)
    labels = np.load(built.folder / "data/features/labels.npy", allow_pickle=False)
    assert paths.tolist() == sorted(paths.tolist())
    assert [path.split("/")[0] for path in paths.tolist()] == labels.tolist()
    assert metrics(built)["queries"] == 20
    assert metrics(built)["P@1"] > 0.3  # chance is 0.1
    [latency] = json.loads((built.folder / "metrics/latency.json").read_text())
    assert latency["brute_force"]["p50_ms"] > 0
    assert 0.9 < latency["flat"]["recall@10"] <= 1
    assert built.folder.joinpath("data/index/components.npy").exists()


def test_git_sees_the_small_and_ignores_the_big(built: Project) -> None:
    tracked = set(built.run("git", "ls-files").stdout.split())
    assert {f"data/{name}.json" for name in ("raw", "processed", "model", "features", "index")} <= tracked
    assert {"metrics/metrics.json", "plots/precision_recall.csv", "plots/precision_recall.png"} <= tracked
    assert not any(name.startswith(("data/raw/", "data/features/", "data/index/")) for name in tracked)
    assert "plots/examples.png" not in tracked
    assert built.run("git", "status", "--porcelain").stdout == ""
    assert "up to date" in built.run("dvc", "status").stdout


def test_a_second_run_does_nothing(clone: Project) -> None:
    assert clone.repro() == []


@pytest.mark.parametrize(("change", "stages"), [each for each in RE_RUN if each is not RESEEDED])  # which is below
def test_a_changed_param_re_runs_what_it_touches(clone: Project, change: dict, stages: list[str]) -> None:
    before = (clone.folder / "data/index.json").read_text()
    clone.set(**change)
    ran = clone.repro()
    if change == BATCHES and (clone.folder / "data/index.json").read_text() != before:  # as its key in params.yaml says
        stages = ["extract", "index", "evaluate", "benchmark"]
    assert sorted(ran) == sorted(stages)
    assert clone.repro() == []


def test_a_change_shows_in_metrics_and_plots_diff(built: Project, clone: Project) -> None:
    change, stages = RESEEDED
    clone.set(**change)
    assert sorted(clone.repro()) == sorted(stages)
    assert clone.repro() == []
    told = reproduce.report(reproduce.compare(built.folder, clone.folder)).splitlines()
    assert told[0] == "  model: dvc.lock: other settings (params.yaml)"
    assert any("extract: data/features: " in line and "features.npy differs: " in line for line in told)
    assert told[-1].startswith("Look first at model")
    diff = json.loads(clone.run("dvc", "metrics", "diff", "--json").stdout)
    assert {"old", "new", "diff"} <= set(diff["metrics/metrics.json"]["mAP"])
    page = clone.run("dvc", "plots", "diff", "--out", "page").stdout
    assert "index.html" in page
    html = (clone.folder / "page/index.html").read_text()
    assert "Interpolated precision against recall, mean over queries" in html
    assert "static/HEAD_plots_examples.png" in html and "static/workspace_plots_examples.png" in html


def test_metrics_and_plots_show(built: Project) -> None:
    shown = built.run("dvc", "metrics", "show", "--md").stdout
    assert "mAP" in shown and "P@10_flat" in shown
    shown = built.folder.parent / "shown"
    assert "index.html" in built.run("dvc", "plots", "show", "--out", str(shown)).stdout
    page = (shown / "index.html").read_text()
    assert "vegaEmbed('#plots_map_csv'" in page and "window.vegaEmbed" in page
    assert "<script src" not in page.replace("\n", " ")  # it opens without the internet
    assert f"vl-convert {version('vl-convert-python')} " in page, "write it anew: python proof/plots_page.py"


def test_pull_fetches_features_and_repro_skips_extract(built: Project, tmp_path: Path) -> None:
    built.run("dvc", "push")
    built.commit("pushed")
    built.run("git", "clone", "--quiet", str(built.folder), str(tmp_path / "other"))
    other = Project(tmp_path / "other")
    other.run("dvc", "pull")
    for name in ("data/features/features.npy", "data/index/index.faiss", "plots/examples.png"):
        assert (other.folder / name).read_bytes() == (built.folder / name).read_bytes()
    assert other.repro("--allow-missing") == []
    assert other.run("git", "status", "--porcelain").stdout == ""
    ran = other.repro()
    assert set(ran) == {"download", "preprocess", "model"}
    assert other.run("git", "status", "--porcelain").stdout == ""
    assert "up to date" in other.run("dvc", "status").stdout
    # What the documentation says to do next.
    lines = {
        line
        for name in ("README.md", "docs/cli.md", "docs/deploy.md")
        for line in (ROOT / name).read_text().splitlines()
    }
    said = sorted(line for line in lines if re.match(r"lookalike (search data|similar|info|bundle)\b", line))
    assert len(said) >= 6
    for line in said:
        other.run("python", "-m", "lookalike.cli", *shlex.split(line)[1:])
    assert (other.folder / "hits.png").is_file() and (other.folder / "served/index/index.faiss").is_file()


def test_a_clean_clone_without_caches_gives_the_committed_bytes(built: Project) -> None:
    """The command of `make reproduce`, with the one run that what is committed is compared with."""
    done = built.run("python", "proof/reproduce.py", "--runs", "1")
    assert "committed: the same, bit for bit" in done.stdout


def test_an_experiment_names_its_figures(clone: Project) -> None:
    before = metrics(clone)
    clone.run("dvc", "exp", "run", "--name", "other-seed", "--set-param", "protocol.seed=1")
    table = list(csv.DictReader(clone.run("dvc", "exp", "show", "--csv").stdout.splitlines()))
    row = next(row for row in table if row["Experiment"] == "other-seed")
    assert float(row["mAP"]) == metrics(clone)["mAP"] != before["mAP"]


def test_an_unlabelled_folder_is_searched_but_not_measured(clone: Project, photos: Callable[..., Path]) -> None:
    clone.set(download__dataset="folder", download__folder=str(photos(**{"": 12})), index__refine__pca=4)
    done = clone.run("dvc", "repro")
    assert "quality cannot be measured: the images have no labels" in done.stderr
    report = metrics(clone)
    assert (report["queries"], report["unmeasurable"]) == (0, "the images have no labels")
    assert "mAP" not in report
    for name in ("figures", "per_class", "per_query", "precision_recall", "precision_recall_by_rank", "recall_at_k",
                 "images_per_class", "confusion", "near_duplicates"):  # fmt: skip
        lines = (clone.folder / f"plots/{name}.csv").read_text().splitlines()
        assert len(lines) == 1 and "," in lines[0]  # the header
    for name in (
        "precision_recall",
        "recall_at_k",
        "average_precision",
        "images_per_class",
        "examples",
        "worst",
        "map",
    ):
        assert (clone.folder / f"plots/{name}.png").stat().st_size > 1000
    assert "Quality cannot be measured: the images have no labels" in (clone.folder / "plots/report.html").read_text()
    assert (
        np.load(clone.folder / "data/features/labels.npy").tolist() == [""] * 8
    )  # limit_per_class counts the unlabelled as one class
    assert json.loads((clone.folder / "metrics/latency.json").read_text())[0]["queries"] == 2
    clone.run("dvc", "metrics", "show")
    clone.run("dvc", "plots", "show", "--out", "page")


def test_an_index_of_rounded_vectors_is_timed_beside_exact_search_not_in_its_place(clone: Project) -> None:
    clone.set(index__kind="flat", index__storage="int8")
    clone.repro("benchmark")
    [latency] = json.loads((clone.folder / "metrics/latency.json").read_text())
    assert latency["flat"]["bytes"] > 2 * latency["flat_int8"]["bytes"]
    assert "recall@10" in latency["flat_int8"] and "recall@10" not in latency["flat"]
    curve = pd.read_csv(clone.folder / "plots/operating_curve.csv")
    assert list(dict.fromkeys(curve["method"])) == ["flat", "flat_int8", "hnsw"]


def test_a_changed_folder_re_runs(clone: Project, photos: Callable[..., Path]) -> None:
    folder = photos(cat=5, dog=5)
    clone.set(download__dataset="folder", download__folder=str(folder))
    assert "download" in clone.repro("extract")
    assert clone.repro("extract") == []
    picture(99).save(folder / "cat" / "new.png")
    assert "extract" in clone.repro("extract")
    assert len(np.load(clone.folder / "data/features/features.npy")) == 11


def test_one_image_is_enough_to_run(clone: Project, photos: Callable[..., Path]) -> None:
    clone.set(download__dataset="folder", download__folder=str(photos(cat=1)), **RAW)
    clone.repro()
    assert metrics(clone) == {
        "queries": 0,
        "gallery": 1,
        "images": 1,
        "unmeasurable": "no class has two different images",
    }


@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        ({"download__dataset": "digit"}, "download", "download.dataset is 'digit'"),
        ({"download__dataset": "folder"}, "download", "download.folder is 'data/none', not a folder"),
        ({"model__backbone": "ResNet5O"}, "model", "did you mean ResNet50?"),
        ({"model__weights": "file"}, "model", "data/none is not a weights file"),
        ({"evaluate__k": [1, 100]}, "evaluate", "evaluate.k has 100, but the gallery has 60 images"),
        # by TensorFlow, which has float16 on every processor, unless oneDNN is told not to use it
        ({"model__backbone": "MobileNetV2", "model__layer": "", "extract__precision": "float16",
          "extract__runtime": "tensorflow"}, "extract",
         "TensorFlow cannot compute in float16" if "ONEDNN_MAX_CPU_ISA" in os.environ else "is zero or not finite"),
        ({"index__refine__pca": 100}, "index", "index.refine.pca is 100, but the gallery has 80 images"),
        ({"index__refine__pca": 70}, "evaluate", "index.refine.pca is 70, but the gallery has 60 images"),
        ({"protocol__kind": "leave-one-out"}, "evaluate", "index.refine.pca and index.refine.augment would be"),
        ({"protocol__queries": "params.yaml"}, "evaluate", "protocol.kind is holdout; set it to lists"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line_and_half_writes_nothing(
    clone: Project, change: dict, stage: str, message: str
) -> None:
    clone.set(**change)
    done = clone.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith(f"{stage}: error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not list(clone.folder.rglob("*.partial"))
    status = clone.run("git", "status", "--porcelain").stdout
    assert "??" not in status
    clone.run("git", "checkout", "--quiet", "params.yaml")
    assert set(clone.repro()) <= {"model"}  # which nobody keeps; what DVC had removed comes back from its cache
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_a_failed_run_loses_nothing(clone: Project) -> None:
    """What DVC does not keep stays in place; the rest comes back, bit for bit, with the settings that made it."""
    outputs = ["metrics/metrics.json", "plots/per_class.csv", "plots/examples.png", "plots/report.html",
               "data/features/features.npy", "data/raw/labels.csv"]  # fmt: skip
    before = [(clone.folder / name).read_bytes() for name in outputs]
    for change in ({"evaluate__k": [1, 100]}, {"download__dataset": "caltech101", "download__url": "file:///none.zip"}):
        clone.set(**change)
        assert clone.run("dvc", "repro", check=False).returncode != 0
    assert (clone.folder / "data/raw/labels.csv").read_bytes() == before[-1]
    status = clone.run("dvc", "status").stdout
    assert "download" in status and "evaluate" in status
    clone.run("git", "checkout", "--quiet", "params.yaml")
    assert clone.repro() == []
    assert [(clone.folder / name).read_bytes() for name in outputs] == before


@POSIX
def test_a_killed_stage_runs_again_and_its_last_result_can_be_brought_back(clone: Project) -> None:
    features = clone.folder / "data/features/features.npy"
    before = features.read_bytes()
    clone.set(download__limit_per_class=0)
    process = subprocess.Popen(
        ["dvc", "repro", "extract"], cwd=clone.folder, env=clone.environment, start_new_session=True
    )
    partial = clone.folder / "data/features.partial/features.npy"
    deadline = time.monotonic() + patience(300)
    while time.monotonic() < deadline:
        if partial.exists() and partial.stat().st_size > 10_000:
            break
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert partial.exists()  # it was killed in the middle of writing
    clone.run("dvc", "checkout", "data/features")
    assert features.read_bytes() == before  # it is brought back, or made anew
    clone.repro("extract")
    assert len(np.load(features)) == 1797
    assert not partial.parent.exists()


def test_rejected_files_are_listed_or_stop_the_stage(clone: Project, photos: Callable[..., Path]) -> None:
    folder = photos(cat=6, dog=6)
    (folder / "cat" / "broken.jpg").write_bytes(b"not a picture")
    clone.set(download__dataset="folder", download__folder=str(folder), evaluate__k=[1])
    clone.repro("preprocess")
    rejected = list(csv.DictReader((clone.folder / "data/processed/rejected.csv").open()))
    assert [row["path"] for row in rejected] == ["cat/broken.jpg"]
    assert len(np.load(clone.folder / "data/processed/images.npy")) == 12
    (folder / "dog" / "broken.jpg").write_bytes(b"")
    done = clone.run("dvc", "repro", "preprocess", check=False)
    assert done.returncode != 0
    assert "preprocess: error: 2 of 14 files rejected, more than preprocess.max_rejected = 0.1" in done.stderr
    assert "\n  cat/broken.jpg: not an image" in done.stderr and "\n  dog/broken.jpg: not an image" in done.stderr


def test_features_that_do_not_match_their_paths_are_refused(clone: Project) -> None:
    np.save(clone.folder / "data/features/image_paths.npy", np.array(["a", "b"]))
    done = clone.run("python", "stages/index.py", "data/features", "out", check=False)
    assert done.returncode == 1
    assert "80 features, 2 image_paths, 80 labels; they are written together" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone.folder / "out").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_help_teaches_without_loading_anything(built: Project, stage: str) -> None:
    done = built.run("python", f"stages/{stage}.py", "--help")
    assert "Reads" in done.stdout and "Writes" in done.stdout and f"python stages/{stage}.py data" in done.stdout


@LINUX
def test_preprocess_memory_does_not_grow_with_the_number_of_images(clone: Project, tmp_path: Path) -> None:
    """Peak memory of the parent process at 200 and at 2,000 images differs by less than the pixels of 1,800."""
    peaks = []
    for count in (200, 2000):
        raw = tmp_path / f"raw{count}"
        raw.mkdir()
        picture(0).save(raw / "0.png")
        for number in range(1, count):
            os.link(raw / "0.png", raw / f"{number}.png")
        (raw / "labels.csv").write_text("path,label\n" + "".join(f"{n}.png,\n" for n in range(count)))
        clone.set(preprocess__image_size=256)
        script = (
            "import resource, runpy, sys; sys.argv[0] = 'stages/preprocess.py';"
            "runpy.run_path(sys.argv[0], run_name='__main__');"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        out = clone.run("python", "-c", script, str(raw), str(tmp_path / f"out{count}"))
        peaks.append(int(out.stdout.split()[-1]) * 1024)
    assert peaks[1] - peaks[0] < 0.2 * 1800 * 256 * 256 * 3


def test_leave_one_out_over_the_raw_cosine(clone: Project) -> None:
    clone.set(protocol__kind="leave-one-out", **RAW)
    clone.repro()
    report = metrics(clone)
    assert (report["queries"], report["gallery"]) == (80, 80)
    assert 0.1 < report["mAP"] < 1
    assert report["P@10_flat"] == pytest.approx(report["P@10"], abs=0.02)
    assert "mAP_seeds_mean" not in report  # there is one way to leave one out
    wrong = clone.run("python", "benchmarks/refinement.py", "--set", "augment=5", check=False)
    assert wrong.returncode == 1 and "would be fitted on" in wrong.stderr


def test_a_users_keras_settings_change_nothing(built: Project, tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"floatx": "float16", "image_data_format": "channels_first", "epsilon": 0.1}')
    built.environment["KERAS_HOME"] = str(tmp_path)
    try:
        built.run("python", "stages/model.py", str(tmp_path / "model"))
    finally:
        del built.environment["KERAS_HOME"]
    for name in ("model.weights.h5", "architecture.json"):
        assert (tmp_path / "model" / name).read_bytes() == (built.folder / "data/model" / name).read_bytes()


def test_figures_agree_with_one_another(built: Project) -> None:
    report = metrics(built)
    figures = {row["figure"]: row for row in csv.DictReader((built.folder / "plots/figures.csv").open())}
    queries = list(csv.DictReader((built.folder / "plots/per_query.csv").open()))
    assert report["mAP"] == pytest.approx(np.mean([float(row["AP"]) for row in queries]), abs=1e-5)
    assert report["mAP"] - report["mAP_raw"] == pytest.approx(float(figures["mAP"]["gain"]), abs=2e-6)
    assert report["mAP_low"] <= report["mAP"] <= report["mAP_high"]
    for name in ("P@5", "R@5", "Top-5", "mAP@5", "NDCG@5", "R-precision", "mAP@R", "MRR", "mAP_class_mean"):
        assert float(figures[name]["low"]) <= float(figures[name]["value"]) <= float(figures[name]["high"])


def test_the_report_is_one_file_with_everything_in_it(built: Project) -> None:
    page = (built.folder / "plots/report.html").read_text()
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # nothing is loaded from elsewhere
    for text in (
        "Map of the gallery",
        "Worst queries",
        "Classes, hardest first",
        "Near-duplicates",
        "conv_pw_2_relu",
    ):
        assert text in page
    assert f"{metrics(built)['mAP']:.3f}" in page


def test_the_grid_of_refinements_ends_in_one_table(built: Project) -> None:
    tool = "benchmarks/refinement.py"
    done = built.run("python", tool, "--set", "pca=0,8", "--set", "whiten=0", "--seeds", "0-1")
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == [
        "| setting",
        "| raw cosine",
        "| pca=0 whiten=0",
        "| pca=8 whiten=0",
    ]
    validation = built.run("python", tool, "--set", "expand=0,3", "--seeds", "0-1", "--validation")
    assert "1 splits" in validation.stdout
    for mistake, message in (
        ("pac=8", "did you mean pca?"),
        ("pca=abc", "index.refine.pca is 'abc': expected int, got str"),
    ):
        wrong = built.run("python", tool, "--set", mistake, check=False)
        assert wrong.returncode == 1 and message in wrong.stderr and "Traceback" not in wrong.stderr
