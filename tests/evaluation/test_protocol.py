"""The split is fair, stable, and never has the same picture on both sides."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert

from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED
from lookalike.evaluation import protocol
from lookalike.evaluation.protocol import split


def settings(seed: int = 0, fraction: float = 0.2, kind: str = "holdout", **lists: Path) -> protocol.Settings:
    files = {"queries": UNUSED, "gallery": UNUSED} | {name: str(path) for name, path in lists.items()}
    return convert({"seed": seed, "fraction": fraction, "kind": kind} | files, protocol.Settings)


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
    ("images", "reason", "asked"),
    [
        (distinct(**{"": 10}), "the images have no labels", 2),
        (distinct(a=1, b=1, c=1), "no class has two different images", 1),
        ([("a", "same"), ("a", "same")], "no class has two different images", 0),  # never one of the two alone
    ],
)
def test_where_nothing_can_be_measured_it_says_why(images: list[tuple[str, str]], reason: str, asked: int) -> None:
    """And draws from all images, so that examples and latency have queries still."""
    result = split(*arrays(*images), settings())
    assert result.unmeasurable == reason
    assert len(result.queries) == asked
    assert sorted([*result.queries, *result.gallery]) == list(range(len(images)))


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


# --- to the letter --------------------------------------------------------------------------------------------------


def exactly(message: str):
    return pytest.raises(LookalikeError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("singles, names", [("cdefg", "c, d, e, f, g"), ("cdefgh", "c, d, e, f, g, ...")])
def test_a_holdout_counts_what_it_does_not_ask_for(singles: str, names: str) -> None:
    images = [("a", "same"), ("b", "same"), ("a", "twin"), ("a", "twin"), ("", "x"), *distinct(a=4, b=2)]
    result = split(*arrays(*images, *((single, single) for single in singles)), settings())
    assert result.notes == (
        "2 images are byte-identical to one with another label: gallery only",
        "2 images are byte-identical to another of their class: drawn together",
        "1 images have no label: gallery only, relevant to no query",
        f"{len(singles)} classes have one image, which cannot be a query: {names}",
    )
    assert (result.exclude.shape, result.exclude.dtype) == ((len(result.queries), 0), np.int64)
    assert result.unmeasurable == ""
    assert split(*arrays(("", "x"), ("", "x"), ("", "y")), settings()).notes == (
        "2 images are byte-identical to another of their class: drawn together",
    )


@given(st.integers(2, 40), st.integers(0, 9), st.sampled_from([0.1, 0.25, 0.5, 0.9]))
def test_a_holdout_draws_the_smallest_hashes(count: int, seed: int, fraction: float) -> None:
    paths, labels, hashes = arrays(*distinct(a=count, b=3))
    drawn = split(paths, labels, hashes, settings(seed, fraction)).queries
    order = sorted(range(count), key=lambda row: hashlib.sha256(f"{seed}:{hashes[row]}".encode()).hexdigest())
    wanted = min(max(int(count * fraction + 0.5), 1), count - 1)
    assert [row for row in drawn if row < count] == sorted(order[:wanted])


def test_copies_that_are_too_many_are_passed_over() -> None:
    """Of five, three of them equal, one is wanted, or two, but never a part of the three; or all three."""
    images = arrays(("a", "same"), ("a", "same"), ("a", "same"), ("a", "x"), ("a", "y"))
    for seed in range(8):
        for fraction, possible in ((0.2, {1}), (0.4, {2}), (0.6, {3, 2}), (0.8, {4, 3, 2})):
            drawn = split(*images, settings(seed, fraction)).queries.tolist()
            assert len(drawn) in possible
            assert len({0, 1, 2} & set(drawn)) in (0, 3)


def test_leave_one_out_to_the_letter() -> None:
    # Its first image is alone in its class, the next three are one picture, and the last but one has no label.
    images = [("b", "x"), ("a", "same"), ("a", "same"), ("c", "same"), ("a", "y"), ("", "z"), ("c", "w")]
    result = split(*arrays(*images), settings(kind="leave-one-out"))
    assert result.queries.tolist() == [1, 2, 3, 4, 6]
    assert result.gallery.tolist() == list(range(7))
    assert result.exclude.dtype == np.int64
    assert result.exclude.tolist() == [[1, 2, 3], [1, 2, 3], [1, 2, 3], [4, -1, -1], [6, -1, -1]]
    assert result.notes == (
        "1 images have no label: gallery only, relevant to no query",
        "3 images have byte-identical copies in the gallery: left out of their rankings",
        "1 images have no other image of their class to find: not queries",
    )
    assert result.visible == 4
    assert result.unmeasurable == ""
    first = split(*arrays(("a", "same"), ("a", "same"), ("a", "y")), settings(kind="leave-one-out"))
    assert first.notes == ("2 images have byte-identical copies in the gallery: left out of their rankings",)
    assert (
        split(*arrays(("", "x"), ("", "y")), settings(kind="leave-one-out")).unmeasurable == "the images have no labels"
    )


def test_lists_to_the_letter(tmp_path: Path) -> None:
    queries = tmp_path / "q.txt"
    queries.write_text("\ufeff00003.png\n 00000.png \n00003.png\n00004.png\n00005.png\n", encoding="utf-8")
    data = arrays(("a", "x"), ("a", "x"), ("a", "y"), ("b", "z"), ("", "w"), ("c", "v"), ("b", "u"), ("b", "z"))
    result = split(*data, lists(queries=queries))
    assert (result.queries.tolist(), result.gallery.tolist()) == ([0, 3], [2, 6])
    assert result.exclude.shape == (2, 0)
    assert result.notes == (
        "2 images are byte-identical to a listed query: left out of the gallery",
        "1 images listed as queries have no label: left out",
        "1 images have no other image of their class to find: not queries",
    )


def test_mistakes_in_lists_to_the_letter(tmp_path: Path) -> None:
    data, queries, gallery = arrays(*distinct(a=3)), tmp_path / "q.csv", tmp_path / "g.txt"
    with exactly(f"protocol.gallery is {gallery}, but protocol.kind is leave-one-out; set it to lists"):
        split(*data, settings(kind="leave-one-out", gallery=gallery))
    with exactly("protocol.kind is lists, but protocol.queries names no file; set it to a list of paths"):
        split(*data, lists())
    queries.write_text("label,path\na\nb,00001.png\n")
    with exactly(f"protocol.queries {queries}: 1 of 2 paths are not in the collection, the first ''; paths are as in "
                 "image_paths.npy"):  # fmt: skip
        split(*data, lists(queries=queries))
    queries.write_text("path,label\n00001.png,a\n00002.png\n")
    gallery.write_text("00000.png\n00002.png\n")
    with exactly("1 paths are in protocol.queries and in protocol.gallery, the first '00002.png'; a query must not be "
                 "in its own gallery"):  # fmt: skip
        split(*data, lists(queries=queries, gallery=gallery))
    gallery.write_text("\n")
    with exactly(f"protocol.gallery {gallery} names no image"):
        split(*data, lists(queries=queries, gallery=gallery))
    gallery.write_bytes(b"\xff\n")
    with pytest.raises(LookalikeError, match=rf"^protocol\.gallery {re.escape(str(gallery))} cannot be read: .*decode"):
        split(*data, lists(queries=queries, gallery=gallery))
    gallery.write_text('path\n"' + "a\n" * 200_000)  # a quotation that never ends
    with exactly(f"protocol.gallery {gallery} cannot be read: field larger than field limit (131072)"):
        split(*data, lists(queries=queries, gallery=gallery))
    queries.write_text("00000.png\n00001.png\n00002.png\n")
    with exactly(f"protocol.queries {queries}: none of its images has another of its class in the gallery, so nothing "
                 "can be measured"):  # fmt: skip
        split(*data, lists(queries=queries))


def test_what_is_unfair_to_the_letter() -> None:
    plain = split(*arrays(*distinct(a=10)), settings())
    hiding = split(*arrays(*distinct(a=10)), settings(kind="leave-one-out"))
    assert (plain.visible, hiding.visible) == (8, 9)
    protocol.check_fair(plain, [1, 8], ["pca", "augment"])
    protocol.check_fair(hiding, [9], [])
    protocol.check_fair(split(*arrays(*distinct(**{"": 5})), settings()), [99], [])  # nothing is measured
    with exactly("evaluate.k has 9, but the gallery has 8 images; lower it"):
        protocol.check_fair(plain, [9, 1], [])
    first_alone = protocol.Split(np.array([0]), np.arange(3), np.array([[0]]), "", ())
    for result in (hiding, first_alone):
        with exactly(
            "with protocol.kind leave-one-out every query is in the gallery that index.refine.pca and "
            "index.refine.augment would be fitted on, so it would influence its own ranking; set them to 0, or "
            "protocol.kind to holdout"
        ):
            protocol.check_fair(result, [1], ["pca", "augment"])
