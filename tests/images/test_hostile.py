"""Pictures and archives made to do harm: each is taken or refused in a line, in little time and memory."""

import io
import json
import shutil
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from msgspec import to_builtins
from PIL import Image

from lookalike.api import guard
from lookalike.base.errors import LookalikeError
from lookalike.collection.collection import Gallery
from lookalike.images import decode
from lookalike.images.decode import ImageError
from proof.fuzz import targets
from tests.helpers import hostile
from tests.helpers.hostile import Outcome
from tests.helpers.hostile_archives import archives
from tests.helpers.hostile_pictures import ENCODINGS, MODES, encoded, flipped, in_mode, oriented, photo, pictures, saved
from tests.helpers.platforms import LINUX

MOST_MB = 256  # for a picture of at most 4 million pixels and 20 MB, or an archive


def judged(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How many were taken, and refused; fails for anything else."""
    found = list(outcomes)
    bad = [each for each in found if each.what not in ("taken", "refused") or each.mb > MOST_MB]
    assert not bad, "\n".join(map(str, bad[:20]))
    print("slowest:", max(found, key=lambda each: each.seconds), "\nlargest:", max(found, key=lambda each: each.mb))
    return Counter(each.what for each in found)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every hostile picture."""
    hostile.write(folder := tmp_path_factory.mktemp("pictures"), pictures())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("door", ["preprocess", "upload"])
@LINUX
def test_hostile_pictures(door: str, written: Path) -> None:
    counts = judged(hostile.opened(written, door))
    assert counts["taken"] >= 900 and counts["refused"] >= 2000, counts


@pytest.mark.slow
@LINUX
def test_hostile_archives(tmp_path: Path) -> None:
    hostile.write(tmp_path, archives())
    counts = judged(hostile.opened(tmp_path, "download"))
    assert counts["taken"] >= 60 and counts["refused"] >= 250, counts


@LINUX
def test_what_the_stage_unpacks_stays_in_its_folder(tmp_path: Path) -> None:
    hostile.write(tmp_path, archives(kinds=("climbing", "special", "strange")))
    counts = judged(hostile.opened(tmp_path, "unpack"))
    assert counts["taken"] >= 5 and counts["refused"] >= 50, counts


def test_the_corpus_is_the_same_for_a_seed() -> None:
    first, again, other = ([*flipped(seed)] for seed in (0, 0, 1))
    assert first == again
    assert first != other


@LINUX
def test_a_child_that_dies_is_noticed(tmp_path: Path) -> None:
    """The judge itself: a file that kills the process, one that takes for ever, one that breaks our code."""
    hostile.write(tmp_path, [("1-crash", b""), ("2-hang", b""), ("3-defect", b""), ("4-fine", b"")])
    assert [each.what for each in hostile.opened(tmp_path, "trial", 0.5)] == ["crash", "hang", "defect", "taken"]


# --- what is taken is right -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_the_picture_it_was(mode: str) -> None:
    """Lossless formats give the very pixels, transparency laid on white; floating-point pixels have no range."""
    image = in_mode(mode)
    if mode == "F":
        with pytest.raises(ImageError, match="no defined range"):
            decode.decode(saved(image, "TIFF"), 10_000)
        return
    wanted = photo(0)
    tolerance = {"P": 40, "PA": 40, "LAB": 12, "YCbCr": 6, "HSV": 8}.get(mode, 1)  # of 255: what the mode itself loses
    if mode in ("1", "L", "I", "I;16", "I;16B", "LA"):
        wanted = wanted.convert("1" if mode == "1" else "L").convert("RGB")
    if mode in ("LA", "PA", "RGBA"):
        alpha = np.asarray(photo(1).convert("L"))[..., None] / 255
        wanted = Image.fromarray((np.asarray(wanted) * alpha + 255 * (1 - alpha)).round().astype(np.uint8))
    kind, options = ("WEBP", {"lossless": True}) if mode == "HSV" else ("TIFF", {})
    found = np.asarray(decode.decode(saved(image, kind, **options), 10_000)).astype(int)
    assert np.abs(found - np.asarray(wanted)).mean() <= tolerance
    assert np.abs(found - np.asarray(wanted)).max() <= 6 * tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("TIFF", {})], ids=lambda kind: kind
)
def test_every_orientation_is_undone_in_every_format(kind: str, options: dict[str, object], orientation: int) -> None:
    upright = photo(0, 64, 48)
    found = decode.decode(oriented(kind, orientation, **options), 10_000)
    assert found.size == upright.size
    assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).mean() <= (6 if kind == "JPEG" else 0)


def test_an_orientation_in_xmp_is_undone() -> None:
    turned, upright = photo(0, 64, 48).transpose(Image.Transpose.ROTATE_90), photo(0, 64, 48)
    content = saved(turned, "WEBP", lossless=True, xmp=b'<x tiff:Orientation="6"/>')
    assert np.array_equal(np.asarray(decode.decode(content, 10_000)), np.asarray(upright))


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_undamaged_pictures_are_taken_at_both_doors(name: str) -> None:
    stored = decode.decode(encoded(name), 10_000)
    assert np.abs(np.asarray(stored).astype(int) - np.asarray(photo(0))).mean() < 25  # of 255, for 16 colours
    assert np.array_equal(np.asarray(guard.decode(encoded(name), 10_000)), np.asarray(stored))


# --- an index whose trace vouches for hostile files -------------------------------------------------------------------


def npy(header: bytes, content: bytes = b"") -> bytes:
    """An .npy file of version 1."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def archive_of_arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, np.zeros(3))
    return file.getvalue()


ARRAYS = ("image_paths.npy", "labels.npy", "mean.npy", "components.npy")
BROKEN = {
    "open bracket": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (8,"),  # found by fuzzing: TokenError
    "deep": npy(b"(" * 9000),
    "long": npy(b" " * 60_000),
    "huge": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,)}"),
    "negative": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
    "objects": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (12,)}", b"cos\nsystem\n(S'false'\ntR."),
    "no axis": npy(b"{'descr': '<U6', 'fortran_order': False, 'shape': ()}", bytes(24)),
    "another kind": npy(b"{'descr': '|V4', 'fortran_order': False, 'shape': (12,)}", bytes(48)),
    "version": b"\x93NUMPY\x09\0",
    "archive": archive_of_arrays(),
    "nothing": b"",
}
EMBEDDING = json.dumps(to_builtins(targets.EMBEDDING))
WRONG = [(name, content) for name in ARRAYS for content in BROKEN.values()] + [
    (name, content) for name in ("embedding.json", "index.json")
    for content in (b"", b"[" * 100_000, b'{"a":' * 100_000, b"null", b"3", b"{}", b"\xff", b'{"network": []}',
                    b'{"plan": 3}')
] + [
    ("embedding.json", EMBEDDING.replace(old, new).encode())
    for old, new in ((': 64', ': "64"'), (": 64", ": 1000000000"), (": 64", ": 64.5"), ('"dim": 8', '"dim": 0'),
                     ('"fit"', '"fti"'), ('"layer": ""', '"layer": []'))
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), WRONG, ids=lambda value: repr(value)[:40])
def test_a_hostile_file_of_an_index_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    index = tmp_path / "index"
    shutil.copytree(targets.built(), index)
    (index / name).write_bytes(content)
    targets.vouch(index)
    with pytest.raises(LookalikeError) as caught:
        Gallery(index, tmp_path / "changes")
    assert "\n" not in str(caught.value) and str(index) in str(caught.value)
