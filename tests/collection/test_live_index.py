"""Changes are carried over to another index."""

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from lookalike.base.errors import LookalikeError
from lookalike.collection import journal
from lookalike.collection.collection import Gallery
from lookalike.collection.live_index import Rebuilt
from lookalike.collection.query import Query
from tests.helpers.changed_index import ONE, RAW, REFINED, STEP, Built, Model, add, build, everything, feature, latest


def changed(tmp_path: Path, changes: Path) -> tuple[Built, Gallery]:
    """An index of 40, and a journal: two added, one replaced, one removed that are folded; then one of each more."""
    built_index = build(tmp_path / "index", 40)
    gallery = built_index.open(changes)
    add(gallery, "folded/a.png", 101, "folded")
    add(gallery, "folded/b.png", 102, "folded")
    add(gallery, built_index.paths[0], 103, "ant", over=True)
    gallery.remove([built_index.paths[1]])
    with gallery.journal.changing(gallery.fingerprint, gallery.embedding) as writer:
        writer.set_folded()
    add(gallery, "open/c.png", 104, "open")
    add(gallery, "folded/b.png", 105, "folded", over=True)
    add(gallery, built_index.paths[2], 106, "cat", over=True)
    gallery.remove([built_index.paths[3]])
    return built_index, gallery


def rebuilt(built_index: Built, **options: Any) -> Built:
    """The index as `dvc repro` makes it after that fold."""
    more = {"folded/a.png": 101, "folded/b.png": 102, built_index.paths[0]: 103}
    return build(built_index.folder, 40, more=more, less=(built_index.paths[1],), **options)


def test_changes_are_carried_over_to_a_rebuilt_index(tmp_path: Path, changes: Path, told: list[str]) -> None:
    built_index, before = changed(tmp_path, changes)
    after = rebuilt(built_index, refined=REFINED | {"pca": 9, "power": 1, "augment": 3})
    with pytest.raises(Rebuilt, match=r"index was rebuilt since it was opened; open it again"):
        before.search(feature(0)[np.newaxis], Query(3))
    for change in (lambda: add(before, "x.png", 1), lambda: before.remove(["open/c.png"])):
        with pytest.raises(LookalikeError, match=r"rebuilt|another index"):
            change()
    told.clear()
    gallery = after.open(changes)
    assert len(gallery.state) == len(after.paths)  # one more, one less
    kept = {event.path: event for event in gallery.journal.events()}
    assert kept.keys() == {"open/c.png", "folded/b.png", built_index.paths[2], built_index.paths[3]}
    assert built_index.paths[3] not in gallery.state and built_index.paths[1] not in gallery.state
    model = Model(after, gallery)
    for path, seed in (("open/c.png", 104), ("folded/b.png", 105), (built_index.paths[2], 106)):
        assert np.array_equal(kept[path].embedding, feature(seed))
        assert kept[path].vector == pytest.approx(model.joined(path, feature(seed)), abs=STEP)
        assert gallery.journal.image(kept[path].image) == f"picture {seed}".encode()
    with pytest.raises(LookalikeError, match=r"picture .* is damaged"):
        gallery.journal.image(hashlib.sha256(b"picture 101").hexdigest())  # what nobody needs is not kept
    assert gallery.journal.bound().folded < min(event.number for event in kept.values())
    assert len(told) == 1 and "4 changes made since the one before are carried over, 3 are in it" in told[0]
    quiet = after.open(changes)
    assert len(quiet.state) == len(gallery.state) and len(told) == 1
    model = Model.of(after, gallery)
    query = model.refinement.project(feature(7)[np.newaxis])[0]
    assert model.check(gallery.search(feature(7)[np.newaxis], Query(20))[0], query, 20, -1, None) == 1


def test_the_old_index_opened_again_carries_them_back(tmp_path: Path, changes: Path) -> None:
    built_index, _ = changed(tmp_path, changes)
    shutil.copytree(built_index.folder, tmp_path / "kept")
    shutil.copy(tmp_path / "index.json", tmp_path / "kept.json")
    after = rebuilt(built_index, refined=RAW)
    add(after.open(changes), "later.png", 107)
    shutil.rmtree(built_index.folder)
    shutil.copytree(tmp_path / "kept", built_index.folder)
    shutil.copy(tmp_path / "kept.json", tmp_path / "index.json")
    gallery = built_index.open(changes)
    assert {"later.png", "open/c.png", "folded/b.png", built_index.paths[2]} <= {*latest(gallery)}
    assert built_index.paths[3] not in gallery.state
    assert gallery.search(feature(104)[np.newaxis], Query(1, label="open"))[0][0].path == "open/c.png"
    model = Model.of(built_index, gallery)
    query = model.refinement.project(feature(7)[np.newaxis])[0]
    assert model.check(gallery.search(feature(7)[np.newaxis], Query(20))[0], query, 20, -1, None) == 1


