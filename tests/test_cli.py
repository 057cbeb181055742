"""The command line as a user has it: a folder of photographs, its pipeline, and `lookalike` in between."""

import contextlib
import csv
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from conftest import POSIX, Project, copy_project, picture
from msgspec import convert
from test_pipeline import small

from lookalike import cli
from lookalike.collection.journal import Event, Journal
from lookalike.datasets import registry
from lookalike.datasets.folder import labels_of

pytestmark = pytest.mark.slow  # DVC, and a process a command

PHOTOS = {"ant": 8, "bee": 8, "cat": 8, "": 1}
COUNT = sum(PHOTOS.values())


@dataclass(frozen=True)
class Done:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def hits(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def paths(self) -> list[str]:
        return [hit["path"] for hit in self.hits]


@dataclass(frozen=True)
class Home:
    """A user's project, and beside it the folder of photographs it is made from, and new pictures."""

    project: Project

    @property
    def folder(self) -> Path:
        return self.project.folder

    @property
    def photos(self) -> Path:
        return self.folder.parent / "photos"

    def new(self, seed: int, name: str = "new.png") -> str:
        """A new picture beside the project, another one for each seed."""
        path = self.folder.parent / "new" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        picture(seed).save(path)
        return os.path.relpath(path, self.folder)

    def lookalike(self, *arguments: str, stdin: bytes = b"") -> Done:
        """Run the command in this process, which has imported everything; `shell` is the real thing."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.folder):
            patch.setenv("LOOKALIKE_CACHE", self.project.environment["LOOKALIKE_CACHE"])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    cli.app(list(arguments), prog_name="lookalike")
                except SystemExit as exit:
                    if isinstance(exit.code, str):  # as Python does
                        err.write(exit.code + "\n")
                    status = exit.code if isinstance(exit.code, int) else 1
        return Done(status, out.getvalue(), err.getvalue())

    def do(self, *arguments: str, stdin: bytes = b"") -> Done:
        """Run the command, which must end well."""
        done = self.lookalike(*arguments, stdin=stdin)
        assert done.status == 0, done.err
        return done

    def shell(self, *arguments: str, check: bool = True) -> Done:
        done = self.project.run("python", "-m", "lookalike.cli", *arguments, check=check)
        return Done(done.returncode, done.stdout, done.stderr)

    def events(self) -> list[Event]:
        return Journal(self.folder / "data/changes").events()

    def settings(self) -> registry.Settings:
        content = yaml.safe_load((self.folder / "params.yaml").read_text())["download"]
        return convert(content | {"folder": str(self.photos)}, registry.Settings)

    def with_csv(self) -> Path:
        """Say the same labels by a CSV, with a third column, in another order."""
        rows = [
            {"note": f"n{path}", "path": path, "label": label} for path, label in labels_of(self.settings()).items()
        ]
        table = self.photos / "labels.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["note", "path", "label"])
            writer.writeheader()
            writer.writerows(reversed(rows))
        self.project.set(download__labels="labels.csv")
        return table


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Photographs of three classes and one of none, indexed and committed. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("built")
    seeds = itertools.count()
    for label, count in PHOTOS.items():
        (folder / "photos" / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(next(seeds)).save(folder / "photos" / label / f"{number}.png")
    project = copy_project(folder / "project")
    small(project)
    project.set(download__dataset="folder", download__folder="../photos", download__limit_per_class=0,
                extract__runtime="openvino")  # fmt: skip
    assert project.repro("index") == ["download", "preprocess", "model", "extract", "index"]
    project.commit("built")
    return Home(project)


@pytest.fixture
def home(built: Home, tmp_path: Path) -> Home:
    """A copy of it."""
    shutil.copytree(built.folder.parent, tmp_path / "home", symlinks=True)
    return Home(Project(tmp_path / "home" / "project"))


@pytest.fixture(scope="module")
def untouched(built: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A copy that only mistakes are made in, and nothing comes of them."""
    folder = tmp_path_factory.mktemp("untouched") / "home"
    shutil.copytree(built.folder.parent, folder, symlinks=True)
    return Home(Project(folder / "project"))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- searching ---------------------------------------------------------------------------------------------------


def test_a_picture_is_found_first_by_itself(built: Home) -> None:
    done = built.do("search", "../photos/bee/3.png", "-k", "5")
    assert done.err == ""
    assert [sorted(hit) for hit in done.hits] == [["cosine", "label", "path", "query", "rank"]] * 5
    assert done.hits[0] | {"cosine": 0} == {
        "query": "../photos/bee/3.png", "rank": 1, "path": "bee/3.png", "label": "bee", "cosine": 0
    }  # fmt: skip
    assert [hit["rank"] for hit in done.hits] == [1, 2, 3, 4, 5]
    cosines = [hit["cosine"] for hit in done.hits]
    assert cosines == sorted(cosines, reverse=True) and 0.9 < cosines[0] <= 1
    assert len(built.do("search", "../photos/bee/3.png").hits) == 10
    assert len(built.do("search", "../photos/bee/3.png", "-k", str(COUNT)).hits) == COUNT


def test_several_pictures_a_folder_and_standard_input(built: Home) -> None:
    both = built.do("search", "../photos/cat/1.png", "../photos/0.png", "-k", "2")
    assert [(hit["query"], hit["rank"]) for hit in both.hits] == [
        ("../photos/cat/1.png", 1), ("../photos/cat/1.png", 2), ("../photos/0.png", 1), ("../photos/0.png", 2)
    ]  # fmt: skip
    assert (both.paths[0], both.paths[2]) == ("cat/1.png", "0.png")
    folder = built.do("search", "../photos", "-k", "1")
    assert [hit["query"] for hit in folder.hits] == [f"../photos/{path}" for path in sorted(contents_of(built.photos))]
    assert [f"../photos/{hit['path']}" for hit in folder.hits] == [hit["query"] for hit in folder.hits]
    piped = built.do("search", "-", "-k", "2", stdin=(built.photos / "cat/1.png").read_bytes())
    assert [hit["query"] for hit in piped.hits] == ["-", "-"] and piped.paths == both.paths[:2]


def test_a_folder_is_searched_without_what_is_hidden_in_it(home: Home) -> None:
    (home.photos / "ant/._0.png").write_bytes(b"what a Mac leaves")
    (home.photos / ".trash").mkdir()
    (home.photos / ".trash/0.png").write_bytes(b"")
    (home.photos / "notes.txt").write_text("no picture")
    assert len(home.do("search", "../photos", "-k", "1").hits) == COUNT


@POSIX
def test_a_table_for_people_and_json_for_programs(built: Home) -> None:
    query = "../photos/bee/3.png"
    table = built.do("search", query, "-k", "2", "--table").out.splitlines()
    assert re.fullmatch(r" +1 +0\.9\d+ +bee +bee/3\.png", table[0]) and len(table) == 2
    both = built.do("search", query, "../photos/0.png", "-k", "2", "--table").out.splitlines()
    assert (both[0], both[1:3], both[3]) == (query, table, "../photos/0.png") and len(both) == 6
    by_default = built.do("search", query, "-k", "2").out
    assert by_default == built.do("search", query, "-k", "2", "--json").out != "\n".join(table)

    controller, terminal = os.openpty()
    command = [sys.executable, "-m", "lookalike.cli", "search", query, "-k", "2"]
    subprocess.run(command, cwd=built.folder, env=built.project.environment, stdout=terminal, check=True)
    os.close(terminal)
    assert os.read(controller, 10_000).decode().splitlines() == table
    os.close(controller)


def test_a_class_and_a_least_similarity(built: Home) -> None:
    query = "../photos/bee/3.png"
    everything = built.do("search", query, "-k", str(COUNT)).hits
    cats = built.do("search", query, "-k", str(COUNT), "--label", "cat").hits
    assert [hit["path"] for hit in cats] == [hit["path"] for hit in everything if hit["label"] == "cat"]
    assert [hit["rank"] for hit in cats] == list(range(1, 9))
    assert built.do("search", query, "--label", "").paths == ["0.png"]  # those without a class
    least = str(everything[4]["cosine"] - 1e-4)
    assert built.do("search", query, "--min-similarity", least).hits == everything[:5]
    assert built.do("search", query, "--min-similarity", "1").out == ""


def test_similar_images_of_the_collection(home: Home) -> None:
    """They need no network: it is deleted."""
    shutil.rmtree(home.folder / "data/model")
    done = home.do("similar", "bee/3.png", "-k", "4")
    assert len(done.hits) == 4 and "bee/3.png" not in done.paths
    assert {hit["query"] for hit in done.hits} == {"bee/3.png"}
    assert [hit["rank"] for hit in done.hits] == [1, 2, 3, 4]
    everything = home.do("similar", "bee/3.png", "-k", str(COUNT - 1)).hits
    assert everything[:4] == done.hits and len(everything) == COUNT - 1
    cats = home.do("similar", "bee/3.png", "--label", "cat").paths
    assert cats == [hit["path"] for hit in everything if hit["label"] == "cat"]
    assert len(home.do("similar", "bee/3.png", "--label", "bee").hits) == 7
    assert re.match(r" +1 ", home.do("similar", "bee/3.png", "--table").out)


def test_a_search_loads_neither_tensorflow_nor_what_only_fits(built: Home) -> None:
    for arguments in (["search", "../photos/bee/3.png"], ["similar", "bee/3.png"], ["info"], ["--help"]):
        done = built.project.run("python", "-X", "importtime", "-m", "lookalike.cli", *arguments)
        loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
        assert "click" in loaded and not loaded & {"tensorflow", "keras", "scipy", "sklearn", "pandas"}
        assert ("openvino" in loaded) == (arguments[0] == "search") and ("faiss" in loaded) == (
            arguments[0] != "--help"
        )


def test_a_reader_that_has_had_enough_is_no_error(built: Home) -> None:
    line = f"{shlex.quote(sys.executable)} -m lookalike.cli search ../photos --json | head -1"
    done = built.project.run("bash", "-c", line)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


# --- changing ----------------------------------------------------------------------------------------------------


def test_what_is_added_is_found_and_what_is_removed_is_not(home: Home) -> None:
    new, other = home.new(100), home.new(101, "other.png")
    assert home.do("add", new, "--label", "dog").out == ""
    assert home.do("search", new, "-k", "1").hits[0].items() >= {"path": "dog/new.png", "label": "dog"}.items()
    home.do("add", other, "--as", "cat/0.png", "--label", "cat", "--replace")
    assert home.do("search", other, "-k", "1").paths == ["cat/0.png"]
    old = home.do("search", "../photos/cat/0.png", "-k", str(COUNT + 1)).hits
    assert next(hit for hit in old if hit["path"] == "cat/0.png")["cosine"] < 0.9
    home.do("add", "-", "--as", "plain.jpg", stdin=Path(home.folder, new).read_bytes())
    assert home.do("similar", "dog/new.png", "-k", "1").hits[0].items() >= {"path": "plain.jpg", "label": ""}.items()
    before = json.loads(home.do("info").out)
    assert [before[key] for key in ("images", "classes", "added", "removed")] == [COUNT + 2, 4, 3, 1]
    home.do("remove", "dog/new.png", "bee/0.png")
    found = home.do("search", new, "-k", str(COUNT)).paths
    assert len(found) == COUNT and not {"dog/new.png", "bee/0.png"} & {*found} and found[0] == "plain.jpg"
    after = json.loads(home.do("info").out)
    assert [after[key] for key in ("images", "classes", "added", "removed")] == [COUNT, 3, 2, 2]
    assert after["index"]["kind"] == "flat" and after["embedding"]["network"]["backbone"] == "MobileNet"
    home.do("add", new, "--label", "dog")  # what was removed may come back
    assert home.do("search", new, "-k", "1", "--label", "dog").paths == ["dog/new.png"]
    assert home.shell("search", new, "-k", "1", "--label", "dog").paths == ["dog/new.png"]


def test_a_folder_is_added_but_for_what_cannot_be_decoded(home: Home) -> None:
    for number in range(5):
        home.new(200 + number, f"{number}.png")
    Path(home.folder, "../new/3.png").write_bytes(b"broken")
    done = home.lookalike("add", "../new", "--label", "dog")
    assert done.status == 1
    _, error, said = done.err.splitlines()  # the first advises a rebuild
    assert error.startswith("lookalike: error: ../new/3.png: not an image in a known format")
    assert said == "lookalike: 4 images added"
    assert sorted(home.do("search", "../new/4.png", "--label", "dog").paths) == [
        f"dog/{number}.png" for number in (0, 1, 2, 4)
    ]


def test_nothing_is_to_be_done_or_committed_after_a_change(home: Home) -> None:
    home.do("add", home.new(100), "--label", "dog")
    home.do("remove", "bee/0.png")
    assert home.project.run("git", "status", "--porcelain").stdout == ""
    assert home.project.repro("index") == []
    assert home.do("search", "../new/new.png", "-k", "1").paths == ["dog/new.png"]


def test_changes_outlive_rebuilt_indexes_until_the_folder_has_them(home: Home) -> None:
    """Add, rebuild with other settings, search; fold, rebuild, search: the same pictures all the way."""
    new, better = home.new(100), home.new(101, "better.png")
    originals = contents_of(home.photos)
    home.do("add", new, "--label", "dog")
    home.do("add", better, "--as", "cat/0.png", "--label", "cat", "--replace")
    home.do("remove", "bee/0.png", "bee/1.png")
    home.do("add", better, "--as", "bee/1.png", "--label", "bee")

    def is_changed() -> bool:
        first = [home.do("search", query, "-k", "1", "--label", label).paths for query, label in
                 ((new, "dog"), (better, "cat"), (better, "bee"))]  # fmt: skip
        unknown = home.lookalike("similar", "bee/0.png")
        assert "bee/0.png is not in the collection" in unknown.err
        return first == [["dog/new.png"], ["cat/0.png"], ["bee/1.png"]]

    assert is_changed()
    home.project.set(index__refine__power=1)
    assert home.project.repro("index") == ["index"]
    told = home.do("search", new, "-k", "1").err
    assert told == ("lookalike: the index was rebuilt: 4 changes made since the one before are carried over, 0 are in "
                    "it already\n")  # fmt: skip
    assert is_changed() and home.do("search", new, "-k", "1").err == ""

    done = home.do("fold")
    assert done.err == "lookalike: 3 images written to ../photos, 1 taken out; rebuild the index: dvc repro\n"
    folder = contents_of(home.photos)
    assert folder == {
        **{path: content for path, content in originals.items() if path != "bee/0.png"},
        "dog/new.png": Path(home.folder, new).read_bytes(),
        "cat/0.png": Path(home.folder, better).read_bytes(),
        "bee/1.png": Path(home.folder, better).read_bytes(),
    }
    kept = contents_of(home.folder / "data/changes/originals")
    assert kept == {path: originals[path] for path in ("bee/0.png", "bee/1.png", "cat/0.png")}
    assert is_changed()  # not rebuilt yet
    again = home.do("fold")
    assert again.err.startswith("lookalike: 0 images written") and contents_of(home.photos) == folder

    assert home.project.repro("index") == ["download", "preprocess", "extract", "index"]
    assert "0 changes made since the one before are carried over, 4 are in it already" in home.do("info").err
    assert is_changed() and home.events() == []
    now = json.loads(home.do("info").out)
    assert [now[key] for key in ("images", "classes", "added", "removed")] == [COUNT, 4, 0, 0]


def test_whichever_command_comes_first_carries_changes_over(home: Home) -> None:
    home.do("add", home.new(100), "--label", "dog")
    home.project.set(index__refine__expand=0)
    assert home.project.repro("index") == ["index"]
    changes, before = home.folder / "data/changes", contents_of(home.folder / "data/changes")
    for first in (["add", home.new(101, "b.png")], ["remove", "dog/new.png"], ["similar", "dog/new.png"], ["fold"]):
        shutil.rmtree(changes)
        changes.mkdir()
        for name, content in before.items():
            (changes / name).write_bytes(content)
        done = home.do(*first)
        assert "1 changes made since the one before are carried over" in done.err, first


def test_another_size_of_pictures_embeds_changes_anew(home: Home) -> None:
    new = home.new(100)
    home.do("add", new, "--label", "dog")
    home.project.set(preprocess__image_size=48)
    assert home.project.repro("index") == ["preprocess", "extract", "index"]
    done = home.do("search", new, "-k", "1")
    assert done.paths == ["dog/new.png"] and "1 changes made since the one before are carried over" in done.err
    before = home.events()[0].embedding
    home.do("add", new, "--label", "dog", "--replace")
    assert (home.events()[-1].embedding == before).all()


# --- folding -----------------------------------------------------------------------------------------------------


def test_a_csv_of_labels_is_kept_up_to_date(home: Home) -> None:
    table = home.with_csv()
    before = list(csv.DictReader(table.open()))
    home.do("add", home.new(100), "--as", "anywhere/new.png", "--label", 'a, "b"')
    home.do("add", home.new(101, "c.png"), "--as", "cat/0.png", "--label", "dog", "--replace")
    home.do("add", home.new(102, "plain.png"))
    home.do("remove", "bee/0.png")
    home.do("fold")
    after = list(csv.DictReader(table.open()))
    assert table.read_text().splitlines()[0] == "note,path,label"
    assert after[-2:] == [
        {"note": "", "path": "anywhere/new.png", "label": 'a, "b"'}, {"note": "", "path": "plain.png", "label": ""}
    ]  # fmt: skip
    assert after[:-2] == [
        row | ({"label": "dog"} if row["path"] == "cat/0.png" else {}) for row in before if row["path"] != "bee/0.png"
    ]
    labels = labels_of(home.settings())  # which also looks whether every file is there
    found = home.do("search", "../new/new.png", "-k", str(COUNT + 1)).hits
    assert {hit["path"]: hit["label"] for hit in found} == labels
    assert not (home.photos / "bee/0.png").exists()
    text = table.read_bytes()
    table.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))  # as a spreadsheet saves it
    saved = table.read_bytes()
    home.do("fold")
    assert table.read_bytes() == saved  # nothing was to be folded


