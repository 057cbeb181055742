"""Changes to a built index: every search agrees with a plain model of them, whatever is changed, killed or broken."""

import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import POSIX
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec import to_builtins
from msgspec.structs import replace
from namespaces import read_only, unshared
from small_collection import write_index

from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import on_grid, unit_length
from lookalike.collection import fold, journal
from lookalike.collection.collection import Gallery
from lookalike.collection.hits import Hit
from lookalike.collection.journal import Event
from lookalike.collection.live_index import Rebuilt
from lookalike.collection.query import Query
from lookalike.datasets import registry
from lookalike.refinement import refinement
from proof.patience import patience

D = 24
STEP = 2**-12 + 1e-6  # of a coordinate: another rounding before the grid may give the next step on it
CLOSE = 3e-4  # of a cosine, likewise, or float16 decoded by another way
ONE = Embedding(Network("B", "random", "", "avg", D, 1, "one"), 32, "pad")
LABELS = ["ant", "bee", "cat", ""]
RAW = to_builtins(refinement.OFF)
REFINED = {"power": 0.5, "pca": 12, "whiten": 0.5, "augment": 5, "expand": 4, "alpha": 1, "rerank": 0}
UNEXPANDED = REFINED | {"expand": 0}  # then a hit's cosine is the projected query's, to check by hand
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)  # a fork of this process, which has threads, may deadlock


def feature(seed: int, dim: int = D) -> np.ndarray:
    """What a network might give: no number below zero, images of one subject alike."""
    subject = np.random.default_rng(seed % 7).exponential(size=dim)
    return (subject + 0.5 * np.random.default_rng(seed).exponential(size=dim)).astype(np.float32)


@dataclass(frozen=True)
class Built:
    """An index on disk, and what it was made of."""

    folder: Path
    paths: list[str]
    labels: list[str]

    def open(self, changes: Path, **options: Any) -> Gallery:
        return Gallery(self.folder, changes, **options)


def build(
    folder: Path, count: int = 60, kind: str = "flat", storage: str = "auto", refined: dict[str, Any] = REFINED,
    embedding: Embedding = ONE, more: dict[str, int] | None = None, less: tuple[str, ...] = (), recall: float = 0.99,
) -> Built:  # fmt: skip
    """Build an index as the stage does. more: further images, path to seed; less: paths left out."""
    seeds = {f"{LABELS[seed % 4]}/{seed:05}.png".lstrip("/"): seed for seed in range(count)} | (more or {})
    paths = sorted(set(seeds) - set(less))
    labels = [path.rpartition("/")[0] for path in paths]
    features = {path: feature(seeds[path], embedding.network.dim) for path in paths}
    write_index(folder, features, embedding, refined, kind=kind, storage=storage, target_recall=recall)
    return Built(folder, paths, labels)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """60 images, compared one by one."""
    return build(tmp_path_factory.mktemp("built") / "index")


