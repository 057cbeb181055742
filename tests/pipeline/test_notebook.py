"""The notebook runs, on the default data set, and prints what is committed in it.

After a change to it or to the figures, `python tests/pipeline/test_notebook.py` runs it in place and keeps its outputs.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where it is run as a script

from proof.patience import patience

pytestmark = pytest.mark.slow  # DVC and a kernel

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "image_recommendation.ipynb"
PACKAGES = ("nbformat", "nbclient", "ipykernel")


def run(path: Path) -> Any:
    """Run a notebook where it lies; returns it with its outputs."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=int(patience(300)), resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
    return notebook


def texts(notebook: Any) -> list[list[str]]:
    """What each cell printed, and which pictures it showed."""
    shown = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        shown.append([each["text"] if "text" in each else " ".join(sorted(each["data"])) for each in outputs])
    return shown


def test_it_prints_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES:
        pytest.importorskip(package, reason="pip install -r requirements/dev.txt")
    import nbformat

    from tests.helpers.project import copy_project

    project = copy_project(tmp_path / "project", outputs=True)
    project.run("dvc", "pull", "--quiet")
    project.run("dvc", "repro", "--quiet", "--single-item", "download", "model")  # which a pull does not bring
    monkeypatch.setenv("LOOKALIKE_CACHE", project.environment["LOOKALIKE_CACHE"])
    monkeypatch.setenv("PYTHONPATH", str(project.folder))
    committed = nbformat.read(NOTEBOOK, as_version=4)
    assert len(committed.cells) == 10
    assert texts(run(project.folder / "notebooks" / NOTEBOOK.name)) == texts(committed)


if __name__ == "__main__":
    import nbformat

    nbformat.write(run(NOTEBOOK), NOTEBOOK)