def test_what_was_folded_survives_a_power_cut(home: Home) -> None:
    """The journal forgets a picture once the folder has it; so the folder must have it on disk by then."""
    home.do("add", home.new(100), "--label", "dog")
    home.do("add", home.new(101, "c.png"), "--as", "cat/0.png", "--label", "cat", "--replace")
    home.do("remove", "bee/0.png")
    synced, real = [], os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino) or real(number))
        home.do("fold")
    originals = home.folder / "data/changes/originals"
    for path in (
        home.photos / "dog/new.png",
        home.photos / "cat/0.png",
        originals / "cat/0.png",
        originals / "bee/0.png",
    ):
        assert {path.stat().st_ino, path.parent.stat().st_ino} <= {*synced}, path


@pytest.mark.parametrize("dataset", ["digits", "caltech101"])
def test_only_a_folder_of_ones_own_is_changed(home: Home, dataset: str) -> None:
    home.do("add", home.new(100), "--label", "dog")
    home.project.set(download__dataset=dataset, download__folder="data/none")
    before = contents_of(home.photos)
    done = home.lookalike("fold")
    assert (done.status, done.out) == (1, "") and done.err.count("\n") == 1
    assert f"lookalike: error: download.dataset is {dataset}, whose images are not a folder of yours" in done.err
    assert contents_of(home.photos) == before
    assert home.do("search", "../new/new.png", "-k", "1").paths == ["dog/new.png"]