@pytest.fixture
def changes() -> Iterator[Path]:
    """A folder for changes; in memory where the system has one there: waiting for the disk takes most of the time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder) / "changes"


@pytest.fixture(scope="module")
def processes() -> None:
    """Let child processes find this file, and import what they need only once."""
    here = Path(__file__).parent
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(here), str(here.parent), before]))
    CONTEXT.set_forkserver_preload(["test_changes"])
    process = CONTEXT.Process(target=int)
    process.start()
    process.join()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def add(gallery: Gallery, path: str, seed: int, label: str = "", *, over: bool = False) -> None:
    content = f"picture {seed}".encode()
    dim = gallery.embedding.network.dim
    digest = hashlib.sha256(content).hexdigest()
    gallery.add(path, label, digest, content, feature(seed, dim), replace=over)


def latest(gallery: Gallery) -> dict[str, Event]:
    return {event.path: event for event in gallery.journal.events()}


# --- the model ---------------------------------------------------------------------------------------------------


class Model:
    """What should be found: label and stored vector of each path, and nothing clever."""

    def __init__(self, built: Built, gallery: Gallery) -> None:
        vectors = gallery.index.vectors(np.arange(len(built.paths)))
        self.refinement = gallery.refinement
        self.images = dict(zip(built.paths, zip(built.labels, vectors, strict=True), strict=True))

    @classmethod
    def of(cls, built: Built, gallery: Gallery) -> "Model":
        """Of the index and every event in the journal."""
        model = cls(built, gallery)
        for event in gallery.journal.events():
            model.images.pop(event.path, None)
            if event.image:
                model.images[event.path] = event.label, event.vector
        return model

    def nearest(
        self, query: np.ndarray, count: int, label: str | None = None, but: str = ""
    ) -> list[tuple[float, str]]:
        names = [path for path, (own, _) in self.images.items() if label in (None, own) and path != but]
        cosines = [float(np.clip(self.images[path][1] @ query, -1, 1)) for path in names]
        return sorted(zip(cosines, names, strict=True), key=lambda pair: -pair[0])[:count]

    def drawn_to(self, query: np.ndarray, neighbours: list[tuple[float, str]], weight: float = 1) -> np.ndarray:
        """Expansion, and joining, by their definition."""
        alpha = self.refinement.settings.alpha
        moved = sum((weight * max(cosine, 0) ** alpha * self.images[path][1] for cosine, path in neighbours), query)
        scaled = on_grid if self.refinement.settings.pca else unit_length
        return scaled(np.asarray(moved, np.float64)[np.newaxis])[0] if neighbours else query

    def asked(self, query: np.ndarray) -> np.ndarray:
        """What a projected query becomes."""
        return self.drawn_to(query, self.nearest(query, self.refinement.settings.expand))

    def joined(self, path: str, raw: np.ndarray) -> np.ndarray:
        """The vector that an image should be given."""
        query = self.refinement.project(raw[np.newaxis])[0]
        neighbours = self.nearest(query, max(self.refinement.settings.augment - 1, 0), but=path)
        return self.drawn_to(query, neighbours, refinement.JOIN_WEIGHT)

    def check(
        self, hits: list[Hit], query: np.ndarray, k: int, least: float, label: str | None, but: str = ""
    ) -> float:
        """Every hit is true, and there are as many as there should be; returns how much of the best was found."""
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        assert len({hit.path for hit in hits}) == len(hits)
        asked = self.asked(query)
        for hit in hits:
            assert hit.path in self.images and hit.path != but
            own, vector = self.images[hit.path]
            assert hit.label == own and label in (None, own)
            assert hit.cosine == pytest.approx(np.clip(vector @ asked, -1, 1), abs=CLOSE)
            assert hit.cosine >= least
        assert all(one.cosine >= other.cosine for one, other in itertools.pairwise(hits))
        best = [cosine for cosine, _ in self.nearest(asked, k, label, but)]
        if least == -1:
            assert len(hits) == len(best)
        if not best:
            return 1.0
        found = sum(hit.cosine >= best[-1] - CLOSE for hit in hits)
        surely, wanted = (sum(cosine >= max(least + slack, -1) for cosine in best) for slack in (CLOSE, -CLOSE))
        assert len(hits) <= wanted
        return found / surely if surely else 1.0


# --- any changes in any order ------------------------------------------------------------------------------------


WHO = st.integers(0, 1)
NEW = [f"new/{number}.png" for number in range(6)]


class Changing(RuleBasedStateMachine):
    """Two galleries of one index, as two processes would have them, and a model."""

    built: Built
    exact: bool
    parent: Path
    recall: list[float]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.parent))
        self.galleries = [self.built.open(self.folder), self.built.open(self.folder)]
        self.model = Model(self.built, self.galleries[0])
        self.pool = [*NEW, *self.built.paths[:4], self.built.paths[-1]]

    def teardown(self) -> None:
        assert latest(self.built.open(self.folder)).keys() <= {*self.pool}
        shutil.rmtree(self.folder)

    @rule(
        who=WHO, number=st.integers(0, 10), label=st.sampled_from(LABELS), seed=st.integers(0, 200), over=st.booleans()
    )
    def add(self, who: int, number: int, label: str, seed: int, over: bool) -> None:
        path, gallery = self.pool[number], self.galleries[who]
        if path in self.model.images and not over:
            with pytest.raises(LookalikeError, match=r"is in the collection already; give another name, or replace it"):
                add(gallery, path, seed, label)
            return
        add(gallery, path, seed, label, over=over)
        event = gallery.journal.events()[-1]
        assert (event.path, event.label) == (path, label)
        assert np.linalg.norm(event.vector) == pytest.approx(1, abs=1e-3)
        assert np.array_equal(event.embedding, feature(seed))
        if self.exact:
            assert event.vector == pytest.approx(self.model.joined(path, feature(seed)), abs=STEP)
        self.model.images.pop(path, None)
        self.model.images[path] = label, event.vector

    @rule(who=WHO, numbers=st.lists(st.integers(0, 10), min_size=1, max_size=3))
    def remove(self, who: int, numbers: list[int]) -> None:
        paths, gallery = [self.pool[number] for number in numbers], self.galleries[who]
        before = len(self.model.images)
        if not set(paths) <= self.model.images.keys():
            with pytest.raises(LookalikeError, match=r"is not in the collection; paths are as a search shows them"):
                gallery.remove(paths)
            assert len(gallery.state) == before  # none of them is gone
            return
        gallery.remove(paths)
        for path in set(paths):
            del self.model.images[path]

    @rule(who=WHO, seed=st.integers(0, 200), k=st.integers(1, 30), label=st.sampled_from([None, None, *LABELS, "new"]),
          least=st.sampled_from([-1, -1, 0, 0.5, 0.8, 0.95]))  # fmt: skip
    def search(self, who: int, seed: int, k: int, label: str | None, least: float) -> None:
        gallery = self.galleries[who]
        if label is not None and label not in {own for own, _ in self.model.images.values()}:
            with pytest.raises(LookalikeError, match=r"no image is labelled 'new'; .*Known: ant, bee, cat"):
                gallery.search(feature(seed)[np.newaxis], Query(k, least, label))
            return
        hits = gallery.search(feature(seed)[np.newaxis], Query(k, least, label))[0]
        query = self.model.refinement.project(feature(seed)[np.newaxis])[0]
        self.recall.append(self.model.check(hits, query, k, least, label))

    @rule(who=WHO, number=st.integers(0, 10), k=st.integers(1, 30), label=st.sampled_from([None, None, *LABELS]),
          least=st.sampled_from([-1, -1, 0.5, 0.9]))  # fmt: skip
    def similar(self, who: int, number: int, k: int, label: str | None, least: float) -> None:
        path, gallery = self.pool[number], self.galleries[who]
        if path not in self.model.images:
            with pytest.raises(LookalikeError, match="is not in the collection"):
                gallery.similar(path, Query(k, least, label))
            return
        hits = gallery.similar(path, Query(k, least, label))
        self.recall.append(self.model.check(hits, self.model.images[path][1], k, least, label, but=path))

    @rule(who=WHO)
    def reopen(self, who: int) -> None:
        self.galleries[who] = self.built.open(self.folder)
        assert len(self.galleries[who].state) == len(self.model.images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "storage", "count", "refined", "examples"),
    [
        ("flat", "float32", 50, REFINED, 25),
        ("flat", "float32", 50, RAW, 10),
        ("hnsw", "float16", 400, UNEXPANDED, 10),
        ("ivf", "int8", 500, UNEXPANDED, 10),  # no more than 0.98 of the true neighbours with so few bits
    ],
)
def test_every_search_agrees_with_a_plain_model(
    tmp_path: Path, changes: Path, kind: str, storage: str, count: int, refined: dict[str, Any], examples: int
) -> None:
    changes.mkdir()

    class Machine(Changing):
        built = build(tmp_path / "index", count, kind, storage, refined, recall=0.95)
        exact = kind == "flat"
        parent = changes
        recall: list[float] = []  # noqa: RUF012

    run_state_machine_as_test(Machine, settings=hypothesis_settings(
        max_examples=examples, stateful_step_count=30, deadline=None, derandomize=True, database=None))  # fmt: skip
    assert len(Machine.recall) > 20
    assert min(Machine.recall) == 1 if kind == "flat" else np.mean(Machine.recall) >= 0.9


@pytest.mark.slow
def test_codes_of_a_few_bytes_can_be_changed_too(tmp_path: Path, changes: Path) -> None:
    """An ivfpq keeps no vectors: hits are true to what its codes say, and to the very vectors of what was added."""
    built = build(tmp_path / "index", 10_000, "ivfpq", refined=UNEXPANDED, recall=0.05)
    gallery = built.open(changes)
    for seed in range(40):
        add(gallery, f"new/{seed}.png", seed, "new")
    gallery.remove(built.paths[100:140])
    add(gallery, built.paths[0], 1, "ant", over=True)
    model, recall = Model.of(built, gallery), []
    for seed in range(30):
        query = model.refinement.project(feature(seed)[np.newaxis])[0]
        recall.append(model.check(gallery.search(feature(seed)[np.newaxis], Query(10))[0], query, 10, -1, None))
    assert np.mean(recall) >= 0.3  # what was asked of it is little
    assert gallery.search(feature(3)[np.newaxis], Query(40, label="new"))[0][0].path == "new/3.png"


def test_a_replaced_image_is_found_by_its_new_looks_only(built: Built, changes: Path) -> None:
    gallery, path = built.open(changes), built.paths[3]
    model = Model(built, gallery)
    add(gallery, path, int(path[-9:-4]), over=True)  # by itself, of which it would be the nearest
    vector = gallery.journal.events()[0].vector
    assert vector == pytest.approx(model.joined(path, feature(int(path[-9:-4]))), abs=STEP)
    before = gallery.similar(path, Query(5))
    add(gallery, path, 1001, "owl", over=True)
    hits = gallery.search(feature(1001)[np.newaxis], Query(3))[0]
    assert (hits[0].path, hits[0].label) == (path, "owl")
    everything = gallery.search(feature(1001)[np.newaxis], Query(60))[0]
    assert [hit.path for hit in everything].count(path) == 1
    assert gallery.similar(path, Query(5)) != before
    with pytest.raises(LookalikeError, match="no image is labelled 'fox'; Known: ant, bee, cat, owl"):
        gallery.search(feature(0)[np.newaxis], Query(3, label="fox"))
    gallery.remove([path])
    with pytest.raises(LookalikeError, match="no image is labelled 'owl'"):
        gallery.search(feature(0)[np.newaxis], Query(3, label="owl"))


def test_an_emptied_collection_says_so_and_takes_new_images(tmp_path: Path, changes: Path) -> None:
    built = build(tmp_path / "index", 3, refined=RAW | {"augment": 3, "expand": 2})
    gallery = built.open(changes)
    gallery.remove(built.paths)
    for opened in (gallery, built.open(changes)):
        with pytest.raises(LookalikeError, match="the index is empty, so nothing can be found in it"):
            opened.search(feature(0)[np.newaxis], Query(1))
        with pytest.raises(LookalikeError, match="is not in the collection"):
            opened.similar(built.paths[0], Query(1))
    add(gallery, "new.png", 5)
    assert [hit.path for hit in built.open(changes).search(feature(5)[np.newaxis], Query(1))[0]] == ["new.png"]
    assert [hit.path for hit in gallery.search(feature(5)[np.newaxis], Query(2))[0]] == ["new.png"]
    with pytest.raises(LookalikeError, match=r"new\.png is the only image of the collection"):
        gallery.similar("new.png", Query(1))


@pytest.mark.parametrize("k", [0, -5])
def test_a_k_below_1_is_named(built: Built, changes: Path, k: int) -> None:
    gallery = built.open(changes)
    with pytest.raises(LookalikeError, match=f"k is {k}; choose 1 or more"):
        gallery.similar(built.paths[0], Query(k))
    with pytest.raises(LookalikeError, match=f"k is {k}, but the index holds 60 images; choose 1 to 60"):
        gallery.search(feature(0)[np.newaxis], Query(k))


@pytest.mark.parametrize("k", [59, 60, 61, 10**6])
def test_of_more_than_there_are_all_are_found(built: Built, changes: Path, k: int) -> None:
    gallery = built.open(changes)
    found = [hit.path for hit in gallery.search(feature(0)[np.newaxis], Query(k))[0]]
    assert len(found) == len(set(found)) == min(k, 60)
    assert sorted([*(hit.path for hit in gallery.similar(built.paths[0], Query(k))), built.paths[0]]) == built.paths


def test_ranks_have_no_gaps_where_hits_are_re_ranked(tmp_path: Path, changes: Path) -> None:
    """Re-ranking puts less similar images first; those below --min-similarity then drop out of the middle."""
    built = build(tmp_path / "index", 200, refined=UNEXPANDED | {"rerank": 60})
    gallery, gaps = built.open(changes), 0
    for seed in range(200, 240):
        hits = gallery.search(feature(seed)[np.newaxis], Query(40))[0]
        least = sorted(hit.cosine for hit in hits)[20]
        kept = gallery.search(feature(seed)[np.newaxis], Query(40, least))[0]
        assert [hit.path for hit in kept] == [hit.path for hit in hits if hit.cosine >= least]
        assert [hit.rank for hit in kept] == list(range(1, len(kept) + 1))
        gaps += [hit.path for hit in kept] != [hit.path for hit in hits[: len(kept)]]
    assert gaps > 10  # the case that is meant did occur


def test_features_of_another_network_are_refused(built: Built, changes: Path) -> None:
    gallery = built.open(changes)
    with pytest.raises(LookalikeError, match=r"embeddings of 24 dimensions; they come from another network"):
        gallery.search(np.ones((1, 25), np.float32), Query(1))
    for wrong, message in ((np.ones(25), "another network"), (np.full(D, np.nan), "not finite"), (np.zeros(D), "zero")):
        with pytest.raises(LookalikeError, match=message):
            gallery.add("x.png", "", "0" * 64, b"x", wrong.astype(np.float32), replace=False)
    assert len(built.open(changes).state) == 60


def test_an_embedding_is_kept_as_float32_whatever_it_came_as(built: Built, changes: Path) -> None:
    gallery = built.open(changes)
    gallery.add("x.png", "", "0" * 64, b"x", feature(5).astype(np.float64), replace=False)
    event = built.open(changes).journal.events()[0]
    assert np.array_equal(event.embedding, feature(5)) and len(event.vector) == gallery.index.dim


def test_that_a_rebuild_is_due_is_said_once(built: Built, changes: Path) -> None:
    told: list[str] = []
    gallery = built.open(changes, tell=told.append)
    for seed in range(20):
        add(gallery, f"{seed}.png", seed)
        assert len(told) == (seed >= 6), told  # more than a tenth of 60
    assert "changes since 60 images were indexed; a search gets slower" in told[0]
    assert told[0].endswith("where the images are a folder of yours, fold them and rebuild: lookalike fold, dvc repro")


@pytest.mark.slow
def test_adding_a_thousand_reads_each_once(built: Built, changes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], journal._events
    monkeypatch.setattr(journal, "_events", lambda *given: read.append(real(*given)) or read[-1])
    gallery = built.open(changes)
    for seed in range(1000):
        add(gallery, f"{seed}.png", seed)
    assert len(gallery.state) == 1060
    assert sum(map(len, read)) <= 2000


# --- several processes, and kills --------------------------------------------------------------------------------


def change_at_random(built: Built, changes: Path, cache: str, seed: int, pipe: Connection) -> None:
    """Change without end; say what will be done, and when it is done."""
    os.environ["LOOKALIKE_CACHE"] = cache
    gallery, draw = built.open(changes), random.Random(seed)
    pool = [*(f"new/{number}.png" for number in range(12)), *built.paths[:12]]
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
def test_what_was_acknowledged_survives_any_kill(built: Built, tmp_path: Path, cache_folder: Path) -> None:
    """SIGKILL at random moments: what was said to be done is there, and at most the one change that was under way."""
    draw, changes = random.Random(0), tmp_path / "changes"
    images: dict[str, int] = dict.fromkeys(built.paths, -1)  # path -> seed
    moments: Counter[str] = Counter()
    acknowledged = 0
    for life in range(26):
        receive, send = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=change_at_random, args=(built, changes, str(cache_folder), life, send))
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

        gallery = built.open(changes)
        found = dict.fromkeys(built.paths, -1)
        for event in gallery.journal.events():
            number = int(gallery.journal.image(event.image).split()[1]) if event.image else 0
            found = applied(found, "add" if event.image else "remove", event.path, number)
        assert found in [images, *([applied(images, *under_way)] if under_way else [])]
        images = found
        model = Model.of(built, gallery)
        assert model.images.keys() == images.keys()
        query = model.refinement.project(feature(life)[np.newaxis])[0]
        assert model.check(gallery.search(feature(life)[np.newaxis], Query(15))[0], query, 15, -1, None) == 1
    print(f"26 kills, {acknowledged} changes acknowledged; killed {dict(moments)}")
    assert acknowledged > 100 and moments["in a transaction"] + moments["in a change"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["an add that is refused", "a remove that is refused", "a kill before the first commit"]
)
def test_a_first_change_that_came_to_nothing_leaves_nothing_broken(built: Built, changes: Path, how: str) -> None:
    gallery = built.open(changes)
    if how == "an add that is refused":
        with pytest.raises(LookalikeError, match="is in the collection already"):
            add(gallery, built.paths[0], 1)
    elif how == "a remove that is refused":
        with pytest.raises(LookalikeError, match="is not in the collection"):
            gallery.remove(["nothing.png"])
    else:
        changes.mkdir()
        (changes / "journal.sqlite").touch()
    for opened in (gallery, built.open(changes)):
        assert len(opened.search(feature(0)[np.newaxis], Query(60))[0]) == 60
    add(gallery, "new.png", 1)
    assert "new.png" in built.open(changes).state


def add_many(built: Built, changes: Path, cache: str, prefix: str, count: int) -> None:
    os.environ["LOOKALIKE_CACHE"] = cache
    gallery = built.open(changes)
    for number in range(count):
        add(gallery, f"{prefix}{number}.png", number, prefix)


@pytest.mark.slow
@pytest.mark.usefixtures("processes")
def test_two_processes_change_at_once_and_a_third_sees_it_grow(built: Built, changes: Path, cache_folder: Path) -> None:
    writers = [
        CONTEXT.Process(target=add_many, args=(built, changes, str(cache_folder), prefix, 250)) for prefix in "ab"
    ]
    gallery, counts = built.open(changes), [60]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        hits = gallery.search(feature(0)[np.newaxis], Query(counts[-1]))[0]  # at least as many as there were
        assert len({hit.path for hit in hits}) == counts[-1]
        counts.append(len(gallery.state))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert counts == sorted(counts) and len(set(counts)) > 3
    assert len(gallery.state) == 560
    model = Model.of(built, gallery)
    assert model.images.keys() == {*built.paths, *(f"{prefix}{number}.png" for prefix in "ab" for number in range(250))}
    hits = gallery.search(feature(0)[np.newaxis], Query(30))[0]
    assert model.check(hits, model.refinement.project(feature(0)[np.newaxis])[0], 30, -1, None) == 1


def add_if_new(built: Built, changes: Path, cache: str, pipe: Connection) -> None:
    os.environ["LOOKALIKE_CACHE"] = cache
    gallery, added = built.open(changes), 0
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
def test_of_two_that_add_the_same_path_one_is_told(built: Built, changes: Path, cache_folder: Path) -> None:
    pipes = [CONTEXT.Pipe() for _ in range(2)]
    writers = [
        CONTEXT.Process(target=add_if_new, args=(built, changes, str(cache_folder), theirs)) for _, theirs in pipes
    ]
    for writer in writers:
        writer.start()
    for ours, _ in pipes:
        ours.send("go")
    added = [ours.recv() for ours, _ in pipes if ours.poll(patience(300))]
    for writer in writers:
        writer.join()
    assert sum(added) == 60 and len(built.open(changes).state) == 120
    assert len(built.open(changes).journal.events()) == 60


@pytest.mark.slow
@pytest.mark.usefixtures("processes")
def test_an_open_gallery_sees_the_change_of_another_process_at_once(
    built: Built, changes: Path, cache_folder: Path
) -> None:
    gallery = built.open(changes)
    assert len(gallery.search(feature(0)[np.newaxis], Query(60))[0]) == 60
    for number in (1, 2):  # the first change makes the file, the second finds it
        process = CONTEXT.Process(target=add_many, args=(built, changes, str(cache_folder), f"n{number}/", 1))
        process.start()
        process.join()
        assert len(gallery.search(feature(0)[np.newaxis], Query(60 + number))[0]) == 60 + number
        assert gallery.search(feature(0)[np.newaxis], Query(1, label=f"n{number}/"))[0][0].path == f"n{number}/0.png"


def test_whoever_keeps_the_collection_locked_is_named(
    built: Built, changes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "WAIT", 0.1)
    gallery = built.open(changes)
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
        for opened in (gallery, built.open(changes)):
            with pytest.raises(LookalikeError, match=busy):
                opened.search(feature(0)[np.newaxis], Query(61))
    add(gallery, "b.png", 2)
    assert len(gallery.state) == 62


@pytest.mark.slow
def test_threads_search_while_one_adds(tmp_path: Path, changes: Path) -> None:
    built = build(tmp_path / "index", 300, "hnsw", "float16", UNEXPANDED)
    gallery, done = built.open(changes), threading.Event()
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
    images = Model.of(built, gallery).images
    for hit in set(seen):
        assert hit.label == images[hit.path][0]
        assert hit.cosine == pytest.approx(images[hit.path][1] @ query, abs=CLOSE)
    assert any(hit.path.startswith("new/") for hit in seen)


# --- another index -----------------------------------------------------------------------------------------------


def changed(tmp_path: Path, changes: Path) -> tuple[Built, Gallery]:
    """An index of 40, and a journal: two added, one replaced, one removed that are folded; then one of each more."""
    built = build(tmp_path / "index", 40)
    gallery = built.open(changes)
    add(gallery, "folded/a.png", 101, "folded")
    add(gallery, "folded/b.png", 102, "folded")
    add(gallery, built.paths[0], 103, "ant", over=True)
    gallery.remove([built.paths[1]])
    with gallery.journal.changing(gallery.fingerprint, gallery.embedding) as writer:
        writer.set_folded()
    add(gallery, "open/c.png", 104, "open")
    add(gallery, "folded/b.png", 105, "folded", over=True)
    add(gallery, built.paths[2], 106, "cat", over=True)
    gallery.remove([built.paths[3]])
    return built, gallery


def rebuilt(built: Built, **options: Any) -> Built:
    """The index as `dvc repro` makes it after that fold."""
    more = {"folded/a.png": 101, "folded/b.png": 102, built.paths[0]: 103}
    return build(built.folder, 40, more=more, less=(built.paths[1],), **options)


def test_changes_are_carried_over_to_a_rebuilt_index(tmp_path: Path, changes: Path) -> None:
    built, before = changed(tmp_path, changes)
    after = rebuilt(built, refined=REFINED | {"pca": 9, "power": 1, "augment": 3})
    with pytest.raises(Rebuilt, match=r"index was rebuilt since it was opened; open it again"):
        before.search(feature(0)[np.newaxis], Query(3))
    for change in (lambda: add(before, "x.png", 1), lambda: before.remove(["open/c.png"])):
        with pytest.raises(LookalikeError, match=r"rebuilt|another index"):
            change()
    told: list[str] = []
    gallery = after.open(changes, tell=told.append)
    assert len(gallery.state) == len(after.paths)  # one more, one less
    kept = {event.path: event for event in gallery.journal.events()}
    assert kept.keys() == {"open/c.png", "folded/b.png", built.paths[2], built.paths[3]}
    assert built.paths[3] not in gallery.state and built.paths[1] not in gallery.state
    model = Model(after, gallery)
    for path, seed in (("open/c.png", 104), ("folded/b.png", 105), (built.paths[2], 106)):
        assert np.array_equal(kept[path].embedding, feature(seed))
        assert kept[path].vector == pytest.approx(model.joined(path, feature(seed)), abs=STEP)
        assert gallery.journal.image(kept[path].image) == f"picture {seed}".encode()
    with pytest.raises(LookalikeError, match=r"picture .* is damaged"):
        gallery.journal.image(hashlib.sha256(b"picture 101").hexdigest())  # what nobody needs is not kept
    assert gallery.journal.bound().folded < min(event.number for event in kept.values())
    assert len(told) == 1 and "4 changes made since the one before are carried over, 3 are in it" in told[0]
    quiet = after.open(changes, tell=told.append)
    assert len(quiet.state) == len(gallery.state) and len(told) == 1
    model = Model.of(after, gallery)
    query = model.refinement.project(feature(7)[np.newaxis])[0]
    assert model.check(gallery.search(feature(7)[np.newaxis], Query(20))[0], query, 20, -1, None) == 1


def test_the_old_index_opened_again_carries_them_back(tmp_path: Path, changes: Path) -> None:
    built, _ = changed(tmp_path, changes)
    shutil.copytree(built.folder, tmp_path / "kept")
    shutil.copy(tmp_path / "index.json", tmp_path / "kept.json")
    after = rebuilt(built, refined=RAW)
    add(after.open(changes), "later.png", 107)
    shutil.rmtree(built.folder)
    shutil.copytree(tmp_path / "kept", built.folder)
    shutil.copy(tmp_path / "kept.json", tmp_path / "index.json")
    gallery = built.open(changes)
    assert {"later.png", "open/c.png", "folded/b.png", built.paths[2]} <= {*latest(gallery)}
    assert built.paths[3] not in gallery.state
    assert gallery.search(feature(104)[np.newaxis], Query(1, label="open"))[0][0].path == "open/c.png"
    model = Model.of(built, gallery)
    query = model.refinement.project(feature(7)[np.newaxis])[0]
    assert model.check(gallery.search(feature(7)[np.newaxis], Query(20))[0], query, 20, -1, None) == 1


def test_folded_images_that_the_new_index_lacks_are_kept(tmp_path: Path, changes: Path) -> None:
    """Rebuilt before the folder was read anew: nothing that was searchable is lost, and nothing is folded twice."""
    built, _ = changed(tmp_path, changes)
    after = build(built.folder, 40, refined=RAW)
    gallery = after.open(changes)
    assert {"folded/a.png", "folded/b.png", "open/c.png"} <= {*latest(gallery)}
    assert built.paths[1] not in gallery.state and built.paths[3] not in gallery.state
    folded = gallery.journal.bound().folded
    assert {event.path for event in gallery.journal.events(folded)} == {
        "open/c.png", "folded/b.png", built.paths[2], built.paths[3]
    }  # fmt: skip


def test_changes_that_an_index_has_no_need_of_leave_it_as_it_is(tmp_path: Path, changes: Path) -> None:
    """An image was removed, and then left out of the index that was built anew."""
    built = build(tmp_path / "index", 40)
    built.open(changes).remove(built.paths[3:4])
    after = build(built.folder, 40, less=(built.paths[3],))
    gallery, plain = after.open(changes), after.open(tmp_path / "none")
    assert latest(gallery).keys() == {built.paths[3]} and built.paths[3] not in gallery.state
    assert len(gallery.state) == 39
    asked = feature(3)[np.newaxis]
    for label in (None, "ant"):
        assert gallery.search(asked, Query(40, label=label)) == plain.search(asked, Query(40, label=label))
    assert gallery.similar(built.paths[0], Query(5)) == plain.similar(built.paths[0], Query(5))


def test_where_nothing_is_to_be_carried_over_nothing_is_told(tmp_path: Path, changes: Path) -> None:
    built, told = build(tmp_path / "index", 40), []
    gallery = built.open(changes)
    add(gallery, "folded/a.png", 101, "folded")
    with gallery.journal.changing(gallery.fingerprint, gallery.embedding) as writer:
        writer.set_folded()
    for augment, count in ((3, 1), (4, 1), (5, 1)):  # rebuilt with it, and twice again
        after = build(built.folder, 40, refined=REFINED | {"augment": augment}, more={"folded/a.png": 101})
        assert len(after.open(changes, tell=told.append).state) == 41
        assert len(told) == count
    assert "0 changes made since the one before are carried over, 1 are in it already" in told[0]


def test_of_two_that_find_another_index_one_carries_changes_over(
    tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = changed(tmp_path, changes)
    after, told = rebuilt(built, refined=RAW), []
    late = after.open(changes, tell=told.append)
    real = late.journal.rebase

    def overtaken(*given: Any) -> tuple[int, int]:
        assert len(after.open(changes).state) == len(after.paths)
        return real(*given)

    monkeypatch.setattr(late.journal, "rebase", overtaken)
    assert len(late.state) == len(after.paths) and "open/c.png" in late.state
    assert told == []
    assert everything(after, changes) == everything(after, changes)


@pytest.mark.parametrize(
    ("moment", "message"),
    [("events", "was moved to another index meanwhile"), ("changing", "belongs to another index, built meanwhile")],
)
def test_a_collection_that_moves_to_another_index_just_now_is_not_touched(
    tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch, moment: str, message: str
) -> None:
    """Between two looks at one file: before its events are read, and before a change begins."""
    built, before = changed(tmp_path, changes)
    add(built.open(changes), "another's.png", 107)  # which is to be read first
    real = getattr(before.journal, moment)

    def late(*given: Any) -> Any:
        rebuilt(built, refined=RAW).open(changes).remove(["open/c.png"])
        return real(*given)

    monkeypatch.setattr(before.journal, moment, late)
    with pytest.raises(LookalikeError, match=rf"journal\.sqlite {message}; open the new one and retry"):
        add(before, "x.png", 1)
    now = built.open(changes).state
    assert "x.png" not in now and "open/c.png" not in now and "another's.png" in now


@pytest.mark.parametrize("how", ["add", "remove"])
def test_a_change_that_was_made_is_not_called_a_failure_where_the_index_is_rebuilt_just_then(
    tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Told to try again, a client would hear that the image is there already, or that there is none."""
    built, before = changed(tmp_path, changes)
    real = before.journal.changing

    @contextmanager
    def then_rebuilt(*given: Any) -> Iterator[journal.Writer]:
        with real(*given) as writer:
            yield writer
        assert len(rebuilt(built, refined=RAW).open(changes).state)

    monkeypatch.setattr(before.journal, "changing", then_rebuilt)
    add(before, "x.png", 1) if how == "add" else before.remove(["open/c.png"])
    with pytest.raises(Rebuilt):
        before.search(feature(0)[np.newaxis], Query(3))
    now = built.open(changes).state
    assert ("x.png" in now) == (how == "add") and ("open/c.png" in now) == (how == "add")


