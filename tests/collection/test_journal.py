"""A journal that is damaged, lost, restored or read-only."""

import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lookalike.base.errors import LookalikeError
from lookalike.collection import journal
from lookalike.collection.query import Query
from tests.helpers.changed_index import STEP, Built, Model, add, everything, feature, latest
from tests.helpers.namespaces import read_only, unshared


def some_changes(built_index: Built, changes: Path) -> Path:
    gallery = built_index.open(changes)
    for number in range(5):
        add(gallery, f"new/{number}.png", number, "new")
    gallery.remove(["new/3.png", built_index.paths[2]])
    return changes / "journal.sqlite"


@pytest.mark.parametrize(
    "what", ["text", "random", "another program's", "a folder", "an older one", "without pictures"]
)
def test_a_file_that_is_no_journal_is_named(built_index: Built, changes: Path, what: str) -> None:
    path = some_changes(built_index, changes)
    opened = built_index.open(changes)
    assert len(opened.state) == 63
    size = path.stat().st_size
    if what == "without pictures":
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("DELETE FROM images")
        opened.search(feature(0)[np.newaxis], Query(3))  # who does not need them does not mind
        with pytest.raises(LookalikeError, match=r"journal.sqlite cannot be read \(picture [0-9a-f]+ is damaged\)"):
            everything(built_index, changes)
        return
    path.unlink()
    if what == "text":
        path.write_text("hello")
    elif what == "random":
        path.write_bytes(np.random.default_rng(0).bytes(size))
    elif what == "a folder":
        path.mkdir()
    else:
        with closing(sqlite3.connect(path)) as file:
            file.execute("CREATE TABLE events (number, path)")
            if what == "an older one":
                file.execute(f"PRAGMA application_id = {journal.OURS}")
    before = None if path.is_dir() else path.read_bytes()
    for gallery in (opened, built_index.open(changes)):
        for ask in (lambda: gallery.search(feature(0)[np.newaxis], Query(3)), lambda: add(gallery, "x.png", 1)):  # noqa: B023
            with pytest.raises(LookalikeError, match=r"journal.sqlite(:| cannot be read)") as error:
                ask()
            assert "\n" not in str(error.value)
    assert path.is_dir() or path.read_bytes() == before  # nothing of somebody else's is touched


@pytest.mark.parametrize("text", ["", "{}", '{"network": null, "image_size": 32, "fit": "pad"}', None, 7])
def test_a_journal_of_what_no_version_here_knows_is_named(built_index: Built, changes: Path, text: object) -> None:
    """Whole, as its checksums say, but written by another version."""
    path = some_changes(built_index, changes)
    with closing(sqlite3.connect(path)) as file, file:
        values = list(file.execute("SELECT fingerprint, embedding, folded, first, last FROM about").fetchone())
        file.execute("CREATE TABLE other (fingerprint, embedding, folded, first, last, checksum)")
        values[1] = text
        file.execute("INSERT INTO other VALUES (?, ?, ?, ?, ?, ?)", [*values, journal._checksum(values)])
        file.execute("DROP TABLE about")
        file.execute("ALTER TABLE other RENAME TO about")
    before = path.read_bytes()
    gallery = built_index.open(changes)
    said = r"journal.sqlite cannot be read \(what it belongs to is damaged\); restore it from a backup, or move it away"
    for ask in (lambda: gallery.search(feature(0)[np.newaxis], Query(3)), lambda: add(gallery, "x.png", 1)):
        with pytest.raises(LookalikeError, match=said):
            ask()
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [1, 4, 7])
def test_an_event_that_is_missing_is_named(built_index: Built, changes: Path, number: int) -> None:
    path = some_changes(built_index, changes)
    gallery = built_index.open(changes)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM events WHERE number = ?", [number])
    with pytest.raises(LookalikeError, match=rf"journal.sqlite cannot be read \(event {number} is (damaged|missing)\)"):
        gallery.search(feature(0)[np.newaxis], Query(3))


@pytest.mark.slow
@pytest.mark.parametrize("flip", [0xFF, 0x01])
def test_no_flipped_byte_gives_a_wrong_answer(built_index: Built, changes: Path, flip: int) -> None:
    path = some_changes(built_index, changes)
    true, content = everything(built_index, changes), path.read_bytes()
    outcomes: Counter[str] = Counter()
    for position in range(flip % 7, len(content), 131):
        damaged = bytearray(content)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        try:
            assert everything(built_index, changes) == true, position
            outcomes["right"] += 1
        except LookalikeError as error:
            assert "journal.sqlite" in str(error) and "\n" not in str(error)
            outcomes["named"] += 1
    assert outcomes["named"] > 15


