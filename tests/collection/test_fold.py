"""Folding changes into a folder with tables; more of it in tests/cli/test_changing.py."""

import os
from pathlib import Path

import pytest

from lookalike.collection import fold
from lookalike.datasets import registry
from tests.helpers.changed_index import Built, add


def photos_with_tables(folder: Path, labels: str, tags: str) -> tuple[registry.Settings, Path]:
    """An own folder with one picture, new/a.png, a CSV of labels, and a CSV of tags beside the folder."""
    (folder / "photos/new").mkdir(parents=True)
    (folder / "photos/new/a.png").write_bytes(b"their own")
    (folder / "photos/labels.csv").write_text(labels)
    (folder / "tags.csv").write_text(tags)
    settings = registry.Settings(dataset="folder", folder=str(folder / "photos"), labels="labels.csv", url="",
                                 checksum="", exclude=[], limit_per_class=0)  # fmt: skip
    return settings, folder / "tags.csv"


def test_fold_keeps_the_lines_of_a_file_that_it_keeps(built_index: Built, tmp_path: Path, changes: Path) -> None:
    """Added and removed again, and meanwhile somebody put another picture of that name into the folder."""
    labels, tags = "path,label\nnew/a.png,mine\n", "path,text\nnew/a.png,red\n"
    settings, tags_file = photos_with_tables(tmp_path, labels, tags)
    gallery = built_index.open(changes)
    for path in ("new/a.png", "new/b.png"):
        add(gallery, path, 1, "new")
        gallery.remove([path])
    done = fold.fold(gallery, settings, tags_file)
    assert (tmp_path / "photos/new/a.png").read_bytes() == b"their own"
    assert ((tmp_path / "photos/labels.csv").read_text(), tags_file.read_text()) == (labels, tags)
    assert done == fold.Folded(written=0, removed=0)  # of new/b.png there was never a file


def test_fold_writes_where_no_folder_can_be_opened(
    built_index: Built, tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under Windows, where a folder's own entry cannot be flushed to the disk."""
    settings, _ = photos_with_tables(tmp_path, "path,label\n", "path,text\n")
    gallery = built_index.open(changes)
    add(gallery, "new/b.png", 1, "new")
    monkeypatch.delattr(os, "O_DIRECTORY")
    assert fold.fold(gallery, settings) == fold.Folded(written=1, removed=0)
    assert (tmp_path / "photos/new/b.png").read_bytes() == b"picture 1"


def test_fold_counts_the_files_that_it_takes_out(built_index: Built, tmp_path: Path, changes: Path) -> None:
    settings, _ = photos_with_tables(tmp_path, "path,label\n", "path,text\n")
    taken = tmp_path / "photos" / built_index.paths[0]
    taken.parent.mkdir(exist_ok=True)
    taken.write_bytes(b"indexed")
    gallery = built_index.open(changes)
    gallery.remove(built_index.paths[:2])  # the second one's file is gone already
    assert fold.fold(gallery, settings) == fold.Folded(written=0, removed=1)
    assert not taken.exists()


def test_fold_leaves_other_columns_as_they_are_and_the_tables_on_disk(
    built_index: Built, tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal may forget a change that was folded, so a power cut must not take the tables."""
    path = built_index.paths[0]
    settings, tags_file = photos_with_tables(
        tmp_path, ",path,label,\n0,new/a.png,x,y\n", f",path,text,\n0,{path},red,y\n1,new/a.png,blue,z\n"
    )
    gallery = built_index.open(changes)
    add(gallery, "new/b.png", 1, "a, b")
    gallery.remove([path])
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino) or real(number))
    fold.fold(gallery, settings, tags_file)
    table = tmp_path / "photos/labels.csv"
    assert table.read_text() == ',path,label,\n0,new/a.png,x,y\n,new/b.png,"a, b",\n'
    assert tags_file.read_text() == ",path,text,\n1,new/a.png,blue,z\n"
    assert {table.stat().st_ino, tags_file.stat().st_ino} <= {*synced}