def test_another_network_embeds_changes_anew(tmp_path: Path, changes: Path) -> None:
    built, _ = changed(tmp_path, changes)
    before = (changes / "journal.sqlite").read_bytes()
    two = replace(ONE, network=replace(ONE.network, dim=16, fingerprint="two"))
    after = rebuilt(built, embedding=two)
    blind = after.open(changes)
    for change in (lambda: blind.search(feature(0, 16)[np.newaxis], Query(3)), lambda: add(blind, "x.png", 1),
                   lambda: blind.remove([built.paths[5]])):  # fmt: skip
        with pytest.raises(
            LookalikeError, match=r"journal.sqlite holds changes made under another network; search with"
        ):
            change()
    assert (changes / "journal.sqlite").read_bytes() == before
    embedded: list[bytes] = []

    def embed(content: bytes) -> np.ndarray:
        embedded.append(content)
        return feature(int(content.split()[1]), 16)

    told: list[str] = []
    gallery = after.open(changes, tell=told.append, embed=embed)
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
    built, _ = changed(tmp_path, changes)
    before = (changes / "journal.sqlite").read_bytes()
    after = rebuilt(built, embedding=replace(ONE, image_size=64))

    def embed(content: bytes) -> np.ndarray:
        if content == b"picture 106":
            raise LookalikeError("no memory")
        return feature(1)

    with pytest.raises(LookalikeError, match="no memory"):
        len(after.open(changes, embed=embed).state)
    assert (changes / "journal.sqlite").read_bytes() == before