@pytest.mark.parametrize("layout", ["folder", "csv"])
def test_a_conflict_changes_nothing(home: Home, layout: str) -> None:
    if layout == "csv":
        home.with_csv()
    home.do("add", home.new(100), "--label", "dog")
    home.do("add", home.new(101, "c.png"), "--as", "cat/0.png", "--label", "cat", "--replace")
    home.do("remove", "bee/0.png")
    target = home.photos / "dog/new.png"
    target.parent.mkdir()
    picture(555).save(target)
    before, folded = contents_of(home.photos), Journal(home.folder / "data/changes").bound().folded
    done = home.lookalike("fold")
    assert done.status == 1 and done.err.count("\n") == 1
    assert "dog/new.png exists with other content; nothing was folded: move it away, or remove dog/new.png" in done.err
    assert contents_of(home.photos) == before
    assert Journal(home.folder / "data/changes").bound().folded == folded
    assert not (home.folder / "data/changes/originals").exists()
    target.unlink()
    home.do("fold")
    assert target.read_bytes() == Path(home.folder, "../new/new.png").read_bytes()
    home.do("add", home.new(103), "--label", "dog", "--replace")  # its own file is no conflict
    home.do("fold")
    assert target.read_bytes() == Path(home.folder, "../new/new.png").read_bytes()


