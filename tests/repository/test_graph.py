"""Every dvc.yaml says all that a stage depends on, reads and writes, and nothing else."""

import re
import shutil
import subprocess
import sys
import textwrap
import threading
from functools import cache
from graphlib import TopologicalSorter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from proof.effects.graph import Stage, stages
from tests.helpers import confined
from tests.helpers.import_graph import ROOT, explained_only, named_files, named_imports, project_files, sections_read
from tests.helpers.project import copy_project
from tests.helpers.small_run import small

STAGES = stages(ROOT)
DEFAULT = [name for name, stage in STAGES.items() if stage.dvc_yaml == "dvc.yaml"]  # without optional pipelines
MADE = frozenset().union(*(stage.outs for stage in STAGES.values()))


def listed_files(stage: Stage) -> set[str]:
    """The project's code and templates among a stage's deps; a folder counts as every file in it."""
    files: set[str] = set()
    code = {Path(path).parts[0] for path in ("lookalike", *(stage.script for stage in STAGES.values()))}
    for dep in stage.deps - MADE:
        if Path(dep).parts[0] in code:
            found = [path for path in (ROOT / dep).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
            files |= {path.relative_to(ROOT).as_posix() for path in found} or {dep}
    return files


def lines(files: set[str]) -> int:
    return sum(len((ROOT / file).read_text().splitlines()) for file in files)


@pytest.mark.parametrize("name", STAGES)
def test_deps_cover_what_a_stage_runs(name: str) -> None:
    """Packages, so that a person can read the list; each of them, and each single file, is imported."""
    ran = {file for file in project_files(ROOT / STAGES[name].script) if not explained_only(file)}
    assert ran <= listed_files(STAGES[name])
    for dep in STAGES[name].deps - MADE:
        if dep.startswith("lookalike"):
            assert dep in ran or any(file.startswith(f"{dep}/") for file in ran), f"{dep} is listed and never imported"


def test_little_is_listed_that_a_stage_does_not_import() -> None:
    """A change there re-runs the stage for nothing."""
    idle = {}
    for name, stage in STAGES.items():
        unused = listed_files(stage) - project_files(ROOT / stage.script)
        idle[name] = lines({file for file in unused if not explained_only(file)})
    assert sum(idle.values()) < 1600, idle


# Floors of the house: a package imports from those to the left of it, and from no other.
FLOORS = (
    "base", "artifacts", "images", "datasets", "networks", "refinement", "runtimes", "index", "extraction",
    "evaluation", "collection", "report", "finetuning", "api", "ui", "cli",
)  # fmt: skip


def test_packages_import_from_lower_floors_only() -> None:
    packages = {path.parent.name for path in (ROOT / "lookalike").glob("*/__init__.py")}
    assert packages == set(FLOORS)
    assert [path.name for path in (ROOT / "lookalike").glob("*.py")] == ["__init__.py"]
    for path in (ROOT / "lookalike").glob("*/**/*.py"):
        own = path.relative_to(ROOT / "lookalike").parts[0]
        for file in named_imports(path):
            parts = Path(file).parts
            if parts[0] == "lookalike" and len(parts) > 2 and parts[1] != own:
                assert FLOORS.index(parts[1]) < FLOORS.index(own), f"{path.name} imports {file}"


@pytest.mark.parametrize("package", FLOORS)
def test_a_package_says_what_it_imports(package: str) -> None:
    files = {file for path in (ROOT / "lookalike" / package).rglob("*.py") for file in named_imports(path)}
    parts = {Path(file).parts for file in files if file.startswith("lookalike/")}
    used = [floor for floor in FLOORS if floor != package and any(part[1] == floor for part in parts)]
    said = " and ".join(filter(None, [", ".join(used[:-1]), used[-1]])) if used else "nothing of the library"
    assert f"Imports {said}." in " ".join((ROOT / "lookalike" / package / "__init__.py").read_text().split())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_sections_it_loads(name: str) -> None:
    """Not one more, which would re-run it in vain; that it needs not one more, its run in the sandbox shows."""
    assert STAGES[name].sections == sections_read(project_files(ROOT / STAGES[name].script))


def test_an_import_is_found_wherever_it_stands(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
        return tmp_path / name

    for name in ("a", "b", "c", "d", "e", "sub/f"):
        write(f"library/{name}.py", "")
    write("library/__init__.py", "")
    write("library/sub/__init__.py", "from . import f\nfrom .. import d\nfrom ..e import x\n")
    write("library/page.j2", "")
    write("scripts/beside.py", "params.load(where, 'two', Settings)")
    script = write("scripts/stage.py", """
        import beside
        from library import a

        def main():
            from importlib import import_module

            import_module("library.b")
            if True:
                import library.sub
            params.load(args.params, "one", Settings)
    """)  # fmt: skip
    (tmp_path / "library/a.py").write_text("NAME = 'page.j2'\nimport yaml\n")
    library = {"__init__.py", "a.py", "b.py", "d.py", "e.py", "page.j2", "sub/__init__.py", "sub/f.py"}
    files = project_files(script, tmp_path)
    assert files == {f"library/{name}" for name in library} | {"scripts/stage.py", "scripts/beside.py"}
    assert sections_read(files, tmp_path) == {"one", "two"}
    for line, message in (
        ("import_module(name)", "computed name"),
        ("importlib.import_module('.b', 'library')", "computed name"),
        ("params.load(args.params, name, Settings)", "which section"),
    ):
        file = write("scripts/computed.py", line)
        with pytest.raises(ValueError, match=message):
            sections_read(project_files(file, tmp_path), tmp_path)


def test_files_named_in_the_code_are_found() -> None:
    assert named_files(ROOT / "lookalike/report/page.py") == {"lookalike/report/page.html.j2"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_described_and_called_by_its_name(name: str) -> None:
    stage = STAGES[name]
    assert stage.description
    assert stage.command in (ROOT / stage.script).read_text()  # the header shows the same command
    assert "requirements.txt" in stage.deps
    if name in DEFAULT:
        assert stage.script == f"stages/{name}.py"


def test_every_stage_script_is_in_the_graph() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == set(DEFAULT)


# --- in a sandbox: what a stage declares, no network, and an eye on all that it writes --------------------------------


@cache
def kept_elsewhere() -> dict[str, set[str]]:
    """What docs/proof.md says that stages keep in the user's home, by stage."""
    text = (ROOT / "docs/proof.md").read_text().split("## Written elsewhere")[1]
    allowed: dict[str, set[str]] = {}
    for folder, names in re.findall(r"^\| `~/([^`]+)` \| ([^|]+) \|", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            allowed.setdefault(name, set()).add(folder)
    assert set(allowed) <= {*STAGES, "finetune"}  # which is in the graph once it has a network to make
    return allowed


def out_of_place(home: frozenset[str], allowed: set[str]) -> set[str]:
    """What lies in a home and is neither in an allowed folder nor on the way there."""
    return {
        path
        for path in home
        if not any(path.startswith(folder) or (path.endswith("/") and folder.startswith(path)) for folder in allowed)
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, confined.Ran]:
    """Every stage of the default pipeline in a sandbox of its own, fed with what those before it wrote."""
    base = tmp_path_factory.mktemp("sandbox")
    source = copy_project(base / "source")
    small(source)
    result = {}
    for name in DEFAULT:
        result[name] = confined.run(STAGES[name], source.folder, base / name)
        for out in STAGES[name].outs & frozenset().union(*(STAGES[other].deps for other in DEFAULT)):
            made, target = base / name / "project" / out, source.folder / out
            if made.is_dir():
                shutil.copytree(made, target)
            elif made.is_file():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(made, target)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT)
def test_a_stage_runs_with_what_it_declares_and_writes_its_outs(ran: dict[str, confined.Ran], name: str) -> None:
    """Cut off the network as well, all of them: by default not even download and model need it."""
    done, stage = ran[name], STAGES[name]
    assert done.status == 0, done.stderr
    assert done.refused == ()
    assert done.undeclared(stage) == set()
    assert done.missing(stage) == set()
    assert done.temporary == frozenset()
    assert out_of_place(done.home, kept_elsewhere().get(name, set())) == set()


def test_the_sandbox_sees_what_is_done_behind_its_back(tmp_path: Path) -> None:
    """A stage with every fault that it is there to find, each hidden as well as may be."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "declared").write_text("x")
    (source / "undeclared").write_text("x")
    (source / "params.yaml").write_text("mine: {a: 1}\nother: {b: 2}\n")
    (source / "sly.py").write_text(
        textwrap.dedent(f"""
        import contextlib, os, pathlib, socket, tempfile, yaml
        assert set(yaml.safe_load(open("params.yaml"))) == {{"mine"}}
        assert pathlib.Path("declared").exists() and not pathlib.Path("undeclared").exists()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9))
        with contextlib.suppress(OSError):
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
        with contextlib.suppress(OSError):
            socket.getaddrinfo("example.org", 80)
        pathlib.Path("out").write_text("x")
        pathlib.Path("folder").mkdir()
        pathlib.Path("folder/more").write_text("x")
        pathlib.Path("declared").write_text("changed")
        pathlib.Path("~/.config").expanduser().mkdir()
        pathlib.Path("~/.keras").expanduser().mkdir()
        tempfile.mkstemp()
        open({str(ROOT / "params.yaml")!r}).close()
        with contextlib.suppress(OSError):
            open("{tmp_path}/elsewhere", "w")
    """)
    )
    stage = Stage("sly", "", "dvc.yaml", ".", "python sly.py", frozenset(["declared", "sly.py"]),
                          frozenset(["mine"]), frozenset(["out", "never"]))  # fmt: skip
    done = confined.run(stage, source, tmp_path / "base")
    assert done.status == 0, done.stderr
    assert done.undeclared(stage) == {"folder/", "folder/more", "declared"}
    assert done.missing(stage) == {"never"}
    assert len(done.temporary) == 1
    assert out_of_place(done.home, {".keras/"}) == {".config/"}
    assert {kind: sum(1 for each, _ in done.refused if each == kind) for kind in ("network", "read", "write")} == {
        "network": 3, "read": 1, "write": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_a_section_that_is_not_declared_stops_a_stage(tmp_path: Path) -> None:
    stage = STAGES["download"]
    blind = Stage(**{**stage.__dict__, "sections": frozenset(["model"])})
    done = confined.run(blind, ROOT, tmp_path / "blind")
    assert done.status == 1 and "section 'download' is missing" in done.stderr


def test_the_namespace_has_no_network(tmp_path: Path) -> None:
    """Not even the machine's own, where a server listens; so what does not ask Python is cut off as well."""
    prefix = confined.network_prefix()
    if not prefix:
        pytest.skip("this machine allows no network namespace (unshare --net); the audit hook alone stood guard")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        script = f"import socket; socket.create_connection(('127.0.0.1', {server.server_port}), 5)"
        reached = [
            subprocess.run([*way, sys.executable, "-c", script], capture_output=True, check=False).returncode
            for way in ((), prefix)
        ]
        server.shutdown()
    assert reached == [0, 1]


def test_no_module_is_left_that_nothing_runs() -> None:
    """Each is run by a stage, one that is off by default too, or by a module that is a command of its own."""
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lookalike").rglob("*.py")}
    doors = [
        ROOT / name
        for name in modules
        if name.endswith("/__main__.py") or 'if __name__ == "__main__"' in (ROOT / name).read_text()
    ]
    scripts = [*(ROOT / stage.script for stage in STAGES.values()), *(ROOT / "stages/finetune").glob("*.py")]
    used = set().union(*map(project_files, [*scripts, *doors]))
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
    assert importers == {"lookalike/networks/keras_setup.py"}
    for name in ("download", "preprocess", "index", "evaluate", "benchmark"):
        assert "lookalike/networks/keras_setup.py" not in project_files(ROOT / "stages" / f"{name}.py")


def test_faiss_is_imported_in_one_place() -> None:
    """Where its settings are made, on which the bits of a search depend."""
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lookalike").rglob("*.py")
        if re.search(r"^\s*(import|from) faiss\b", path.read_text(), re.MULTILINE)
    }
    assert importers == {"lookalike/refinement/faiss_setup.py"}


def test_params_of_dvc_yaml_exist() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in STAGES.values():
        assert stage.sections <= set(content)