def test_folded_images_that_the_new_index_lacks_are_kept(tmp_path: Path, changes: Path) -> None:
    """Rebuilt before the folder was read anew: nothing that was searchable is lost, and nothing is folded twice."""
    built_index, _ = changed(tmp_path, changes)
    after = build(built_index.folder, 40, refined=RAW)
    gallery = after.open(changes)
    assert {"folded/a.png", "folded/b.png", "open/c.png"} <= {*latest(gallery)}
    assert built_index.paths[1] not in gallery.state and built_index.paths[3] not in gallery.state
    folded = gallery.journal.bound().folded
    assert {event.path for event in gallery.journal.events(folded)} == {
        "open/c.png", "folded/b.png", built_index.paths[2], built_index.paths[3]
    }  # fmt: skip


def test_changes_that_an_index_has_no_need_of_leave_it_as_it_is(tmp_path: Path, changes: Path) -> None:
    """An image was removed, and then left out of the index that was built anew."""
    built_index = build(tmp_path / "index", 40)
    built_index.open(changes).remove(built_index.paths[3:4])
    after = build(built_index.folder, 40, less=(built_index.paths[3],))
    gallery, plain = after.open(changes), after.open(tmp_path / "none")
    assert latest(gallery).keys() == {built_index.paths[3]} and built_index.paths[3] not in gallery.state
    assert len(gallery.state) == 39
    asked = feature(3)[np.newaxis]
    for label in (None, "ant"):
        assert gallery.search(asked, Query(40, label=label)) == plain.search(asked, Query(40, label=label))
    assert gallery.similar(built_index.paths[0], Query(5)) == plain.similar(built_index.paths[0], Query(5))


def test_where_nothing_is_to_be_carried_over_nothing_is_told(tmp_path: Path, changes: Path, told: list[str]) -> None:
    built_index = build(tmp_path / "index", 40)
    gallery = built_index.open(changes)
    add(gallery, "folded/a.png", 101, "folded")
    with gallery.journal.changing(gallery.fingerprint, gallery.embedding) as writer:
        writer.set_folded()
    for augment, count in ((3, 1), (4, 1), (5, 1)):  # rebuilt with it, and twice again
        after = build(built_index.folder, 40, refined=REFINED | {"augment": augment}, more={"folded/a.png": 101})
        assert len(after.open(changes).state) == 41
        assert len(told) == count
    assert "0 changes made since the one before are carried over, 1 are in it already" in told[0]