def test_a_file_that_never_was_in_the_collection_is_not_taken_out(home: Home) -> None:
    home.do("add", home.new(100), "--label", "dog")
    home.do("remove", "dog/new.png")
    (home.photos / "dog").mkdir()
    picture(555).save(home.photos / "dog/new.png")
    before = contents_of(home.photos)
    home.do("fold")
    assert contents_of(home.photos) == before


@pytest.mark.parametrize(
    ("path", "label", "advice"),
    [
        ("cat/x.png", "dog", "name it dog/x.png"),
        ("cat/x.png", "", "label it cat"),
        ("x.png", "dog", "name it dog/x.png"),
    ],
)
def test_a_path_of_another_class_is_not_folded(home: Home, path: str, label: str, advice: str) -> None:
    home.do("add", home.new(100), "--as", path, "--label", label)
    home.do("remove", "bee/0.png")
    before = contents_of(home.photos)
    done = home.lookalike("fold")
    assert done.status == 1 and done.err.count("\n") == 1
    assert f"the first folder of a path is its class; {advice}" in done.err
    assert contents_of(home.photos) == before


METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)  # a fork of this process, which has threads, may deadlock
TOUCHES = ("open", "replace", "unlink", "mkdir")  # of a Path: whatever changes a file, and some that do not


