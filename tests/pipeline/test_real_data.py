"""With photographs of Caltech-101 and ImageNet weights, from the folder LOOKALIKE_REAL_DATA: `make real`."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.project import Project, killed_until_through

DATA = Path(os.environ.get("LOOKALIKE_REAL_DATA", "data/none")).resolve()
ARCHIVE = DATA / "caltech-101.zip"
MOBILENET = DATA / "mobilenet_v2_notop_imagenet.weights.h5"
RESNET = DATA / "resnet50_notop_standin.weights.h5"

pytestmark = [
    pytest.mark.slow,  # thousands of photographs
    pytest.mark.skipif(
        not all(path.is_file() for path in (ARCHIVE, MOBILENET, RESNET)),
        reason=f"no photographs and weights in {DATA}: make real",
    ),
]


def checksum() -> str:
    """The archive's, as params.yaml takes it."""
    with ARCHIVE.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def figures(project: Project) -> dict[str, float]:
    """What evaluate measured."""
    found: dict[str, float] = json.loads((project.folder / "metrics/metrics.json").read_text())
    return found


def test_caltech_photographs_are_found_by_imagenet_features(project: Project) -> None:
    """Ten photographs of each of 97 categories, from archive to figures, through the graph."""
    project.set(
        download__dataset="caltech101", download__url=ARCHIVE.as_uri(), download__checksum=checksum(),
        download__limit_per_class=10, preprocess__image_size=224, model__backbone="MobileNetV2", model__weights="file",
        model__file=str(MOBILENET), index__refine__augment=5, index__refine__expand=5, evaluate__split_seeds=1,
        benchmark__queries=20, benchmark__repeats=1,
    )  # fmt: skip
    project.repro()
    found = figures(project)
    assert found["queries"] == 2 * 97
    assert found["P@1_raw"] > 0.7  # chance is 0.01
    assert found["mAP"] > found["mAP_raw"] > 0.5
    raw = json.loads((project.folder / "data/raw.json").read_text())
    assert (raw["images"], raw["classes"]) == (970, 97)


def test_fine_tuning_on_photographs_finds_photographs_that_it_never_saw(project: Project) -> None:
    """The head of MobileNetV2 alone, in seconds; the queries are out of its training."""
    project.set(
        download__dataset="caltech101", download__url=ARCHIVE.as_uri(), download__checksum=checksum(),
        download__limit_per_class=20, preprocess__image_size=224, model__backbone="MobileNetV2", model__weights="file",
        model__file=str(MOBILENET), finetune__flip=True, finetune__views=1, finetune__classes=32, finetune__images=4,
        finetune__learning_rate=0.00002, finetune__epochs=4, finetune__validation=0.0, evaluate__split_seeds=1,
    )  # fmt: skip
    project.repro("evaluate")
    before = figures(project)
    project.set(finetune__networks=["finetuned"], extract__model="data/finetuned")
    project.repro("evaluate")
    after = figures(project)
    assert after["queries"] == before["queries"] == 4 * 97
    assert after["mAP_raw"] > before["mAP_raw"] + 0.03
    assert after["P@1_raw"] > before["P@1_raw"] - 0.01


def test_real_weights_fit_their_backbone_and_no_other(tmp_path: Path) -> None:
    from lookalike.base.errors import LookalikeError
    from lookalike.networks import backbones

    cut = backbones.create("ResNet50", "file", RESNET, "conv4_block6_out", 0)
    assert cut.output.shape[-1] == 1024
    assert float(np.abs(cut.get_layer("conv1_conv").get_weights()[0]).max()) > 0
    for backbone, file in ("ResNet50", MOBILENET), ("MobileNetV2", RESNET), ("ResNet101", RESNET):
        with pytest.raises(LookalikeError, match=f"does not fit {backbone}"):
            backbones.create(backbone, "file", file, "", 0)


def test_a_killed_extraction_of_photographs_ends_in_the_same_bytes(project: Project) -> None:
    project.set(
        download__dataset="caltech101", download__url=ARCHIVE.as_uri(), download__checksum=checksum(),
        download__limit_per_class=3, preprocess__image_size=224, model__weights="file", model__file=str(RESNET),
        extract__runtime="openvino", extract__batch_size=8,
    )  # fmt: skip
    project.repro("extract")
    features = project.folder / "data/features/features.npy"
    undisturbed = features.read_bytes()
    shutil.rmtree(project.environment["LOOKALIKE_CACHE"])
    shutil.rmtree(features.parent)
    command = ("python", "stages/extract.py", "data/processed", "data/model", "data/features")
    journal = killed_until_through(project, command, features, rows=(20, 90), seed=0)
    assert len(journal) >= 2 and journal == sorted(journal)
    assert features.read_bytes() == undisturbed
