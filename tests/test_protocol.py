"""The split is fair, stable, and never has the same picture on both sides."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import protocol
from lookalike.errors import LookalikeError
from lookalike.params import UNUSED
from lookalike.protocol import split


def settings(seed: int = 0, fraction: float = 0.2, kind: str = "holdout", **lists: Path) -> protocol.Settings:
    files = {"queries": UNUSED, "gallery": UNUSED} | {name: str(path) for name, path in lists.items()}
    return protocol.Settings.model_validate({"seed": seed, "fraction": fraction, "kind": kind} | files)


def lists(**files: Path) -> protocol.Settings:
    return settings(kind="lists", **files)


def seen(result: protocol.Split, query: int) -> set[int]:
    """Rows of the collection that a query may find."""
    position = result.queries.tolist().index(query)
    hidden = {result.gallery[place] for place in result.exclude[position] if place >= 0}
    return set(result.gallery.tolist()) - hidden


def arrays(*images: tuple[str, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths, labels and hashes of images given as (label, content)."""
    paths = np.array([f"{row:05}.png" for row in range(len(images))])
    hashes = [hashlib.sha256(content.encode()).hexdigest() for _, content in images]
    return paths, np.array([label for label, _ in images]), np.array(hashes)


def distinct(**counts: int) -> list[tuple[str, str]]:
    return [(label, f"{label}{number}") for label, count in counts.items() for number in range(count)]


def test_each_class_gives_its_share() -> None:
    paths, labels, hashes = arrays(*distinct(a=10, b=33, c=2, d=4))
    result = split(paths, labels, hashes, settings())
    asked = {label: int((labels[result.queries] == label).sum()) for label in "abcd"}
    assert asked == {"a": 2, "b": 7, "c": 1, "d": 1}  # 6.6 rounds to 7; at least one
    assert sorted([*result.queries, *result.gallery]) == list(range(49))


def test_never_a_whole_class() -> None:
    result = split(*arrays(*distinct(a=2, b=3)), settings(fraction=0.99))
    assert (len(result.queries), len(result.gallery)) == (1 + 2, 2)


def test_another_seed_draws_others() -> None:
    data = arrays(*distinct(a=50, b=50))
    assert split(*data, settings(0)).queries.tolist() != split(*data, settings(1)).queries.tolist()
    assert split(*data, settings(0)).queries.tolist() == split(*data, settings(0)).queries.tolist()


@given(st.integers(2, 60), st.integers(0, 5), st.sampled_from([0.1, 0.2, 0.5]))
def test_adding_an_image_moves_at_most_one_other(count: int, seed: int, fraction: float) -> None:
    def queries(images: list[tuple[str, str]]) -> set[str]:
        _, labels, hashes = arrays(*images)
        rows = split(
            np.array([f"{row:05}" for row in range(len(images))]), labels, hashes, settings(seed, fraction)
        ).queries
        return {images[row][1] for row in rows}

    images = distinct(a=count, b=7)
    before, after = queries(images), queries([*images, ("a", "new")])
    assert len((before ^ after) - {"new"}) <= 1


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("uvwxyz")), min_size=1, max_size=25), st.integers(0, 3)
)
def test_identical_images_lie_on_one_side(images: list[tuple[str, str]], seed: int) -> None:
    paths, labels, hashes = arrays(*images)
    result = split(paths, labels, hashes, settings(seed, 0.4))
    if not result.unmeasurable:
        assert not set(hashes[result.queries]) & set(hashes[result.gallery])
        assert set(labels[result.queries]) <= set(labels[result.gallery])  # every query has something to find


def test_identical_images_with_two_labels_are_gallery() -> None:
    result = split(*arrays(("a", "same"), ("b", "same"), *distinct(a=3, b=3)), settings(fraction=0.5))
    assert {0, 1} <= set(result.gallery)
    assert any("2 images are byte-identical to one with another label" in note for note in result.notes)


def test_unlabelled_images_are_gallery_and_counted() -> None:
    result = split(*arrays(*distinct(a=5), ("", "x"), ("", "y")), settings())
    assert {5, 6} <= set(result.gallery)
    assert "2 images have no label: gallery only, relevant to no query" in result.notes


def test_a_class_of_one_is_counted_and_said() -> None:
    result = split(*arrays(*distinct(a=5, lonely=1)), settings())
    assert 5 in result.gallery
    assert result.notes == ("1 classes have one image, which cannot be a query: lonely",)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (distinct(**{"": 10}), "the images have no labels"),
        (distinct(a=1, b=1, c=1), "no class has two different images"),
        ([("a", "same"), ("a", "same")], "no class has two different images"),
    ],
)
def test_where_nothing_can_be_measured_it_says_why(images: list[tuple[str, str]], reason: str) -> None:
    result = split(*arrays(*images), settings())
    assert result.unmeasurable == reason
    assert len(result.gallery) >= 1