@contextlib.contextmanager
def each_touch(happens: Callable[[bool], None]) -> Iterator[None]:
    """Call something before (False) and after (True) each time that a file is touched."""

    def told(real: Callable[..., Any]) -> Callable[..., Any]:
        def touch(*given: Any, **named: Any) -> Any:
            happens(False)
            result = real(*given, **named)
            happens(True)
            return result

        return touch

    with pytest.MonkeyPatch.context() as patch:
        for name in TOUCHES:
            patch.setattr(Path, name, told(getattr(Path, name)))
        yield


def fold_and_die(home: Home, moment: int) -> None:
    """Fold, and SIGKILL oneself at a moment."""
    moments = itertools.count()
    with each_touch(lambda after: os.kill(os.getpid(), signal.SIGKILL) if next(moments) == moment else None):
        home.do("fold")


@pytest.fixture(scope="module")
def processes() -> None:
    """Let child processes find this file, and import what they need only once."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]))
        CONTEXT.set_forkserver_preload(["test_cli", "lookalike.collection.fold", "lookalike.collection.picture_search"])
        process = CONTEXT.Process(target=int)
        process.start()
        process.join()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("layout", ["folder", "csv"])
@POSIX
def test_a_killed_folding_is_completed_by_the_next(home: Home, tmp_path: Path, layout: str) -> None:
    """SIGKILL at random moments: nothing is lost, and the folder is at each moment one that a pipeline would take."""
    if layout == "csv":
        home.with_csv()
    originals = {path: content for path, content in contents_of(home.photos).items() if path.endswith(".png")}
    for seed in range(5):
        home.do("add", home.new(300 + seed, f"{seed}.png"), "--label", "dog")
        home.do("add", f"../new/{seed}.png", "--as", f"cat/{seed}.png", "--label", "cat", "--replace")
    removed = [f"bee/{number}.png" for number in range(5)]
    home.do("remove", *removed)
    wanted = {path: content for path, content in originals.items() if path not in removed}
    wanted |= {event.path: (home.folder.parent / "new" / Path(event.path).name).read_bytes()
               for event in home.events() if event.image}  # fmt: skip
    shutil.copytree(home.folder.parent, tmp_path / "undisturbed", symlinks=True)
    moments: list[bool] = []
    with each_touch(moments.append):
        Home(Project(tmp_path / "undisturbed/project")).do("fold")
    assert len(moments) > 80

    draw, kills = random.Random(layout), 0
    for round in range(6):
        shutil.copytree(home.folder.parent, tmp_path / f"{round}", symlinks=True)
        copy = Home(Project(tmp_path / f"{round}/project"))
        for moment in (draw.randrange(len(moments)), draw.randrange(20)):
            process = CONTEXT.Process(target=fold_and_die, args=(copy, moment))
            process.start()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)  # what the life before has done need not be done again
            kills += process.exitcode != 0
            here, kept = contents_of(copy.photos), contents_of(copy.folder / "data/changes/originals")
            for path, content in originals.items():
                assert content in [here.get(path), *kept.values()], path
            assert labels_of(copy.settings()).keys() <= here.keys()
            assert len(copy.events()) == 15
        copy.do("fold")
        here = contents_of(copy.photos)
        here.pop("labels.csv", None)
        assert here == wanted
        assert copy.do("fold").err.startswith("lookalike: 0 images written")
    assert kills >= 10
    collected = copy.do("search", "../new/0.png", "-k", str(len(wanted))).hits
    assert labels_of(copy.settings()) == {hit["path"]: hit["label"] for hit in collected}


# --- mistakes ----------------------------------------------------------------------------------------------------


QUERY = "../photos/bee/3.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "params.yaml"], "params.yaml: not an image in a known format (JPEG, PNG"),
        (["search", "nothing.png"], "nothing.png: No such file or directory"),
        (["search", "-"], "-: not an image in a known format"),
        (["search", "stages"], "stages: no image in it; looked for .bmp .gif"),
        (["search", QUERY, "--label", "cet"], "no image is labelled 'cet'; did you mean cat? Known: ant, bee, cat"),
        (["search", QUERY, "-k", "0"], "k is 0, but the index holds 25 images; choose 1 to 25"),
        (["search", QUERY, "--index", "nowhere"], "nowhere does not exist; make it: dvc repro index"),
        (["search", QUERY, "--index", "data/raw"], "data/raw.json has no digests of the files in data/raw"),
        (["search", QUERY, "--model", "nowhere"], "nowhere/model.json does not exist; make it: dvc repro model"),
        (["search", QUERY, "--changes", "params.yaml"], "params.yaml"),
        (["similar", "nothing.png"], "nothing.png is not in the collection; paths are as a search shows them"),
        (["similar", "bee/3.png", "-k", "0"], "k is 0; choose 1 or more"),
        (["similar", "bee/3.png", "--label", "owl"], "no image is labelled 'owl'; Known: ant, bee, cat"),
        (["add", "params.yaml", "--as", "x.png"], "params.yaml: not an image in a known format"),
        (["add", "nothing.png"], "nothing.png: No such file or directory"),
        (["add", QUERY, QUERY, "--as", "x.png"], "--as names one path, but there are 2 pictures"),
        (["add", QUERY, "--as", "../x.png"], "path '../x.png' must be relative, without '..'"),
        (["add", QUERY, "--as", "a/../../x.png"], "path 'a/../../x.png' must be relative, without '..'"),
        (["add", QUERY, "--as", "/abs.png"], "path '/abs.png' must be relative, without '..'"),
        (["add", QUERY, "--as", "./x.png"], "path './x.png' must be relative, without '..'"),
        (["add", QUERY, "--as", "a//x.png"], "path 'a//x.png' must be relative, without '..'"),
        (["add", QUERY, "--as", ""], "path '' must be relative, without '..'"),
        (["add", QUERY, "--as", ".hidden.png"], "path '.hidden.png' has a part that begins with a dot"),
        (["add", QUERY, "--as", "a/.b/x.png"], "path 'a/.b/x.png' has a part that begins with a dot"),
        (["add", QUERY, "--as", "x.txt"], "path 'x.txt' must end as an image does: .bmp .gif"),
        (["add", QUERY, "--as", "x\udcff.png"], r"path 'x\udcff.png' or label '' is not UTF-8"),
        (["add", QUERY, "--label", "x\udcff"], "is not UTF-8; give another"),
        (["add", QUERY, "--label", "a/b"], "label 'a/b' has a slash, so LABEL/NAME would be another path"),
        (["add", QUERY, "--label", "/etc"], "label '/etc' has a slash, so LABEL/NAME would be another path"),
        (["add", QUERY, "--label", "a\\b"], r"label 'a\\b' has a slash, so LABEL/NAME would be another path"),
        (["add", QUERY, "--label", ".."], "path '../3.png' must be relative, without '..'"),
        (["add", QUERY, "--label", "."], "path './3.png' must be relative, without '..'"),
        (["add", QUERY, "--label", "bee"], "bee/3.png is in the collection already; give another name, or replace it"),
        (["add", QUERY, "../photos/cat/3.png"], "two of the pictures would be 3.png; add them one by one, with --as"),
        (["add", QUERY, "--model", "nowhere"], "nowhere/model.json does not exist; make it: dvc repro model"),
        (["remove", "nothing.png"], "nothing.png is not in the collection"),
        (["remove", "bee/3.png", "nothing.png"], "nothing.png is not in the collection"),
        (["fold", "--params", "nothing.yaml"], "nothing.yaml does not exist; run from the project's root"),
        (["info", "--index", "nowhere"], "nowhere does not exist; make it: dvc repro index"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_changes_nothing(untouched: Home, arguments: list[str], message: str) -> None:
    done = untouched.lookalike(*arguments)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("lookalike: error: ") and done.err.count("\n") == 1, done.err
    assert message in done.err
    assert untouched.events() == []
    assert len(untouched.do("search", QUERY, "-k", str(COUNT)).hits) == COUNT


def test_a_mistake_looks_the_same_from_a_shell(built: Home) -> None:
    done = built.shell("search", "nothing.png", check=False)
    assert (done.status, done.out) == (1, "")
    assert done.err == "lookalike: error: nothing.png: No such file or directory\n"


@POSIX
def test_an_interrupted_addition_of_a_folder_goes_on_when_repeated(home: Home) -> None:
    for seed in range(300):
        home.new(100 + seed, f"many/{seed:03}.png")
    command = [sys.executable, "-m", "lookalike.cli", "add", "../new/many", "--label", "bee"]
    process = subprocess.Popen(command, cwd=home.folder, env=home.project.environment)
    while not home.events():
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = len(home.events())
    assert 0 < before < 300
    done = home.do("add", "../new/many", "--label", "bee")
    assert f"{before} of 300 had been added before, the same pictures; they stay as they are\n" in done.err
    assert [event.path for event in home.events()] == [f"bee/{seed:03}.png" for seed in range(300)]
    for arguments in (["add", "../new/many/007.png"], ["add", home.new(7), "--as", "bee/007.png", "--label", "bee"]):
        assert home.lookalike(*arguments).status == (0 if len(arguments) == 2 else 1)  # another path; another picture


@pytest.mark.parametrize(
    "arguments",
    [["search"], ["add"], ["remove"], ["similar"], ["serach"], ["search", QUERY, "--min-similarity", "2"],
     ["search", QUERY, "-k", "x"], ["search", QUERY, "--nothing"], ["fold", "x"]],
)  # fmt: skip
def test_a_mistake_in_the_command_line_is_another_status(built: Home, arguments: list[str]) -> None:
    done = built.lookalike(*arguments)
    assert (done.status, done.out) == (2, "") and done.err.startswith("Usage: lookalike") and "Error: " in done.err


def test_a_broken_or_foreign_index_or_network_is_not_opened(home: Home) -> None:
    index, model = home.folder / "data/index/index.faiss", home.folder / "data/model/model.json"
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2])
    for arguments in (["search", QUERY], ["similar", "bee/3.png"], ["add", QUERY], ["remove", "bee/3.png"], ["fold"]):
        done = home.lookalike(*arguments)
        assert done.status == 1 and done.err.count("\n") == 1
        assert "index.faiss is not the file that data/index.json describes" in done.err
    index.write_bytes(whole)
    content = json.loads(model.read_text())
    model.write_text(json.dumps(content | {"fingerprint": "f" * 64}))
    done = home.lookalike("search", QUERY)
    assert re.fullmatch(r"lookalike: error: the index was made by MobileNet \w{12}, but data/model holds MobileNet "
                        r"ffffffffffff, whose embeddings cannot be compared .*\n", done.err)  # fmt: skip
    assert len(home.do("similar", "bee/3.png").hits) == 10


# --- the help ----------------------------------------------------------------------------------------------------


def examples(command: str, built: Home) -> list[str]:
    text = built.do(*filter(None, [command]), "--help").out
    return [line.strip() for line in text.splitlines() if re.match(r" +(\S+ .*\| )?lookalike \w", line)]


@pytest.fixture
def shell(home: Home) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """A shell in which the help's examples mean something: pictures, words, `lookalike`, a `curl` without internet."""
    bin_folder = home.folder.parent / "bin"
    bin_folder.mkdir()
    for name, line in (("lookalike", f'exec {sys.executable} -m lookalike.cli "$@"'), ("curl", "cat photo.jpg")):
        (bin_folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_folder / name).chmod(0o755)
    for seed, name in enumerate(
        ("photo.jpg", "other.png", "new.jpg", "better.jpg", "photos/one.jpg", "photos/two.jpg")
    ):
        path = home.folder / name
        path.parent.mkdir(exist_ok=True)
        picture(400 + seed).save(path)
    (home.folder / "tags.csv").write_text("path,text\nbee/0.png,red shoe\ncat/1.png,old shoe\n")
    home.project.set(index__tags__file="tags.csv")
    assert home.project.repro("index") == ["index"]
    home.do("add", QUERY, "--as", "3/digit_0003.png", "--label", "3")
    home.do("add", QUERY, "--as", "cat/old.jpg", "--label", "cat")
    environment = home.project.environment
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"
    yield lambda line: subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", line],
        cwd=home.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_example_in_the_help_runs(
    built: Home, home: Home, shell: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    """Searches first, each once; `similar` of a picture, say, is shown in two places."""
    elsewhere = {"bundle", "serve", "ui"}  # have tests of their own
    lines = [
        line
        for command in ["", "search", "similar", *cli.app.commands]
        if command not in elsewhere
        for line in examples(command, built)
    ]
    named = {line: line.partition("lookalike ")[2].split()[0] for line in lines}
    shown = [line for line in named if named[line] not in elsewhere]
    assert {named[line] for line in shown} == {"search", "similar", "add", "remove"}
    assert any("| lookalike search -" in line for line in shown) and any("> hits.jsonl" in line for line in shown)
    for line in shown:
        done = shell(line)
        assert done.returncode == 0 and "rror" not in done.stderr, line
    assert [hit["label"] for hit in map(json.loads, (home.folder / "hits.jsonl").open())] == ["cat"] * 20  # ten each
    assert "cat/old.jpg is not in the collection" in home.lookalike("similar", "cat/old.jpg").err


def test_help_says_what_every_command_and_option_is(built: Home) -> None:
    for name, command in cli.app.commands.items():
        text = built.do(name, "--help").out
        assert "\\b" not in text and "Exit status: 0 done, 1 an error" in text
        assert command.help
        for option in command.params:
            assert option.opts[0] in text or option.name.upper() in text
            assert isinstance(option, click.Argument) or option.help, f"{name} {option.opts}"