def test_a_picture_whose_embedding_is_gone_is_not_left_out_in_silence(tmp_path: Path, changes: Path) -> None:
    built, _ = changed(tmp_path, changes)
    path = changes / "journal.sqlite"
    with closing(sqlite3.connect(path)) as file, file:
        values = list(file.execute("SELECT * FROM events WHERE path = 'open/c.png'").fetchone())[:-1]
        values[5] = None
        file.execute("UPDATE events SET embedding = NULL, checksum = ? WHERE number = ?",
                     [journal._checksum(values), values[0]])  # fmt: skip
    before = path.read_bytes()
    with pytest.raises(LookalikeError, match="embeddings of 24 dimensions"):
        len(rebuilt(built, refined=RAW).open(changes).state)
    assert path.read_bytes() == before


# --- folding: more of it in test_cli.py --------------------------------------------------------------------------


def photos_with_tables(folder: Path, labels: str, tags: str) -> tuple[registry.Settings, Path]:
    """An own folder with one picture, new/a.png, a CSV of labels, and a CSV of tags beside the folder."""
    (folder / "photos/new").mkdir(parents=True)
    (folder / "photos/new/a.png").write_bytes(b"their own")
    (folder / "photos/labels.csv").write_text(labels)
    (folder / "tags.csv").write_text(tags)
    settings = registry.Settings(dataset="folder", folder=str(folder / "photos"), labels="labels.csv", url="",
                                 checksum="", exclude=[], limit_per_class=0)  # fmt: skip
    return settings, folder / "tags.csv"


