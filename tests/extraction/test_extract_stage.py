"""The stage extract: killed and gone on, from the cache, int8, and its mistakes."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lookalike.artifacts.arrays import ArrayWriter
from lookalike.runtimes import registry
from tests.helpers.platforms import LINUX, POSIX
from tests.helpers.project import Project, copy_project, killed_until_through
from tests.helpers.small_network import RNG

pytestmark = pytest.mark.slow  # TensorFlow, DVC and kills


COUNT = 600  # digits that a stage embeds


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """600 digits at 64 pixels and a network that is soon through with them, up to `extract`."""
    project = copy_project(tmp_path_factory.mktemp("prepared") / "project")
    project.set(extract__runtime="openvino", download__limit_per_class=COUNT // 10, model__backbone="MobileNetV2",
                model__layer="block_6_expand_relu")  # fmt: skip
    project.run("dvc", "repro", "preprocess", "model")
    return project


@pytest.fixture
def digits(prepared: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of it, with an empty cache."""
    shutil.copytree(prepared.folder, tmp_path / "project", symlinks=True)
    yield Project(tmp_path / "project")


EXTRACT = ("python", "stages/extract.py", "data/processed", "data/model", "data/features")


def known(done: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    """Images, and how many of them were known before, as the stage says."""
    count, before = re.search(
        r"extract: (\d+) images, (\d+) of them from the cache or duplicates", done.stderr
    ).groups()
    return int(count), int(before)


@POSIX
def test_a_killed_extraction_goes_on_where_it_was(digits: Project) -> None:
    """SIGKILL at random moments, over and over, until it is through; then the bytes of an undisturbed run."""
    digits.set(model__backbone="ResNet50", model__layer="")  # which gives time to be killed in
    digits.run("dvc", "repro", "model")
    done = digits.run(*EXTRACT)
    assert known(done) == (COUNT, 0)
    features = digits.folder / "data/features/features.npy"
    undisturbed = features.read_bytes()
    shutil.rmtree(digits.environment["LOOKALIKE_CACHE"])
    shutil.rmtree(features.parent)
    journal = killed_until_through(digits, EXTRACT, features, rows=(20, 150), seed=1)
    assert len(journal) >= 3
    assert journal == sorted(journal) and journal[-1] > 0
    assert features.read_bytes() == undisturbed
    assert known(digits.run(*EXTRACT)) == (COUNT, COUNT)


def test_adding_ten_embeds_ten_and_going_back_none(digits: Project) -> None:
    digits.run(*EXTRACT)
    first = (digits.folder / "data/features/features.npy").read_bytes()
    digits.set(download__exclude=["BACKGROUND_Google", "9"])
    digits.run("dvc", "repro", "preprocess")
    count, before = known(digits.run(*EXTRACT))
    assert count == before < COUNT
    raw = digits.folder / "data/raw"
    for number in range(10):
        shutil.copy(sorted(raw.glob("3/*.png"))[number], raw / f"new{number}.png")
    from PIL import Image

    for number in range(10):  # another picture each, of real handwriting
        Image.open(raw / f"new{number}.png").rotate(90).save(raw / f"new{number}.png")
    with (raw / "labels.csv").open("a") as file:
        file.writelines(f"new{number}.png,3\n" for number in range(10))
    digits.run("python", "stages/preprocess.py", "data/raw", "data/processed")
    assert known(digits.run(*EXTRACT)) == (count + 10, count)
    digits.set(download__exclude=["BACKGROUND_Google"])
    digits.run("dvc", "repro", "--force", "download", "preprocess")
    assert known(digits.run(*EXTRACT)) == (COUNT, COUNT)
    assert (digits.folder / "data/features/features.npy").read_bytes() == first


def test_a_run_from_the_cache_loads_no_network(digits: Project) -> None:
    digits.set(extract__runtime="tensorflow")
    assert known(digits.run(*EXTRACT)) == (COUNT, 0)
    again = digits.run("python", "-X", "importtime", *EXTRACT[1:])
    assert known(again) == (COUNT, COUNT)
    assert not re.search(r"\| +(tensorflow|keras|openvino)$", again.stderr, re.MULTILINE)


def test_int8_is_calibrated_on_a_frozen_set(digits: Project) -> None:
    command = ("python", "-m", "lookalike.cli.calibration", "data/processed", "data/calibration.npy", "--images", "40")
    digits.run(*command)
    again = digits.run(*command, check=False)
    assert again.returncode == 1 and "data/calibration.npy exists; it is frozen" in again.stderr
    assert np.load(digits.folder / "data/calibration.npy").shape == (40, 64, 64, 3)
    digits.set(extract__precision="int8", extract__calibration="data/calibration.npy")
    digits.run("dvc", "repro", "--single-item", "extract")
    import json

    trace = json.loads((digits.folder / "data/features.json").read_text())
    assert 0.95 < trace["least_cosine_to_float32"] < 0.999999  # 0.986 without VNNI, 0.99 and more with
    low = np.load(digits.folder / "data/features/features.npy")
    digits.set(extract__precision="float32")
    digits.run(*EXTRACT)
    full = np.load(digits.folder / "data/features/features.npy")
    cosines = (low * full).sum(axis=1) / np.linalg.norm(low, axis=1) / np.linalg.norm(full, axis=1)
    assert not np.array_equal(low, full) and cosines.min() > 0.95
    digits.set(extract__precision="int8", extract__min_cosine=0.999999)
    refused = digits.run(*EXTRACT, check=False)
    assert refused.returncode == 1
    assert re.search(r"^extract: error: extract.precision int8 moves the embedding of \S+ to a cosine of [01]\.\d+ to "
                     r"float32, below extract.min_cosine 0\.999999; ", refused.stderr, re.MULTILINE)  # fmt: skip
    assert np.array_equal(np.load(digits.folder / "data/features/features.npy"), full)  # what was there is there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, "extract.precision is int8, which needs calibration images; set images apart"),
        ({"precision": "int8", "calibration": "none.npy"}, "extract.calibration none.npy: there is no such file"),
        ({"precision": "int8", "calibration": "params.yaml"}, "extract.calibration params.yaml is not a readable .npy"),
        (
            {"precision": "int8", "calibration": "data/processed/labels.npy"},
            r"is \(600,\), not uint8 \(n, 64, 64, 3\)",
        ),
        (
            {"precision": "int8", "runtime": "tensorflow"},
            "extract.runtime=tensorflow does not have; set the runtime to openvino",
        ),
        ({"runtime": "onnx"}, "extract.runtime is 'onnx': expected 'auto', 'tensorflow' or 'openvino'"),
        ({"batch_size": -1}, "extract.batch_size is -1: expected int >= 0"),
    ],
)
def test_mistakes_are_named(digits: Project, change: dict, message: str) -> None:
    digits.set(**{f"extract__{key}": value for key, value in change.items()})
    done = digits.run(*EXTRACT, check=False)
    assert done.returncode == 1
    assert re.search(rf"^extract: error: .*{message}", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("broken", ["import", "package"])
def test_a_missing_openvino_is_named(digits: Project, broken: str) -> None:
    """Imports of it fail; or there is no sign of it at all."""
    without = digits.folder / "without"
    without.mkdir()
    if broken == "import":
        (without / "openvino.py").write_text("raise ImportError('no such library')")
        message = "OpenVINO cannot be imported (no such library): pip install -r requirements.txt"
    else:
        (without / "sitecustomize.py").write_text(
            "import importlib.metadata as m\nreal = m.version\n"
            "def version(name):\n"
            "    if name == 'openvino': raise m.PackageNotFoundError(name)\n"
            "    return real(name)\n"
            "m.version = version\n"
        )
        message = "openvino is not installed: pip install -r requirements.txt"
    digits.environment["PYTHONPATH"] = str(without)
    done = digits.run(*EXTRACT, check=False)
    assert f"extract: error: {message}" in done.stderr
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_the_fastest_batch_size_is_found_once(digits: Project) -> None:
    import json

    digits.set(extract__batch_size=0, extract__runtime="openvino")
    assert known(digits.run(*EXTRACT)) == (COUNT, 0)
    chosen = json.loads((digits.folder / "data/features.json").read_text())["batch_size"]
    assert chosen in (8, 16, 32, 64, 128, 256, 512, 1024)
    assert known(digits.run(*EXTRACT)) == (COUNT, COUNT)


@pytest.mark.parametrize("runtime", registry.RUNTIMES)
@LINUX
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, small: Path, runtime) -> None:
    """Peak memory of the stage at some thousands of images of 32 pixels, and at ten times as many, within 10 %."""
    project = copy_project(tmp_path / "project")
    project.set(extract__runtime=runtime)
    shutil.copytree(small, project.folder / "data/model")
    peaks = []
    for count in (2_000, 20_000) if runtime == "openvino" else (300, 3_000):  # how they are read and kept is the same
        processed = tmp_path / f"processed{count}"
        processed.mkdir()
        with ArrayWriter(processed / "images.npy", (count, 32, 32, 3), np.uint8) as images:
            for start in range(0, count, 100):
                images.write(np.arange(start, start + 100), RNG.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8))
        names = np.array([f"{row:064d}" for row in range(count)])  # as long as a hash, or a path
        for name in ("image_paths", "labels", "sha256"):
            np.save(processed / f"{name}.npy", names)
        (processed / "fit.txt").write_text("pad\n")
        script = (
            "import resource, runpy, sys; sys.argv[0] = 'stages/extract.py';"
            "runpy.run_path(sys.argv[0], run_name='__main__');"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = project.run("python", "-c", script, str(processed), "data/model", str(tmp_path / "features"))
        assert known(done) == (count, 0)
        peaks.append(int(done.stdout.split()[-1]))
    assert abs(peaks[1] / peaks[0] - 1) < 0.1, peaks


def test_the_cache_is_listed_and_pruned(digits: Project) -> None:
    digits.run(*EXTRACT)
    root = Path(digits.environment["LOOKALIKE_CACHE"])
    listed = digits.run("python", "-m", "lookalike.cli.cache").stdout
    assert re.search(
        r"MB  \d{4}-\d\d-\d\d  embeddings  600 images by MobileNetV2 block_6_expand_relu avg 64 float32 32", listed
    )
    assert f"kept in {root}" in listed
    wrong = digits.run("python", "-m", "lookalike.cli.cache", "prune", check=False)
    assert wrong.returncode == 2 and "prune needs --unused-for DAYS" in wrong.stderr
    digits.run("python", "-m", "lookalike.cli.cache", "prune", "--unused-for", "1", "--keep-gb", "1")
    assert known(digits.run(*EXTRACT)) == (COUNT, COUNT)
    file = next(root.glob("embeddings/*.sqlite"))
    os.utime(file, (0, time.time() - 2 * 86_400))
    deleted = digits.run("python", "-m", "lookalike.cli.cache", "prune", "--unused-for", "1").stdout
    assert "600 images" in deleted and not file.exists()
    assert known(digits.run(*EXTRACT)) == (COUNT, 0)
    for option in ("--unused-for", "--keep-gb"):
        wrong = digits.run("python", "-m", "lookalike.cli.cache", "prune", option, "-1", check=False)
        assert wrong.returncode == 2 and f"{option} is -1; choose 0 or more" in wrong.stderr
    digits.run("python", "-m", "lookalike.cli.cache", "prune", "--keep-gb", "0")
    assert not list(root.glob("embeddings/*"))