def test_one_image_has_no_query() -> None:
    result = split(*arrays(("a", "x")), settings())
    assert (len(result.queries), len(result.gallery)) == (0, 1)


def test_leave_one_out_asks_with_every_image_and_hides_it_from_itself() -> None:
    result = split(*arrays(*distinct(a=3, b=2)), settings(kind="leave-one-out"))
    assert result.queries.tolist() == [0, 1, 2, 3, 4]
    for query in range(5):
        assert seen(result, query) == set(range(5)) - {query}


def test_leave_one_out_hides_copies_and_drops_who_has_nothing_to_find() -> None:
    data = arrays(("a", "same"), ("a", "same"), ("a", "z"), ("b", "alone"), ("", "x"), ("c", "twin"), ("c", "twin"))
    result = split(*data, settings(kind="leave-one-out"))
    assert result.queries.tolist() == [0, 1, 2]  # b is alone, c has only copies, row 4 has no label
    assert seen(result, 0) == {2, 3, 4, 5, 6}
    assert seen(result, 2) == {0, 1, 3, 4, 5, 6}
    assert "1 images have no label: gallery only, relevant to no query" in result.notes
    assert any(note.startswith("3 images have no other image of their class") for note in result.notes)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", ""]), st.sampled_from("uvwxyz")), min_size=1, max_size=20))
def test_leave_one_out_by_its_definition(images: list[tuple[str, str]]) -> None:
    paths, labels, hashes = arrays(*images)
    result = split(paths, labels, hashes, settings(kind="leave-one-out"))
    if result.unmeasurable:
        return
    for row in range(len(images)):
        others = {other for other in range(len(images)) if hashes[other] != hashes[row]}
        findable = labels[row] != "" and any(labels[other] == labels[row] for other in others)
        assert (row in result.queries) == findable
        if findable:
            assert seen(result, row) == others


def test_a_list_of_queries_is_obeyed(tmp_path: Path) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("00001.png\n\n00003.png\n")
    result = split(*arrays(*distinct(a=3, b=2)), lists(queries=file))
    assert (result.queries.tolist(), result.gallery.tolist()) == ([1, 3], [0, 2, 4])


def test_lists_of_both_as_csv(tmp_path: Path) -> None:
    queries, gallery = tmp_path / "q.csv", tmp_path / "g.csv"
    queries.write_text("label,path\na,00000.png\n")
    gallery.write_text('path\n"00001.png"\n00003.png\n')
    result = split(*arrays(*distinct(a=3, b=2)), lists(queries=queries, gallery=gallery))
    assert (result.queries.tolist(), result.gallery.tolist()) == ([0], [1, 3])
    gallery.write_text("00000.png\n00001.png\n")
    with pytest.raises(LookalikeError, match=r"1 paths are in protocol\.queries and in protocol\.gallery"):
        split(*arrays(*distinct(a=3, b=2)), lists(queries=queries, gallery=gallery))


def test_a_list_hides_copies_and_drops_the_unlabelled_and_the_lonely(tmp_path: Path) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("00000.png\n00002.png\n00003.png\n")
    data = arrays(("a", "same"), ("a", "same"), ("", "x"), ("b", "y"), ("a", "z"))
    result = split(*data, lists(queries=file))
    assert result.queries.tolist() == [0]
    assert seen(result, 0) == {4}
    assert len(result.notes) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [("nowhere.png\n00000.png\n", "1 of 2 paths are not in the collection, the first 'nowhere.png'"),
     ("\n", "names no image"), ("00000.png\n00001.png\n", "none of its images has another of its class")],
)  # fmt: skip
def test_a_mistake_in_the_list_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "queries.txt"
    file.write_text(content)
    with pytest.raises(LookalikeError, match=message):
        split(*arrays(*distinct(a=2)), lists(queries=file))
    with pytest.raises(LookalikeError, match=r"cannot be read"):
        split(*arrays(*distinct(a=2)), lists(queries=tmp_path / "none.txt"))


def test_a_list_and_its_kind_go_together(tmp_path: Path) -> None:
    with pytest.raises(
        LookalikeError, match=r"protocol\.queries is .*, but protocol\.kind is holdout; set it to lists"
    ):
        split(*arrays(*distinct(a=2)), settings(queries=tmp_path / "q.txt"))
    with pytest.raises(LookalikeError, match=r"protocol\.kind is lists, but protocol\.queries names no file"):
        split(*arrays(*distinct(a=2)), lists())
