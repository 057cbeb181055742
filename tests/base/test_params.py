"""params.yaml is complete, documented, and strictly read."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lookalike.base import params
from lookalike.base.errors import LookalikeError
from lookalike.datasets import registry
from lookalike.evaluation import protocol
from lookalike.finetuning.settings import Settings as Finetune
from lookalike.index import build
from tests.helpers.import_graph import ROOT


def stage_settings(name: str) -> type[params.Section]:
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / "stages" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Settings


SECTIONS = {
    "download": registry.Settings,
    "index": build.Settings,
    "finetune": Finetune,
    "protocol": protocol.Settings,
    **{name: stage_settings(name) for name in ("preprocess", "model", "extract", "evaluate", "benchmark")},
}
TEXT = (ROOT / "params.yaml").read_text()


def changed(tmp_path: Path, old: str, new: str) -> Path:
    assert old in TEXT
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace(old, new))
    return path


@pytest.mark.parametrize("name", SECTIONS)
def test_the_committed_file_is_valid(name: str) -> None:
    assert params.load(ROOT / "params.yaml", name, SECTIONS[name])


def test_every_section_is_known() -> None:
    assert list(yaml.safe_load(TEXT)) == list(params.SECTIONS)
    assert set(params.SECTIONS) == set(SECTIONS)


def test_every_key_has_a_comment_above_it() -> None:
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"^ +\w+: \S", line):  # a key with a value
            assert lines[number - 1].lstrip().startswith("#"), f"params.yaml, line {number + 1}: {line}"


@pytest.mark.parametrize(
    ("section", "old", "new", "message"),
    [
        ("evaluate", "  k: [", "  kk: [", r"unknown key evaluate\.kk; did you mean k\?"),
        ("evaluate", "  k: [1, 5, 10, 20]\n", "", r"key evaluate\.k is missing"),
        ("evaluate", "[1, 5, 10, 20]", "[5, 1]", r"evaluate\.k is \[5, 1\]: list each rank once"),
        ("evaluate", "[1, 5, 10, 20]", "[0]", r"evaluate\.k\.0 is 0: expected int >= 1"),
        (
            "preprocess",
            "image_size: 64",
            "image_size: 8",
            r"preprocess\.image_size is 8: expected int >= 32",
        ),
        ("preprocess", "image_size: 64", "image_size: '64'", r"preprocess\.image_size is '64': expected int, got str"),
        ("preprocess", "fit: pad", "fit: squash", r"preprocess\.fit is 'squash': .*'crop', 'pad' or 'stretch'"),
        ("download", "dataset: digits", "dataset: digit", r"download\.dataset is 'digit': .*'digits', 'caltech101'"),
        (
            "index",
            "ef_construction: 200",
            "ef_construct: 200",
            r"unknown key index\.hnsw\.ef_construct; did you mean ef_con",
        ),
        ("protocol", "fraction: 0.2", "fraction: 1.0", r"protocol\.fraction is 1\.0: expected float < 1\.0"),
        ("model", "model:\n", "modle:\n", r"unknown section 'modle'; did you mean model\?"),
        ("model", "seed: 0\n\n# Embeddings", "seed: [\n\n# Embeddings", r"is not YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, section: str, old: str, new: str, message: str) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(LookalikeError, match=message) as caught:
        params.load(path, section, SECTIONS[section])
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_number_as_dvc_writes_it_is_a_number(tmp_path: Path) -> None:
    """`dvc exp run -S finetune.learning_rate=0.00002` writes 2e-05."""
    for written in ("2e-05", "2E-5", "+.2e-4", "0.00002"):
        path = changed(tmp_path, "learning_rate: 0.00005", f"learning_rate: {written}")
        assert params.load(path, "finetune", Finetune).learning_rate == 0.00002
    with pytest.raises(LookalikeError, match=r"learning_rate is '2e-05x'"):
        params.load(changed(tmp_path, "learning_rate: 0.00005", "learning_rate: 2e-05x"), "finetune", Finetune)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookalikeError, match=r"params\.yaml does not exist"):
        params.load(tmp_path / "params.yaml", "model", SECTIONS["model"])


@pytest.mark.parametrize("content", ["", "model", "- model\n- index\n", "3", "# nothing yet\n"])
def test_a_file_without_sections_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(LookalikeError, match=r"params\.yaml has no sections; restore it with: git checkout .*yaml$"):
        params.load(path, "model", SECTIONS["model"])


def test_a_section_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("evaluate: {k: [1]}\n")
    with pytest.raises(LookalikeError, match=r"yaml: section 'model' is missing; restore it with: git checkout"):
        params.load(path, "model", SECTIONS["model"])


def test_settings_cannot_be_changed_after_loading() -> None:
    settings = params.load(ROOT / "params.yaml", "protocol", protocol.Settings)
    with pytest.raises(AttributeError, match="immutable"):
        settings.seed = 1


def test_a_search_waits_for_no_library_that_only_others_use() -> None:
    script = "import sys, lookalike.cli, lookalike.collection.picture_search; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"tensorflow", "pydantic", "pandas", "yaml", "scipy", "openvino.tools"} & set(loaded.split())