def test_a_truncated_file_is_named(built_index: Built, changes: Path) -> None:
    path = some_changes(built_index, changes)
    content = path.read_bytes()
    for size in {*range(2, len(content), 1999), *range(4096, len(content), 4096)}:
        path.write_bytes(content[:size])
        with pytest.raises(LookalikeError, match=r"journal\.sqlite"):
            everything(built_index, changes)
    path.write_bytes(content)
    assert len(built_index.open(changes).state) == 63


def test_a_journal_deleted_while_it_is_open_is_a_clean_start(built_index: Built, changes: Path) -> None:
    path = some_changes(built_index, changes)
    gallery = built_index.open(changes)
    assert len(gallery.state) == 63
    path.unlink()
    add(gallery, "new/1.png", 77, "again")  # no search came between
    model = Model(built_index, gallery)
    assert latest(gallery)["new/1.png"].vector == pytest.approx(model.joined("new/1.png", feature(77)), abs=STEP)
    for opened in (gallery, built_index.open(changes)):
        assert len(opened.state) == 61 and "new/0.png" not in opened.state and built_index.paths[2] in opened.state
    path.unlink()
    assert len(gallery.search(feature(0)[np.newaxis], Query(60))[0]) == 60
    with pytest.raises(LookalikeError, match="not in the collection"):
        gallery.remove(["new/1.png"])
    some_changes(built_index, changes)
    assert len(gallery.state) == 63 and "new/1.png" in gallery.state
    path.unlink()
    other = built_index.open(changes)
    for number in range(12):  # more than there were, so that its numbers say nothing
        add(other, f"other/{number}.png", number)
    assert len(gallery.state) == 72 and "new/1.png" not in gallery.state and built_index.paths[2] in gallery.state


def test_a_backup_restored_while_it_is_open_is_followed(built_index: Built, changes: Path) -> None:
    path = some_changes(built_index, changes)
    backup = path.read_bytes()
    gallery = built_index.open(changes)
    add(gallery, "later.png", 5)
    assert "later.png" in gallery.state
    path.write_bytes(backup)  # into the very file
    assert len(gallery.state) == 63 and "later.png" not in gallery.state


def run_read_only(built_index: Built, changes: Path, cache: Path, code: str) -> list[str]:
    """Run code with a gallery whose changes lie on a read-only file system, or skip where none can be had."""
    script = changes.parent / "ask.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from pathlib import Path\nfrom tests.helpers import changed_index as t\n"
        "from lookalike.base.errors import LookalikeError\n"
        f"gallery = t.Gallery(Path({str(built_index.folder)!r}), Path({str(changes)!r}))\n{code}"
    )
    done = unshared(f"{read_only(changes)} && LOOKALIKE_CACHE={cache} {sys.executable} {script}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_read_only_folder_is_searched_and_not_changed(built_index: Built, changes: Path, cache_folder: Path) -> None:
    some_changes(built_index, changes)
    code = (
        "print(len(gallery.search(t.feature(0)[None], t.Query(63))[0]))\n"
        "for change in (lambda: t.add(gallery, 'x.png', 1), lambda: gallery.remove(['new/1.png'])):\n"
        "    try: change()\n"
        "    except LookalikeError as error: print(error)\n"
    )
    count, *errors = run_read_only(built_index, changes, cache_folder, code)
    assert count == "63" and len(errors) == 2
    assert all("journal.sqlite: attempt to write a readonly database; nothing was changed" in line for line in errors)
    assert len(built_index.open(changes).state) == 63


@pytest.mark.slow
def test_a_read_only_folder_without_a_journal(built_index: Built, changes: Path, cache_folder: Path) -> None:
    changes.mkdir()
    code = (
        "print(len(gallery.search(t.feature(0)[None], t.Query(60))[0]))\n"
        "try: t.add(gallery, 'x.png', 1)\n"
        "except LookalikeError as error: print(error)\n"
        "print(len(gallery.search(t.feature(0)[None], t.Query(60))[0]))\n"
    )
    count, error, again = run_read_only(built_index, changes, cache_folder, code)
    assert (count, again) == ("60", "60") and "journal.sqlite: unable to open database file" in error
