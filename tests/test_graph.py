"""dvc.yaml says everything that a stage depends on, and nothing else."""

import re
from graphlib import TopologicalSorter

import pytest
import yaml
from import_graph import ROOT, named_imports, project_files

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def listed_files(stage: dict) -> set[str]:
    """The project's Python files among a stage's deps; a folder counts as every module in it."""
    files: set[str] = set()
    for dep in stage["deps"]:
        if dep.startswith(("lookalike", "stages")):
            path = ROOT / dep
            files |= {p.relative_to(ROOT).as_posix() for p in path.rglob("*.py")} if path.is_dir() else {dep}
    templates = {file for file in files if file.endswith(".j2")}
    assert templates == ({"lookalike/report.html.j2"} if "lookalike/report.py" in files else set())
    files -= templates
    return files


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_exactly_the_files_a_stage_runs(name: str) -> None:
    assert listed_files(STAGES[name]) == project_files(ROOT / "stages" / f"{name}.py")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_sections_it_loads(name: str) -> None:
    source = (ROOT / "stages" / f"{name}.py").read_text()
    assert set(STAGES[name]["params"]) == set(re.findall(r'params\.load\(args\.params, "(\w+)"', source))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_described_and_called_by_its_name(name: str) -> None:
    stage = STAGES[name]
    assert stage["desc"]
    assert stage["cmd"].startswith(f"python stages/{name}.py ")
    assert stage["cmd"] in (ROOT / "stages" / f"{name}.py").read_text()  # the header shows the same command
    assert "requirements.txt" in stage["deps"]


def test_every_stage_script_is_in_the_graph() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == set(STAGES)


def test_no_module_is_left_that_nothing_runs() -> None:
    """Each is run by a stage, or by a module that is a command of its own."""
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lookalike").rglob("*.py")}
    doors = [
        ROOT / name
        for name in modules
        if name.endswith("/__main__.py") or 'if __name__ == "__main__"' in (ROOT / name).read_text()
    ]
    used = set().union(*map(project_files, [*(ROOT / "stages" / f"{name}.py" for name in STAGES), *doors]))
    assert modules - used == set()


def test_imports_run_one_way() -> None:
    """The library has no circle of imports, and none of it imports a stage."""
    modules = (ROOT / "lookalike").rglob("*.py")
    graph = {path.relative_to(ROOT).as_posix(): named_imports(path) for path in modules}
    for name, files in graph.items():
        # `from lookalike import x` names the package, whose __init__ is empty
        files -= {"lookalike/__init__.py", name}
        assert not any(file.startswith("stages/") for file in files), name
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_tensorflow_is_imported_in_one_place() -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lookalike").rglob("*.py")
        if re.search(r"^\s*(import|from) (tensorflow|keras)\b", path.read_text(), re.MULTILINE)
    }
    assert importers == {"lookalike/tf.py"}
    for name in ("download", "preprocess", "index", "evaluate", "benchmark"):
        assert "lookalike/tf.py" not in project_files(ROOT / "stages" / f"{name}.py")


def test_faiss_is_imported_in_one_place() -> None:
    """Where its settings are made, on which the bits of a search depend."""
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lookalike").rglob("*.py")
        if re.search(r"^\s*(import|from) faiss\b", path.read_text(), re.MULTILINE)
    }
    assert importers == {"lookalike/fa.py"}


def test_params_of_dvc_yaml_exist() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in STAGES.values():
        assert set(stage["params"]) <= set(content)
