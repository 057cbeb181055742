"""What each data set yields, from real files in each layout."""

import io
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import convert
from PIL import Image

from lookalike.base.errors import LookalikeError
from lookalike.datasets import registry
from tests.helpers.pictures import picture


def settings(**changes: Any) -> registry.Settings:
    values = {"dataset": "digits", "folder": "data/none", "labels": "", "url": "", "checksum": "",
              "exclude": ["BACKGROUND_Google"], "limit_per_class": 0}  # fmt: skip
    return convert(values | changes, registry.Settings)


def listed(**changes: Any) -> dict[str, str]:
    return {str(item.path): item.label for item in registry.items(settings(**changes))}


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    items = list(registry.items(settings()))
    assert len(items) == 1797
    assert [int(item.label) for item in items] == load_digits().target.tolist()
    image = np.asarray(Image.open(io.BytesIO(items[0].content)))
    assert image.shape == (8, 8)
    assert np.array_equal(np.round(image / 255 * 16), load_digits().images[0])


def test_limit_and_exclude() -> None:
    counts = Counter(listed(limit_per_class=3, exclude=["0", "9"]).values())
    assert counts == dict.fromkeys("12345678", 3)


def test_one_subfolder_a_class(photos: Callable[..., Path]) -> None:
    folder = photos(cat=2, dog=1)
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / ".hidden").mkdir()
    picture(9).save(folder / ".hidden" / "x.png")
    (folder / "cat" / "deep").mkdir()
    picture(9).save(folder / "cat" / "deep" / "x.JPG")
    assert listed(dataset="folder", folder=str(folder)) == {
        "cat/0.png": "cat", "cat/1.png": "cat", "cat/deep/x.JPG": "cat", "dog/0.png": "dog",
    }  # fmt: skip


def test_a_flat_folder_has_no_labels(photos: Callable[..., Path]) -> None:
    assert listed(dataset="folder", folder=str(photos(**{"": 2}))) == {"0.png": "", "1.png": ""}


def test_a_csv_gives_the_labels(photos: Callable[..., Path]) -> None:
    folder = photos(a=2, b=1)
    (folder / "labels.csv").write_text('path, label\na/0.png,"red, round"\nb/0.png,\n', encoding="utf-8-sig")
    assert listed(dataset="folder", folder=str(folder), labels="labels.csv") == {"a/0.png": "red, round", "b/0.png": ""}
    (folder / "labels.csv").write_text(",path,label,\n0,a/0.png,red,\n1,b/0.png,,\n")  # an index, a comma at the end
    assert listed(dataset="folder", folder=str(folder), labels="labels.csv") == {"a/0.png": "red", "b/0.png": ""}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,class\na/0.png,x\n", r"first line must name the columns path,label"),
        ("path,label\na/9.png,x\n", r"line 2: '.*a/9\.png' does not exist; fix the path or remove the line"),
        ("path,label\na/0.png,x\na/0.png,y\n", r"line 3: 'a/0\.png' is listed twice"),
        ("path,label\n../x.png,x\n", r"line 2: path '\.\./x\.png' must be relative and inside"),
        ("path,label\n/x.png,x\n", r"must be relative"),
        ("path,label\n,x\n", r"must be relative"),
        ("path,label\n", r"no image in it"),
        ("path,label\na/0.png,red, round\n", r"line 2: 2 fields are expected; a label with a comma needs quotation"),
        ("path,label\na/0.png\n", r"line 2: 2 fields are expected"),
        ("path,label\nlabels.csv,x\n", r"line 2: the ending of 'labels\.csv' is not an image's"),
        (",path,label\n0,a/0.png,red, round\n", r"line 2: 3 fields are expected"),
        (",path,label\n0,a/0.png\n", r"line 2: 3 fields are expected"),
        (f"path,label\n{'x' * 300}.png,x\n", r"line 2: '.*xxx\.png' cannot be looked up: File name too long; fix"),
        ('path,label\n"a\nb.png",x\n', r"line 3: '.*a\\nb\.png' does not exist"),
        ('path,label\n"a\nb.txt",x\n', r"line 3: the ending of 'a\\nb\.txt' is not an image's"),
        ('path,label\n"a/0.png,x\n' + "y" * 200_000, r"not a readable CSV .* unclosed quotation mark"),
    ],
)
def test_a_mistake_in_the_csv_is_named(photos: Callable[..., Path], table: str, message: str) -> None:
    folder = photos(a=1)
    (folder / "labels.csv").write_text(table)
    with pytest.raises(LookalikeError, match=message) as caught:
        listed(dataset="folder", folder=str(folder), labels="labels.csv")
    assert "\n" not in str(caught.value)


