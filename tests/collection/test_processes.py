"""Several processes and threads change one index, some of them killed."""

import multiprocessing
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from lookalike.base.errors import LookalikeError
from lookalike.collection import journal
from lookalike.collection.hits import Hit
from lookalike.collection.query import Query
from proof.patience import patience
from tests.helpers.changed_index import CLOSE, LABELS, UNEXPANDED, Built, Model, add, build, feature
from tests.helpers.platforms import POSIX

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)  # a fork of this process, which has threads, may deadlock


@pytest.fixture(scope="module")
def processes() -> None:
    """Let child processes find this file, and import what they need only once."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), before]))
    CONTEXT.set_forkserver_preload([__name__])
    process = CONTEXT.Process(target=int)
    process.start()
    process.join()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def change_at_random(built_index: Built, changes: Path, cache: str, seed: int, pipe: Connection) -> None:
    """Change without end; say what will be done, and when it is done."""
    os.environ["LOOKALIKE_CACHE"] = cache
    gallery, draw = built_index.open(changes), random.Random(seed)
    pool = [*(f"new/{number}.png" for number in range(12)), *built_index.paths[:12]]
    pipe.send(("open", "", 0))
    while True:
        path, number = draw.choice(pool), draw.randrange(1000)
        there = path in gallery.state
        if there and draw.random() < 0.5:
            pipe.send(("remove", path, 0))
            gallery.remove([path])
        else:
            pipe.send(("add", path, number))
            add(gallery, path, number, LABELS[number % 4], over=there)
        pipe.send(("done", "", 0))


def applied(images: dict[str, int], kind: str, path: str, number: int) -> dict[str, int]:
    rest = {known: seed for known, seed in images.items() if known != path}
    return rest | {path: number} if kind == "add" else rest


@pytest.mark.slow
@pytest.mark.usefixtures("processes")
@POSIX
def test_what_was_acknowledged_survives_any_kill(built_index: Built, tmp_path: Path, cache_folder: Path) -> None:
    """SIGKILL at random moments: what was said to be done is there, and at most the one change that was under way."""
    draw, changes = random.Random(0), tmp_path / "changes"
    images: dict[str, int] = dict.fromkeys(built_index.paths, -1)  # path -> seed
    moments: Counter[str] = Counter()
    acknowledged = 0
    for life in range(26):
        receive, send = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=change_at_random, args=(built_index, changes, str(cache_folder), life, send))
        process.start()
        send.close()
        said, enough = [], draw.randrange(30)
        while len(said) < enough and receive.poll(patience(60)):
            said.append(receive.recv())
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.join()
        try:
            while True:
                said.append(receive.recv())
        except EOFError:
            receive.close()
        under_way = None
        for message in said:
            if message[0] == "done":
                images, under_way = applied(images, *under_way), None
                acknowledged += 1
            elif message[0] != "open":
                under_way = message
        hot = (changes / "journal.sqlite-journal").exists()
        moments["while opening" if not said else "in a transaction" if hot else "in a change" if under_way else
                "between changes"] += 1  # fmt: skip

        gallery = built_index.open(changes)
        found = dict.fromkeys(built_index.paths, -1)
        for event in gallery.journal.events():
            number = int(gallery.journal.image(event.image).split()[1]) if event.image else 0
            found = applied(found, "add" if event.image else "remove", event.path, number)
        assert found in [images, *([applied(images, *under_way)] if under_way else [])]
        images = found
        model = Model.of(built_index, gallery)
        assert model.images.keys() == images.keys()
        query = model.refinement.project(feature(life)[np.newaxis])[0]
        assert model.check(gallery.search(feature(life)[np.newaxis], Query(15))[0], query, 15, -1, None) == 1
    print(f"26 kills, {acknowledged} changes acknowledged; killed {dict(moments)}")
    assert acknowledged > 100 and moments["in a transaction"] + moments["in a change"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["an add that is refused", "a remove that is refused", "a kill before the first commit"]
)
def test_a_first_change_that_came_to_nothing_leaves_nothing_broken(built_index: Built, changes: Path, how: str) -> None:
    gallery = built_index.open(changes)
    if how == "an add that is refused":
        with pytest.raises(LookalikeError, match="is in the collection already"):
            add(gallery, built_index.paths[0], 1)
    elif how == "a remove that is refused":
        with pytest.raises(LookalikeError, match="is not in the collection"):
            gallery.remove(["nothing.png"])
    else:
        changes.mkdir()
        (changes / "journal.sqlite").touch()
    for opened in (gallery, built_index.open(changes)):
        assert len(opened.search(feature(0)[np.newaxis], Query(60))[0]) == 60
    add(gallery, "new.png", 1)
    assert "new.png" in built_index.open(changes).state


def add_many(built_index: Built, changes: Path, cache: str, prefix: str, count: int) -> None:
    os.environ["LOOKALIKE_CACHE"] = cache
    gallery = built_index.open(changes)
    for number in range(count):
        add(gallery, f"{prefix}{number}.png", number, prefix)


@pytest.mark.slow
@pytest.mark.usefixtures("processes")
def test_two_processes_change_at_once_and_a_third_sees_it_grow(
    built_index: Built, changes: Path, cache_folder: Path
) -> None:
    writers = [
        CONTEXT.Process(target=add_many, args=(built_index, changes, str(cache_folder), prefix, 250)) for prefix in "ab"
    ]
    gallery, counts = built_index.open(changes), [60]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        hits = gallery.search(feature(0)[np.newaxis], Query(counts[-1]))[0]  # at least as many as there were
        assert len({hit.path for hit in hits}) == counts[-1]
        counts.append(len(gallery.state))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert counts == sorted(counts) and len(set(counts)) > 3
    assert len(gallery.state) == 560
    model = Model.of(built_index, gallery)
    assert model.images.keys() == {
        *built_index.paths,
        *(f"{prefix}{number}.png" for prefix in "ab" for number in range(250)),
    }
    hits = gallery.search(feature(0)[np.newaxis], Query(30))[0]
    assert model.check(hits, model.refinement.project(feature(0)[np.newaxis])[0], 30, -1, None) == 1


def add_if_new(built_index: Built, changes: Path, cache: str, pipe: Connection) -> None:
    os.environ["LOOKALIKE_CACHE"] = cache
    gallery, added = built_index.open(changes), 0
    pipe.recv()
    for number in range(60):
        try:
            add(gallery, f"{number}.png", number)
            added += 1
        except LookalikeError as error:
            assert "is in the collection already" in str(error)
    pipe.send(added)


@pytest.mark.slow
@pytest.mark.usefixtures("processes")
def test_of_two_that_add_the_same_path_one_is_told(built_index: Built, changes: Path, cache_folder: Path) -> None:
    pipes = [CONTEXT.Pipe() for _ in range(2)]
    writers = [
        CONTEXT.Process(target=add_if_new, args=(built_index, changes, str(cache_folder), theirs))
        for _, theirs in pipes
    ]
    for writer in writers:
        writer.start()
    for ours, _ in pipes:
        ours.send("go")
    added = [ours.recv() for ours, _ in pipes if ours.poll(patience(300))]
    for writer in writers:
        writer.join()
    assert sum(added) == 60 and len(built_index.open(changes).state) == 120
    assert len(built_index.open(changes).journal.events()) == 60


@pytest.mark.slow
@pytest.mark.usefixtures("processes")
def test_an_open_gallery_sees_the_change_of_another_process_at_once(
    built_index: Built, changes: Path, cache_folder: Path
) -> None:
    gallery = built_index.open(changes)
    assert len(gallery.search(feature(0)[np.newaxis], Query(60))[0]) == 60
    for number in (1, 2):  # the first change makes the file, the second finds it
        process = CONTEXT.Process(target=add_many, args=(built_index, changes, str(cache_folder), f"n{number}/", 1))
        process.start()
        process.join()
        assert len(gallery.search(feature(0)[np.newaxis], Query(60 + number))[0]) == 60 + number
        assert gallery.search(feature(0)[np.newaxis], Query(1, label=f"n{number}/"))[0][0].path == f"n{number}/0.png"


def test_whoever_keeps_the_collection_locked_is_named(
    built_index: Built, changes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "WAIT", 0.1)
    gallery = built_index.open(changes)
    add(gallery, "a.png", 1)
    busy = r"journal.sqlite: another process has been changing the collection for 0 seconds; nothing was changed, try"
    with closing(sqlite3.connect(changes / "journal.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for change in (lambda: add(gallery, "b.png", 2), lambda: gallery.remove(["a.png"])):
            with pytest.raises(LookalikeError, match=busy):
                change()
        assert len(gallery.search(feature(0)[np.newaxis], Query(61))[0]) == 61  # who only searches does not wait
        other.execute("ROLLBACK")
        other.execute("BEGIN EXCLUSIVE")
        for opened in (gallery, built_index.open(changes)):
            with pytest.raises(LookalikeError, match=busy):
                opened.search(feature(0)[np.newaxis], Query(61))
    add(gallery, "b.png", 2)
    assert len(gallery.state) == 62


@pytest.mark.slow
def test_threads_search_while_one_adds(tmp_path: Path, changes: Path) -> None:
    built_index = build(tmp_path / "index", 300, "hnsw", "float16", UNEXPANDED)
    gallery, done = built_index.open(changes), threading.Event()
    query = gallery.refinement.project(feature(5)[np.newaxis])[0]
    failed: list[BaseException] = []
    seen: list[Hit] = []

    def ask(number: int) -> None:
        before = 0
        try:
            while not done.is_set():
                count = len(gallery.state)
                assert count >= before
                before = count
                hits = gallery.search(feature(5)[np.newaxis], Query(12, label=[None, "ant", None, "cat"][number]))[0]
                assert len(hits) == 12
                seen.extend(hits)
                assert len(gallery.similar("ant/00004.png", Query(5))) == 5
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for seed in range(300, 420):
        add(gallery, f"new/{seed}.png", seed, LABELS[seed % 4])
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []
    images = Model.of(built_index, gallery).images
    for hit in set(seen):
        assert hit.label == images[hit.path][0]
        assert hit.cosine == pytest.approx(images[hit.path][1] @ query, abs=CLOSE)
    assert any(hit.path.startswith("new/") for hit in seen)
