"""Adding, removing and folding by the command line, kills included."""

import contextlib
import csv
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lookalike.collection.journal import Journal
from lookalike.datasets.folder import labels_of
from tests.helpers.pictures import picture
from tests.helpers.platforms import POSIX
from tests.helpers.project import Project
from tests.helpers.user_home import COUNT, Home, contents_of

pytestmark = pytest.mark.slow  # DVC, and a process a command


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
    _, error, said = re.findall(r"lookalike: .+", done.err)  # the first advises a rebuild; bars stand between
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
    root = str(Path(__file__).parents[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        CONTEXT.set_forkserver_preload([__name__, "lookalike.collection.fold", "lookalike.collection.picture_search"])
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