def test_fold_keeps_the_lines_of_a_file_that_it_keeps(built: Built, tmp_path: Path, changes: Path) -> None:
    """Added and removed again, and meanwhile somebody put another picture of that name into the folder."""
    labels, tags = "path,label\nnew/a.png,mine\n", "path,text\nnew/a.png,red\n"
    settings, tags_file = photos_with_tables(tmp_path, labels, tags)
    gallery = built.open(changes)
    for path in ("new/a.png", "new/b.png"):
        add(gallery, path, 1, "new")
        gallery.remove([path])
    done = fold.fold(gallery, settings, tags_file)
    assert (tmp_path / "photos/new/a.png").read_bytes() == b"their own"
    assert ((tmp_path / "photos/labels.csv").read_text(), tags_file.read_text()) == (labels, tags)
    assert done == fold.Folded(written=0, removed=0)  # of new/b.png there was never a file


def test_fold_writes_where_no_folder_can_be_opened(
    built: Built, tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under Windows, where a folder's own entry cannot be flushed to the disk."""
    settings, _ = photos_with_tables(tmp_path, "path,label\n", "path,text\n")
    gallery = built.open(changes)
    add(gallery, "new/b.png", 1, "new")
    monkeypatch.delattr(os, "O_DIRECTORY")
    assert fold.fold(gallery, settings) == fold.Folded(written=1, removed=0)
    assert (tmp_path / "photos/new/b.png").read_bytes() == b"picture 1"


def test_fold_counts_the_files_that_it_takes_out(built: Built, tmp_path: Path, changes: Path) -> None:
    settings, _ = photos_with_tables(tmp_path, "path,label\n", "path,text\n")
    taken = tmp_path / "photos" / built.paths[0]
    taken.parent.mkdir(exist_ok=True)
    taken.write_bytes(b"indexed")
    gallery = built.open(changes)
    gallery.remove(built.paths[:2])  # the second one's file is gone already
    assert fold.fold(gallery, settings) == fold.Folded(written=0, removed=1)
    assert not taken.exists()


def test_fold_leaves_other_columns_as_they_are_and_the_tables_on_disk(
    built: Built, tmp_path: Path, changes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal may forget a change that was folded, so a power cut must not take the tables."""
    path = built.paths[0]
    settings, tags_file = photos_with_tables(
        tmp_path, ",path,label,\n0,new/a.png,x,y\n", f",path,text,\n0,{path},red,y\n1,new/a.png,blue,z\n"
    )
    gallery = built.open(changes)
    add(gallery, "new/b.png", 1, "a, b")
    gallery.remove([path])
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino) or real(number))
    fold.fold(gallery, settings, tags_file)
    table = tmp_path / "photos/labels.csv"
    assert table.read_text() == ',path,label,\n0,new/a.png,x,y\n,new/b.png,"a, b",\n'
    assert tags_file.read_text() == ",path,text,\n1,new/a.png,blue,z\n"
    assert {table.stat().st_ino, tags_file.stat().st_ino} <= {*synced}


# --- a broken file -----------------------------------------------------------------------------------------------


def some_changes(built: Built, changes: Path) -> Path:
    gallery = built.open(changes)
    for number in range(5):
        add(gallery, f"new/{number}.png", number, "new")
    gallery.remove(["new/3.png", built.paths[2]])
    return changes / "journal.sqlite"


def everything(built: Built, changes: Path) -> Any:
    """All that a user can learn from a collection."""
    told: list[str] = []
    gallery = built.open(changes, tell=told.append)
    hits = gallery.search(np.stack([feature(1), feature(9)]), Query(40))
    events = gallery.journal.events()
    pictures = [gallery.journal.image(event.image) for event in events if event.image]
    about = asdict(gallery.journal.bound()) if gallery.journal.bound() else None
    return hits, gallery.similar(built.paths[0], Query(20)), pictures, [event.number for event in events], about, told


@pytest.mark.parametrize(
    "what", ["text", "random", "another program's", "a folder", "an older one", "without pictures"]
)
def test_a_file_that_is_no_journal_is_named(built: Built, changes: Path, what: str) -> None:
    path = some_changes(built, changes)
    opened = built.open(changes)
    assert len(opened.state) == 63
    size = path.stat().st_size
    if what == "without pictures":
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("DELETE FROM images")
        opened.search(feature(0)[np.newaxis], Query(3))  # who does not need them does not mind
        with pytest.raises(LookalikeError, match=r"journal.sqlite cannot be read \(picture [0-9a-f]+ is damaged\)"):
            everything(built, changes)
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
    for gallery in (opened, built.open(changes)):
        for ask in (lambda: gallery.search(feature(0)[np.newaxis], Query(3)), lambda: add(gallery, "x.png", 1)):  # noqa: B023
            with pytest.raises(LookalikeError, match=r"journal.sqlite(:| cannot be read)") as error:
                ask()
            assert "\n" not in str(error.value)
    assert path.is_dir() or path.read_bytes() == before  # nothing of somebody else's is touched


@pytest.mark.parametrize("text", ["", "{}", '{"network": null, "image_size": 32, "fit": "pad"}', None, 7])
def test_a_journal_of_what_no_version_here_knows_is_named(built: Built, changes: Path, text: object) -> None:
    """Whole, as its checksums say, but written by another version."""
    path = some_changes(built, changes)
    with closing(sqlite3.connect(path)) as file, file:
        values = list(file.execute("SELECT fingerprint, embedding, folded, first, last FROM about").fetchone())
        file.execute("CREATE TABLE other (fingerprint, embedding, folded, first, last, checksum)")
        values[1] = text
        file.execute("INSERT INTO other VALUES (?, ?, ?, ?, ?, ?)", [*values, journal._checksum(values)])
        file.execute("DROP TABLE about")
        file.execute("ALTER TABLE other RENAME TO about")
    before = path.read_bytes()
    gallery = built.open(changes)
    said = r"journal.sqlite cannot be read \(what it belongs to is damaged\); restore it from a backup, or move it away"
    for ask in (lambda: gallery.search(feature(0)[np.newaxis], Query(3)), lambda: add(gallery, "x.png", 1)):
        with pytest.raises(LookalikeError, match=said):
            ask()
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [1, 4, 7])
def test_an_event_that_is_missing_is_named(built: Built, changes: Path, number: int) -> None:
    path = some_changes(built, changes)
    gallery = built.open(changes)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM events WHERE number = ?", [number])
    with pytest.raises(LookalikeError, match=rf"journal.sqlite cannot be read \(event {number} is (damaged|missing)\)"):
        gallery.search(feature(0)[np.newaxis], Query(3))


@pytest.mark.slow
@pytest.mark.parametrize("flip", [0xFF, 0x01])
def test_no_flipped_byte_gives_a_wrong_answer(built: Built, changes: Path, flip: int) -> None:
    path = some_changes(built, changes)
    true, content = everything(built, changes), path.read_bytes()
    outcomes: Counter[str] = Counter()
    for position in range(flip % 7, len(content), 131):
        damaged = bytearray(content)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        try:
            assert everything(built, changes) == true, position
            outcomes["right"] += 1
        except LookalikeError as error:
            assert "journal.sqlite" in str(error) and "\n" not in str(error)
            outcomes["named"] += 1
    assert outcomes["named"] > 15


def test_a_truncated_file_is_named(built: Built, changes: Path) -> None:
    path = some_changes(built, changes)
    content = path.read_bytes()
    for size in {*range(2, len(content), 1999), *range(4096, len(content), 4096)}:
        path.write_bytes(content[:size])
        with pytest.raises(LookalikeError, match=r"journal\.sqlite"):
            everything(built, changes)
    path.write_bytes(content)
    assert len(built.open(changes).state) == 63


def test_a_journal_deleted_while_it_is_open_is_a_clean_start(built: Built, changes: Path) -> None:
    path = some_changes(built, changes)
    gallery = built.open(changes)
    assert len(gallery.state) == 63
    path.unlink()
    add(gallery, "new/1.png", 77, "again")  # no search came between
    model = Model(built, gallery)
    assert latest(gallery)["new/1.png"].vector == pytest.approx(model.joined("new/1.png", feature(77)), abs=STEP)
    for opened in (gallery, built.open(changes)):
        assert len(opened.state) == 61 and "new/0.png" not in opened.state and built.paths[2] in opened.state
    path.unlink()
    assert len(gallery.search(feature(0)[np.newaxis], Query(60))[0]) == 60
    with pytest.raises(LookalikeError, match="not in the collection"):
        gallery.remove(["new/1.png"])
    some_changes(built, changes)
    assert len(gallery.state) == 63 and "new/1.png" in gallery.state
    path.unlink()
    other = built.open(changes)
    for number in range(12):  # more than there were, so that its numbers say nothing
        add(other, f"other/{number}.png", number)
    assert len(gallery.state) == 72 and "new/1.png" not in gallery.state and built.paths[2] in gallery.state


def test_a_backup_restored_while_it_is_open_is_followed(built: Built, changes: Path) -> None:
    path = some_changes(built, changes)
    backup = path.read_bytes()
    gallery = built.open(changes)
    add(gallery, "later.png", 5)
    assert "later.png" in gallery.state
    path.write_bytes(backup)  # into the very file
    assert len(gallery.state) == 63 and "later.png" not in gallery.state


def run_read_only(built: Built, changes: Path, cache: Path, code: str) -> list[str]:
    """Run code with a gallery whose changes lie on a read-only file system, or skip where none can be had."""
    script = changes.parent / "ask.py"
    here = Path(__file__).parent
    script.write_text(
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]\n"
        "from pathlib import Path\nimport test_changes as t\nfrom lookalike.base.errors import LookalikeError\n"
        f"gallery = t.Gallery(Path({str(built.folder)!r}), Path({str(changes)!r}))\n{code}"
    )
    done = unshared(f"{read_only(changes)} && LOOKALIKE_CACHE={cache} {sys.executable} {script}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_read_only_folder_is_searched_and_not_changed(built: Built, changes: Path, cache_folder: Path) -> None:
    some_changes(built, changes)
    code = (
        "print(len(gallery.search(t.feature(0)[None], t.Query(63))[0]))\n"
        "for change in (lambda: t.add(gallery, 'x.png', 1), lambda: gallery.remove(['new/1.png'])):\n"
        "    try: change()\n"
        "    except LookalikeError as error: print(error)\n"
    )
    count, *errors = run_read_only(built, changes, cache_folder, code)
    assert count == "63" and len(errors) == 2
    assert all("journal.sqlite: attempt to write a readonly database; nothing was changed" in line for line in errors)
    assert len(built.open(changes).state) == 63


@pytest.mark.slow
def test_a_read_only_folder_without_a_journal(built: Built, changes: Path, cache_folder: Path) -> None:
    changes.mkdir()
    code = (
        "print(len(gallery.search(t.feature(0)[None], t.Query(60))[0]))\n"
        "try: t.add(gallery, 'x.png', 1)\n"
        "except LookalikeError as error: print(error)\n"
        "print(len(gallery.search(t.feature(0)[None], t.Query(60))[0]))\n"
    )
    count, error, again = run_read_only(built, changes, cache_folder, code)
    assert (count, again) == ("60", "60") and "journal.sqlite: unable to open database file" in error