def test_of_two_that_find_another_index_one_carries_changes_over(
    tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    built_index, _ = changed(tmp_path, changes)
    after = rebuilt(built_index, refined=RAW)
    late = after.open(changes)
    told.clear()
    real = late.journal.rebase

    def overtaken(*given: Any) -> tuple[int, int]:
        assert len(after.open(changes).state) == len(after.paths)
        return real(*given)

    monkeypatch.setattr(late.journal, "rebase", overtaken)
    assert len(late.state) == len(after.paths) and "open/c.png" in late.state
    assert len(told) == 1 and "are carried over" in told[0]  # by the other
    assert everything(after, changes) == everything(after, changes)


@pytest.mark.parametrize(
    ("moment", "message"),
    [("events", "was moved to another index meanwhile"), ("changing", "belongs to another index, built meanwhile")],
)
def test_a_collection_that_moves_to_another_index_just_now_is_not_touched(
    tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch, moment: str, message: str
) -> None:
    """Between two looks at one file: before its events are read, and before a change begins."""
    built_index, before = changed(tmp_path, changes)
    add(built_index.open(changes), "another's.png", 107)  # which is to be read first
    real = getattr(before.journal, moment)

    def late(*given: Any) -> Any:
        rebuilt(built_index, refined=RAW).open(changes).remove(["open/c.png"])
        return real(*given)

    monkeypatch.setattr(before.journal, moment, late)
    with pytest.raises(LookalikeError, match=rf"journal\.sqlite {message}; open the new one and retry"):
        add(before, "x.png", 1)
    now = built_index.open(changes).state
    assert "x.png" not in now and "open/c.png" not in now and "another's.png" in now


@pytest.mark.parametrize("how", ["add", "remove"])
def test_a_change_that_was_made_is_not_called_a_failure_where_the_index_is_rebuilt_just_then(
    tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Told to try again, a client would hear that the image is there already, or that there is none."""
    built_index, before = changed(tmp_path, changes)
    real = before.journal.changing

    @contextmanager
    def then_rebuilt(*given: Any) -> Iterator[journal.Writer]:
        with real(*given) as writer:
            yield writer
        assert len(rebuilt(built_index, refined=RAW).open(changes).state)

    monkeypatch.setattr(before.journal, "changing", then_rebuilt)
    add(before, "x.png", 1) if how == "add" else before.remove(["open/c.png"])
    with pytest.raises(Rebuilt):
        before.search(feature(0)[np.newaxis], Query(3))
    now = built_index.open(changes).state
    assert ("x.png" in now) == (how == "add") and ("open/c.png" in now) == (how == "add")


def test_another_network_embeds_changes_anew(tmp_path: Path, changes: Path, told: list[str]) -> None:
    built_index, _ = changed(tmp_path, changes)
    before = (changes / "journal.sqlite").read_bytes()
    two = replace(ONE, network=replace(ONE.network, dim=16, fingerprint="two"))
    after = rebuilt(built_index, embedding=two)
    blind = after.open(changes)
    for change in (lambda: blind.search(feature(0, 16)[np.newaxis], Query(3)), lambda: add(blind, "x.png", 1),
                   lambda: blind.remove([built_index.paths[5]])):  # fmt: skip
        with pytest.raises(
            LookalikeError, match=r"journal.sqlite holds changes made under another network; search with"
        ):
            change()
    assert (changes / "journal.sqlite").read_bytes() == before
    embedded: list[bytes] = []

    def embed(content: bytes) -> np.ndarray:
        embedded.append(content)
        return feature(int(content.split()[1]), 16)

    told.clear()
    gallery = after.open(changes, embed=embed)
    model = Model(after, gallery)
    hits = gallery.search(feature(104, 16)[np.newaxis], Query(3, label="open"))[0]
    assert [hit.path for hit in hits] == ["open/c.png"]
    assert sorted(embedded) == [b"picture 104", b"picture 105", b"picture 106"]  # the folded ones are in the index
    event = latest(gallery)["open/c.png"]
    assert np.array_equal(event.embedding, feature(104, 16))
    assert event.vector == pytest.approx(model.joined("open/c.png", feature(104, 16)), abs=STEP)
    assert gallery.journal.bound().embedding == two and len(told) == 1
    assert len(blind.search(feature(104, 16)[np.newaxis], Query(3, label="open"))[0]) == 1  # now it can


def test_a_carrying_over_that_fails_changes_nothing(tmp_path: Path, changes: Path) -> None:
    built_index, _ = changed(tmp_path, changes)
    before = (changes / "journal.sqlite").read_bytes()
    after = rebuilt(built_index, embedding=replace(ONE, image_size=64))

    def embed(content: bytes) -> np.ndarray:
        if content == b"picture 106":
            raise LookalikeError("no memory")
        return feature(1)

    with pytest.raises(LookalikeError, match="no memory"):
        len(after.open(changes, embed=embed).state)
    assert (changes / "journal.sqlite").read_bytes() == before


def test_a_picture_whose_embedding_is_gone_is_not_left_out_in_silence(tmp_path: Path, changes: Path) -> None:
    built_index, _ = changed(tmp_path, changes)
    path = changes / "journal.sqlite"
    with closing(sqlite3.connect(path)) as file, file:
        values = list(file.execute("SELECT * FROM events WHERE path = 'open/c.png'").fetchone())[:-1]
        values[5] = None
        file.execute("UPDATE events SET embedding = NULL, checksum = ? WHERE number = ?",
                     [journal._checksum(values), values[0]])  # fmt: skip
    before = path.read_bytes()
    with pytest.raises(LookalikeError, match="embeddings of 24 dimensions"):
        len(rebuilt(built_index, refined=RAW).open(changes).state)
    assert path.read_bytes() == before