def test_a_csv_in_another_encoding_is_named(photos: Callable[..., Path]) -> None:
    folder = photos(a=1)
    (folder / "labels.csv").write_bytes("path,label\na/0.png,größe\n".encode("latin-1"))
    with pytest.raises(LookalikeError, match="not UTF-8"):
        listed(dataset="folder", folder=str(folder), labels="labels.csv")


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookalikeError, match=r"download\.folder is '.*nowhere', not a folder"):
        listed(dataset="folder", folder=str(tmp_path / "nowhere"))
    with pytest.raises(LookalikeError, match=r"no image in it; looked for \.bmp"):
        listed(dataset="folder", folder=str(tmp_path))
    with pytest.raises(LookalikeError, match=r"download\.labels is 'x\.csv', but .* does not exist"):
        listed(dataset="folder", folder=str(tmp_path), labels="x.csv")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [("folder", "/photos", "folder"), ("labels", "x.csv", "folder"), ("url", "file:///x.zip", "caltech101"),
     ("checksum", "md5:" + "0" * 32, "caltech101")],
)  # fmt: skip
def test_a_setting_that_would_be_ignored_is_an_error(key: str, value: str, wanted: str) -> None:
    with pytest.raises(LookalikeError, match=rf"download\.{key} is .*set download\.dataset to {wanted}, or {key} back"):
        listed(**{key: value})


def test_what_is_left_out_is_said(photos: Callable[..., Path], told: list[str]) -> None:
    folder = photos(cat=1)
    for name in ("a.heic", "b.HEIC", "c.txt"):
        (folder / "cat" / name).write_bytes(b"")
    listed(dataset="folder", folder=str(folder), exclude=["dgo"])
    said = "\n".join(told)
    assert "are left out: .heic 2, .txt 1" in said
    assert "download.exclude names no class of folder: dgo" in said


def test_linked_class_folders_are_followed_once(photos: Callable[..., Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture(0).save(elsewhere / "x.png")
    folder = photos(dog=1)
    (folder / "cat").symlink_to(elsewhere)
    (folder / "dog" / "up").symlink_to(folder)  # a loop
    assert listed(dataset="folder", folder=str(folder)) == {"cat/x.png": "cat", "dog/0.png": "dog"}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("real", "link"), [("cat", "pet"), ("pet", "cat")])
def test_of_two_names_of_a_folder_the_first_counts(
    photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, real: str, link: str, reverse: bool
) -> None:
    walk = os.walk

    def listing(*given: Any, **named: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for name, subfolders, files in walk(*given, **named):
            subfolders.sort(reverse=reverse)  # as one disk lists them, or another
            yield name, subfolders, files

    monkeypatch.setattr(os, "walk", listing)
    folder = photos(**{real: 1})
    (folder / link).symlink_to(folder / real)
    assert listed(dataset="folder", folder=str(folder)) == {"cat/0.png": "cat"}


def test_a_name_that_is_not_utf8_is_named(photos: Callable[..., Path]) -> None:
    folder = photos(a=1)
    (folder / "a" / "0.png").rename(folder / "a" / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(LookalikeError, match=r"the name 'a/caf\\udce9\.png' is not UTF-8; rename the file"):
        listed(dataset="folder", folder=str(folder))


def caltech_like(
    path: Path, names: list[str], inner: str = "caltech-101/101_ObjectCategories.tar.gz"
) -> dict[str, str]:
    """Write an archive in the official layout; returns url and checksum."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        for seed, name in enumerate(names):
            jpeg = io.BytesIO()
            picture(seed).save(jpeg, "JPEG")
            info = tarfile.TarInfo(name)
            info.size = len(jpeg.getvalue())
            tar.addfile(info, io.BytesIO(jpeg.getvalue()))
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("__MACOSX/caltech-101/._101_ObjectCategories.tar.gz", b"resource fork")
        zipped.writestr(inner, tarred.getvalue())
    return {"url": path.as_uri(), "checksum": f"sha256:{sha256(path.read_bytes()).hexdigest()}"}


def test_caltech101_is_read_from_the_nested_archive(tmp_path: Path) -> None:
    top = "101_ObjectCategories"
    names = [f"{top}/ant/image_0001.jpg", f"{top}/ant/image_0002.jpg", f"{top}/BACKGROUND_Google/image_0001.jpg",
             f"{top}/ant/tmp", f"{top}/README.jpg"]  # fmt: skip
    source = caltech_like(tmp_path / "c.zip", names)
    assert listed(dataset="caltech101", **source) == {"ant/image_0001.jpg": "ant", "ant/image_0002.jpg": "ant"}
    assert len(listed(dataset="caltech101", **source, exclude=[])) == 3
    assert source["checksum"] in registry.origin(settings(dataset="caltech101", **source))


def test_a_mirror_needs_a_checksum(tmp_path: Path) -> None:
    source = caltech_like(tmp_path / "c.zip", [])
    with pytest.raises(LookalikeError, match=r"download\.checksum is empty .*md5:3138e1922a9193bfa496528edbbc45d0"):
        listed(dataset="caltech101", url=source["url"])


def test_another_archive_is_named(tmp_path: Path) -> None:
    source = caltech_like(tmp_path / "c.zip", [], inner="other.tar.gz")
    with pytest.raises(LookalikeError, match=r"expected one 101_ObjectCategories\.tar\.gz in the zip, found 0"):
        listed(dataset="caltech101", **source)
    path = tmp_path / "d.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(LookalikeError, match="not a readable zip archive"):
        listed(dataset="caltech101", url=path.as_uri(), checksum=f"sha256:{sha256(b'not a zip').hexdigest()}")


def test_an_archive_that_climbs_out_is_refused(tmp_path: Path) -> None:
    source = caltech_like(tmp_path / "c.zip", ["101_ObjectCategories/../../evil.jpg"])
    with pytest.raises(LookalikeError, match="refusing the archive"):
        listed(dataset="caltech101", **source)
