"""Every search of a changed index agrees with a plain model of its changes."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from lookalike.base.errors import LookalikeError
from lookalike.collection import journal
from lookalike.collection.query import Query
from tests.helpers.changed_index import (
    LABELS,
    RAW,
    REFINED,
    STEP,
    UNEXPANDED,
    Built,
    D,
    Model,
    add,
    build,
    feature,
    latest,
)

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
    built_index = build(tmp_path / "index", 10_000, "ivfpq", refined=UNEXPANDED, recall=0.05)
    gallery = built_index.open(changes)
    for seed in range(40):
        add(gallery, f"new/{seed}.png", seed, "new")
    gallery.remove(built_index.paths[100:140])
    add(gallery, built_index.paths[0], 1, "ant", over=True)
    model, recall = Model.of(built_index, gallery), []
    for seed in range(30):
        query = model.refinement.project(feature(seed)[np.newaxis])[0]
        recall.append(model.check(gallery.search(feature(seed)[np.newaxis], Query(10))[0], query, 10, -1, None))
    assert np.mean(recall) >= 0.3  # what was asked of it is little
    assert gallery.search(feature(3)[np.newaxis], Query(40, label="new"))[0][0].path == "new/3.png"


def test_a_replaced_image_is_found_by_its_new_looks_only(built_index: Built, changes: Path) -> None:
    gallery, path = built_index.open(changes), built_index.paths[3]
    model = Model(built_index, gallery)
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
    built_index = build(tmp_path / "index", 3, refined=RAW | {"augment": 3, "expand": 2})
    gallery = built_index.open(changes)
    gallery.remove(built_index.paths)
    for opened in (gallery, built_index.open(changes)):
        with pytest.raises(LookalikeError, match="the index is empty, so nothing can be found in it"):
            opened.search(feature(0)[np.newaxis], Query(1))
        with pytest.raises(LookalikeError, match="is not in the collection"):
            opened.similar(built_index.paths[0], Query(1))
    add(gallery, "new.png", 5)
    assert [hit.path for hit in built_index.open(changes).search(feature(5)[np.newaxis], Query(1))[0]] == ["new.png"]
    assert [hit.path for hit in gallery.search(feature(5)[np.newaxis], Query(2))[0]] == ["new.png"]
    with pytest.raises(LookalikeError, match=r"new\.png is the only image of the collection"):
        gallery.similar("new.png", Query(1))


@pytest.mark.parametrize("k", [0, -5])
def test_a_k_below_1_is_named(built_index: Built, changes: Path, k: int) -> None:
    gallery = built_index.open(changes)
    with pytest.raises(LookalikeError, match=f"k is {k}; choose 1 or more"):
        gallery.similar(built_index.paths[0], Query(k))
    with pytest.raises(LookalikeError, match=f"k is {k}, but the index holds 60 images; choose 1 to 60"):
        gallery.search(feature(0)[np.newaxis], Query(k))


@pytest.mark.parametrize("k", [59, 60, 61, 10**6])
def test_of_more_than_there_are_all_are_found(built_index: Built, changes: Path, k: int) -> None:
    gallery = built_index.open(changes)
    found = [hit.path for hit in gallery.search(feature(0)[np.newaxis], Query(k))[0]]
    assert len(found) == len(set(found)) == min(k, 60)
    assert (
        sorted([*(hit.path for hit in gallery.similar(built_index.paths[0], Query(k))), built_index.paths[0]])
        == built_index.paths
    )


def test_ranks_have_no_gaps_where_hits_are_re_ranked(tmp_path: Path, changes: Path) -> None:
    """Re-ranking puts less similar images first; those below --min-similarity then drop out of the middle."""
    built_index = build(tmp_path / "index", 200, refined=UNEXPANDED | {"rerank": 60})
    gallery, gaps = built_index.open(changes), 0
    for seed in range(200, 240):
        hits = gallery.search(feature(seed)[np.newaxis], Query(40))[0]
        least = sorted(hit.cosine for hit in hits)[20]
        kept = gallery.search(feature(seed)[np.newaxis], Query(40, least))[0]
        assert [hit.path for hit in kept] == [hit.path for hit in hits if hit.cosine >= least]
        assert [hit.rank for hit in kept] == list(range(1, len(kept) + 1))
        gaps += [hit.path for hit in kept] != [hit.path for hit in hits[: len(kept)]]
    assert gaps > 10  # the case that is meant did occur


def test_features_of_another_network_are_refused(built_index: Built, changes: Path) -> None:
    gallery = built_index.open(changes)
    with pytest.raises(LookalikeError, match=r"embeddings of 24 dimensions; they come from another network"):
        gallery.search(np.ones((1, 25), np.float32), Query(1))
    for wrong, message in ((np.ones(25), "another network"), (np.full(D, np.nan), "not finite"), (np.zeros(D), "zero")):
        with pytest.raises(LookalikeError, match=message):
            gallery.add("x.png", "", "0" * 64, b"x", wrong.astype(np.float32), replace=False)
    assert len(built_index.open(changes).state) == 60


def test_an_embedding_is_kept_as_float32_whatever_it_came_as(built_index: Built, changes: Path) -> None:
    gallery = built_index.open(changes)
    gallery.add("x.png", "", "0" * 64, b"x", feature(5).astype(np.float64), replace=False)
    event = built_index.open(changes).journal.events()[0]
    assert np.array_equal(event.embedding, feature(5)) and len(event.vector) == gallery.index.dim


def test_that_a_rebuild_is_due_is_said_once(built_index: Built, changes: Path, told: list[str]) -> None:
    gallery = built_index.open(changes)
    for seed in range(20):
        add(gallery, f"{seed}.png", seed)
        assert len(told) == (seed >= 6), told  # more than a tenth of 60
    assert "changes since 60 images were indexed; a search gets slower" in told[0]
    assert told[0].endswith("where the images are a folder of yours, fold them and rebuild: lookalike fold, dvc repro")


@pytest.mark.slow
def test_adding_a_thousand_reads_each_once(built_index: Built, changes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], journal._events
    monkeypatch.setattr(journal, "_events", lambda *given: read.append(real(*given)) or read[-1])
    gallery = built_index.open(changes)
    for seed in range(1000):
        add(gallery, f"{seed}.png", seed)
    assert len(gallery.state) == 1060
    assert sum(map(len, read)) <= 2000
