"""Fine-tuning as a whole: what it saves, its kills, and its place in the graph."""

import dataclasses
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec import to_builtins

from lookalike.artifacts.arrays import Images, load_images
from lookalike.artifacts.descriptions import Embedding, Network, beside, describe
from lookalike.base import params
from lookalike.base.errors import LookalikeError
from lookalike.base.files import write_json
from lookalike.base.params import UNUSED
from lookalike.base.vectors import unit_length
from lookalike.evaluation import protocol
from lookalike.finetuning import training_images
from lookalike.finetuning.settings import Settings
from lookalike.networks.keras_setup import usable
from lookalike.runtimes import registry
from proof.effects.graph import stages
from tests.helpers.finetuning_settings import PROTOCOL, changed
from tests.helpers.import_graph import explained_only, project_files, sections_read
from tests.helpers.project import ROOT, Project, copy_project

pytestmark = pytest.mark.slow  # TensorFlow trains networks


COMMAND = ("python", "stages/finetune/finetune.py", "data/processed", "data/model", "data/finetuned")
LAST = "block_6_expand_relu"  # of MobileNetV2; what lies behind it is not needed here
SMALL = {
    "download__limit_per_class": 12, "preprocess__image_size": 32, "model__backbone": "MobileNetV2",
    "model__layer": LAST, "finetune__flip": False, "finetune__classes": 8, "finetune__images": 4, "finetune__views": 2,
    "index__refine__pca": 16, "index__refine__augment": 3, "index__refine__expand": 3, "evaluate__split_seeds": 1,
    "evaluate__resamples": 100, "evaluate__map_images": 50, "benchmark__queries": 5, "benchmark__repeats": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """120 digits, a small network, and its features, with fine-tuning off."""
    project = copy_project(tmp_path_factory.mktemp("finetune") / "project")
    project.set(**SMALL)
    assert project.repro("extract") == ["download", "preprocess", "model", "extract"]
    project.commit("off")
    return project


@pytest.fixture
def here(home: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same, and a cache of this test's own."""
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return home


def tune(project: Project, images: Images | None = None, model: Path | None = None, **values):
    from lookalike.finetuning import finetune

    images = images or load_images(project.folder / "data/processed")
    settings = params.load(project.folder / "params.yaml", "finetune", Settings)
    settings = changed(settings, **{"epochs": 2, "patience": 9} | values)
    chosen = training_images.choose(images.paths, images.labels, images.sha256, PROTOCOL, settings)
    rows: list[dict[str, float]] = []
    return finetune.tune(images, model or project.folder / "data/model", chosen, settings, rows.append), rows


def test_no_pixel_of_a_query_reaches_a_weight(here: Project) -> None:
    """Other pictures in the queries' places: the same weights, bit for bit. In a training image's place: others."""
    images = load_images(here.folder / "data/processed")
    split = protocol.split(images.paths, images.labels, images.sha256, PROTOCOL)

    def weights(rows: np.ndarray) -> bytes:
        pixels = np.array(images.pixels)
        pixels[rows] = np.random.default_rng(0).integers(0, 256, pixels[rows].shape, dtype=np.uint8)
        tuned, _ = tune(here, dataclasses.replace(images, pixels=pixels))
        return b"".join(value.tobytes() for value in tuned.model.get_weights())

    untouched = weights(split.queries[:0])
    assert len(split.queries) > 10
    assert weights(split.queries) == untouched
    assert weights(split.gallery) != untouched


@pytest.mark.parametrize(
    "values",
    [
        {"layer": "", "head": True, "precision": "float16"},  # with loss scaling; behind a layer random weights vanish
        {"layer": "block_4_add", "head": True, "loss": "triplet-semihard", "learning_rate": 1e-3},
        {
            "layer": "block_5_add",
            "head": False,
            "loss": "triplet-hard",
            "precision": "bfloat16",
            "validation": 0.0,
        },
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
def test_the_saved_network_embeds_as_the_trained_one(here: Project, tmp_path: Path, values: dict) -> None:
    """From pixels; and it learnt something."""
    images = load_images(here.folder / "data/processed")
    if not usable(values.get("precision", "float32")):
        values |= {"precision": "float32"}
    tuned, rows = tune(here, **values)
    assert len(rows) == 2 and all(np.isfinite(list(row.values())).all() for row in rows)
    assert all(("validation_mAP" in row) == (values.get("validation", 1) > 0) for row in rows)
    (tmp_path / "model").mkdir()
    network = tuned.save(tmp_path / "model")
    every = np.arange(len(images.pixels))
    expected = unit_length(tuned.trainer.embed(every))
    assert network.weights == "finetuned" and network.dim == expected.shape[1] == 192
    least = 0.99 if values.get("precision") == "bfloat16" else 0.9999
    for runtime in ("openvino",) if values["layer"] else ("openvino", "tensorflow"):
        embed = registry.runtime(runtime).load(tmp_path / "model", 32, len(every), "float32")
        assert (unit_length(embed(np.array(images.pixels))) * expected).sum(axis=1).min() > least, runtime
    start = np.load(here.folder / "data/features/features.npy")
    assert np.abs(unit_length(start) - expected).max() > 1e-4


@pytest.mark.parametrize("layer", ["", "block_5_add"])
def test_a_network_that_looks_at_mirror_images_too_is_trained_and_saved_so(
    here: Project, tmp_path: Path, layer: str
) -> None:
    from lookalike.finetuning import finetune
    from lookalike.networks import backbones

    start, saved = tmp_path / "start", tmp_path / "saved"
    for folder in (start, saved):
        folder.mkdir()
    plain = backbones.create("MobileNetV2", "random", Path(UNUSED), LAST, 0)
    backbones.save(plain, "MobileNetV2", "random", "avg", start, mirror=True)
    with pytest.raises(LookalikeError, match=r"model\.mirror is true.*set finetune\.flip to true and .*views to 2"):
        tune(here, model=start, layer=layer)
    tuned, _ = tune(here, model=start, layer=layer, flip=True, epochs=1)
    assert tuned.save(saved).mirror
    images = load_images(here.folder / "data/processed")
    every, settings = np.arange(len(images.pixels)), changed(flip=True, views=2, layer=layer)
    expected = {start: finetune.untrained(images, start, settings), saved: tuned.trainer.embed(every)}
    for folder, rows in expected.items():
        found = registry.openvino.load(folder, 32, len(every), "float32")(np.array(images.pixels))
        assert (unit_length(np.array(found)) * unit_length(rows)).sum(axis=1).min() > 0.9999


def test_a_training_lowers_its_loss(here: Project) -> None:
    _, rows = tune(here, epochs=12, learning_rate=3e-3)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer": "block_5_ad"}, r"finetune\.layer is 'block_5_ad', but .*data/model \(MobileNetV2\) has no such "
                                   r"layer; did you mean block_5_add\?"),
        ({"layer": "block_5_expand"}, r"finetune\.layer is 'block_5_expand', but some paths .* bypass it; "
                                       r"choose one that all paths pass: .*block_3_project_BN"),
        ({"head": False}, r"finetune\.layer is 'block_6_expand_relu', the last, and "
                          r"finetune\.head is false: nothing is left to"),
    ],
)  # fmt: skip
def test_a_layer_that_cannot_be_cut_behind_is_named(here: Project, values: dict, message: str) -> None:
    with pytest.raises(LookalikeError, match=message) as caught:
        tune(here, **values)
    assert "\n" not in str(caught.value)


def test_a_transformer_is_refused(tmp_path: Path) -> None:
    from lookalike.finetuning import cut

    write_json(tmp_path / "model.json", to_builtins(Network("dinov2_small", "preset", "x", "cls", 384, 9, "f")))
    with pytest.raises(
        LookalikeError, match="dinov2_small, a vision transformer; finetune trains convolutional networks"
    ):
        cut.cut(tmp_path, "", True, 224)


def test_weights_of_another_backbone_are_refused(here: Project, tmp_path: Path) -> None:
    """One line, and what was there stays."""
    for name in ("processed", "model"):
        shutil.copytree(here.folder / "data" / name, tmp_path / name)
    from lookalike.networks import backbones

    backbones.create("MobileNet", "random", Path(), "conv_pw_2_relu", 0).save_weights(
        tmp_path / "model/model.weights.h5"
    )
    command = [*COMMAND[:2], *(str(tmp_path / name) for name in ("processed", "model", "finetuned"))]
    done = here.run(*command, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert re.match(r"finetune: error: .*model\.weights\.h5 does not fit MobileNetV2", line)
    assert not (tmp_path / "finetuned").exists()


def test_dvclive_missing_is_said(here: Project, tmp_path: Path) -> None:
    (tmp_path / "dvclive.py").write_text("raise ImportError")
    environment = {**here.environment, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *COMMAND[1:]], cwd=here.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        "dvclive, which records the training's curves, is not installed: pip install -r requirements/finetune"
        in done.stderr
    )


def test_a_killed_training_ends_in_the_same_bytes(home: Project, tmp_path: Path) -> None:
    """SIGKILL at random moments: while the frozen layers are run, in and after epochs. Then the undisturbed run."""
    values = home.folder / "params.yaml"
    text = values.read_text().replace("layer: ''\n  head", "layer: block_5_add\n  head")
    assert text != values.read_text()
    (tmp_path / "params.yaml").write_text(text.replace("learning_rate: 5.0e-05", "learning_rate: 1.0e-03"))
    draw = random.Random(4)

    def start(name: str) -> subprocess.Popen:
        environment = {**home.environment, "LOOKALIKE_CACHE": str(tmp_path / f"{name}_cache")}
        command = [sys.executable, *COMMAND[1:-1], str(tmp_path / name), "--params", str(tmp_path / "params.yaml")]
        return subprocess.Popen(command, cwd=home.folder, env=environment, stderr=subprocess.PIPE, text=True)

    def state(pattern: str) -> int:
        return max((file.stat().st_mtime_ns for file in (tmp_path / "killed_cache").glob(pattern)), default=0)

    def run(name: str) -> str:
        """As nobody disturbs it; returns what it says."""
        calm = Project(home.folder)
        calm.environment["LOOKALIKE_CACHE"] = str(tmp_path / f"{name}_cache")
        return calm.run(*COMMAND[:-1], str(tmp_path / name), "--params", str(tmp_path / "params.yaml")).stderr

    run("undisturbed")
    kills, resumed = 0, False
    for pattern in ("frozen/*/done.json", "trainings/*/state.npz", "trainings/*/state.npz"):
        process, before = start("killed"), state(pattern)
        while process.poll() is None and state(pattern) == before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        if process.poll() is None:
            process.kill()
            kills += 1
        resumed |= "resumed in epoch" in process.communicate()[1]
    resumed |= "resumed in epoch" in run("killed")
    assert kills >= 2 and resumed
    names = ("model.weights.h5", "architecture.json", "model.json", "network.bin")
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
    curves = [(tmp_path / f"{name}_curves/plots/metrics/loss.tsv").read_text() for name in ("killed", "undisturbed")]
    assert curves[0] == curves[1] and len(curves[0].splitlines()) > 3


def test_on_and_off_re_run_what_they_must(home: Project) -> None:
    """Off: nothing of DVC's or Git's knows of it. On: finetune and extract. Off again: nothing, the bytes as before."""
    features = home.folder / "data/features/features.npy"
    before = features.read_bytes()
    assert not home.run("git", "status", "--porcelain").stdout
    assert "evaluate" in (status := home.run("dvc", "status").stdout) and "finetune" not in status  # not run here
    assert "finetune" not in home.run("dvc", "stage", "list", "--all").stdout
    home.set(finetune__networks=["finetuned"], extract__model="data/finetuned")
    assert home.repro("extract") == ["stages/finetune/dvc.yaml:finetune@finetuned", "extract"]
    assert features.read_bytes() != before
    assert describe(home.folder / "data/finetuned").weights == "finetuned"
    assert home.repro("extract") == []
    unknown = home.run("git", "status", "--porcelain").stdout.splitlines()
    assert {line.split()[-1] for line in unknown} == {
        "data/finetuned.json", "data/finetuned_curves/", "dvc.lock", "stages/finetune/dvc.lock", "params.yaml"
    }  # fmt: skip
    home.set(finetune__networks=[], extract__model="data/model")
    assert home.repro("extract") == []  # it ran with these before
    assert features.read_bytes() == before


def test_the_stage_declares_what_it_runs_and_reads(tmp_path: Path) -> None:
    """As tests/repository/test_graph.py asks of the stages that are in the graph by default."""
    project = copy_project(tmp_path / "project")
    project.set(finetune__networks=["finetuned"], extract__model="data/finetuned")
    graph = stages(project.folder)
    stage = graph["finetune@finetuned"]
    script = ROOT / stage.script
    assert stage.command == " ".join(COMMAND) and stage.command in script.read_text() and stage.description
    assert stage.sections == sections_read({stage.script})
    code = {dep for dep in stage.deps if dep.startswith(("lookalike", "stages/"))}
    files = {
        path.relative_to(ROOT).as_posix()
        for dep in code
        for path in ([ROOT / dep] if dep.endswith(".py") else (ROOT / dep).rglob("*.py"))
    }
    ran = {file for file in project_files(script) if not explained_only(file)}
    assert ran <= files
    for dep in code:
        assert dep in ran or any(file.startswith(f"{dep}/") for file in ran), f"{dep} is listed and never imported"
    assert {
        "data/processed",
        "data/model",
        "data/none",
        "requirements.txt",
        "requirements/finetune.txt",
    } == stage.deps - code
    assert stage.outs == {"data/finetuned", "data/finetuned.json", "data/finetuned_curves/plots/metrics"}
    assert "data/finetuned" in graph["extract"].deps and "data/model" not in graph["extract"].deps


def test_a_search_finds_the_network_of_its_index(tmp_path: Path) -> None:
    """Beside the index: data/model by default, or the fine-tuned one if that made it."""
    networks = {
        name: Network("VGG16", "random", "x", "avg", 8, 9, name * 8) for name in ("model", "finetuned", "other")
    }
    for name, network in networks.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "model.json", to_builtins(network))
    index = tmp_path / "index"
    index.mkdir()
    assert beside(index) == tmp_path / "model"  # nothing there yet: who opens the index says so
    for name in ("model", "finetuned"):
        Embedding(networks[name], 32, "pad").save(index)
        assert beside(index) == tmp_path / name
