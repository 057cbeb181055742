"""What proof/fuzz/run.py feeds: each target takes bytes from a stranger and opens them as the library does.

A target raises only what would be a defect: any exception but the documented refusal, or an answer of another shape.
`seeds` are what it is meant to open; bytes are made up from them.
"""

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from PIL import Image

from lookalike.api import guard
from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base import files, params
from lookalike.base.errors import LookalikeError
from lookalike.base.files import write_json
from lookalike.base.vectors import unit_length
from lookalike.collection import verify
from lookalike.collection.collection import Gallery
from lookalike.collection.journal import FILE, Event, Journal
from lookalike.datasets import archive as tar_archive
from lookalike.datasets import folder
from lookalike.datasets.base import Settings
from lookalike.images import decode as images
from lookalike.images.decode import FORMATS, ImageError
from lookalike.index import build
from lookalike.index import files as index_files

ROOT = Path(__file__).resolve().parents[2]
PIXELS = 1_000_000
COUNT, DIM, PCA = 12, 8, 4
EMBEDDING = Embedding(Network("ResNet50", "random", "", "avg", DIM, 1, "0" * 64), 64, "pad")
NAMES = ("embedding.json", "index.json", "image_paths.npy", "labels.npy", "mean.npy", "components.npy")


class DefectError(Exception):
    """Something was accepted that is not what it should be, or refused without saying so in a line."""


@dataclass(frozen=True)
class Target:
    """A way in."""

    feed: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


def refused(error: Exception) -> None:
    """Check a refusal."""
    if "\n" in str(error) or not str(error):
        raise DefectError(f"not one line: {error!r}")


@cache
def workplace() -> Path:
    """A folder of this process, in memory where there is one."""
    shared = Path("/dev/shm")  # noqa: S108  a fresh folder in it, and only for speed
    kept = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
    _kept.append(kept)
    return Path(kept.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []  # deleted when the process ends


# --- pictures and archives --------------------------------------------------------------------------------------------


def decode(content: bytes) -> None:
    """A picture of a data set, then the same one sent by a stranger."""
    try:
        pixels = images.fit(images.decode(content, PIXELS), 32, "pad")
        if pixels.shape != (32, 32, 3) or pixels.dtype != np.uint8:
            raise DefectError(f"{pixels.dtype} {pixels.shape}")
    except ImageError as error:
        refused(error)
    with suppress(guard.RefusedError):
        guard.decode(content, PIXELS)


def decode_seeds() -> Iterator[bytes]:
    """A small picture in every format and some of its modes."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in FORMATS:
        for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "LA", "I;16"):
            file = io.BytesIO()
            with suppress(OSError, ValueError, KeyError):  # not a mode of that format
                picture.convert(mode).save(file, kind, exif=exif)
                yield file.getvalue()
    others: list[tuple[str, dict[str, Any]]] = [("JPEG", {"progressive": True}), ("WEBP", {"lossless": True})]
    others += [("TIFF", {"compression": each}) for each in ("tiff_lzw", "packbits", "jpeg")]
    for kind, options in others:
        file = io.BytesIO()
        picture.convert("RGB").save(file, kind, **options)
        yield file.getvalue()


def archive(content: bytes) -> None:
    """A tar, packed as Caltech-101's is."""
    try:
        for path, inner in tar_archive.tar_files(io.BytesIO(gzip.compress(content, 1)), "x.tar.gz"):
            if path.is_absolute() or ".." in path.parts or not isinstance(inner, bytes):
                raise DefectError(str(path))
    except LookalikeError as error:
        refused(error)


def archive_seeds() -> Iterator[bytes]:
    """One of each kind of member."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=form) as tar:
                for name in ("a/b.jpg", "ü" * 40 + ".jpg"):
                    info = tarfile.TarInfo(name)
                    info.type, info.size, info.linkname = kind, 3 if kind == tarfile.REGTYPE else 0, "a"
                    tar.addfile(info, io.BytesIO(b"abc"))
            yield file.getvalue()[:4096]


def labels_csv(content: bytes) -> None:
    """The table of labels beside one's own images."""
    here = workplace() / "photos"
    if not here.is_dir():
        (here / "a").mkdir(parents=True)
        for name in ("a/0.png", "a/1.png", "2.png"):
            (here / name).write_bytes(b"")
    (here / "labels.csv").write_bytes(content)
    settings = Settings(dataset="folder", folder=str(here), labels="labels.csv", url="", checksum="", exclude=[],
                        limit_per_class=0)  # fmt: skip
    try:
        for path in folder.labels_of(settings):
            if not (here / path).is_file():
                raise DefectError(path)
    except LookalikeError as error:
        refused(error)


def labels_csv_seeds() -> Iterator[bytes]:
    """Tables that are right, and that are almost."""
    plain = "path,label\na/0.png,red\n2.png,\n"
    quoted = '\ufeffpath, label\na/1.png,"red, round"\n'
    more = "label,path,more\r\nred,a/0.png,1\r\n"
    for text in (plain, quoted, more, "path,label\n../x.png,x\n", 'path,label\n"a/0.png,x\n'):
        yield text.encode()


# --- an index ---------------------------------------------------------------------------------------------------------


@cache
def built() -> Path:
    """A small index with its trace beside it, as the stage writes them."""
    here = workplace() / "index"
    features = unit_length(np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32))
    settings = params.load(ROOT / "params.yaml", "index", build.Settings)
    refine = replace(settings.refine, pca=PCA, augment=2, expand=2)
    settings = replace(settings, kind="flat", storage="float32", refine=refine)
    refinement, tuned, why = build.fit(features, settings)
    here.mkdir()
    paths = np.array([f"{row:02}.png" for row in range(COUNT)])
    index_files.save(tuned, why, refinement, settings, paths, np.array(["a", "b"] * (COUNT // 2)), here)
    EMBEDDING.save(here)
    vouch(here)
    return here


def vouch(here: Path) -> None:
    """Write the trace that says the folder is as it should be."""
    write_json(verify.trace_of(here), {"files": [files.digests(here)]})


def ask(here: Path, changes: Path) -> None:
    """Open an index and search it."""
    try:
        gallery = Gallery(here, changes)
        hits = gallery.search(np.ones((1, DIM), np.float32), 3)[0]
        gallery.similar("03.png", 2)
        gallery.state.labels()
    except LookalikeError as error:
        refused(error)
        return
    if len(hits) != 3 or not all(isinstance(hit.path, str) and isinstance(hit.label, str) for hit in hits):
        raise DefectError(f"{hits}")


def index(content: bytes) -> None:
    """A file of an index, vouched for by a trace that is as hostile; FAISS's own file only ever with its digest."""
    here = built()
    path = here / NAMES[content[0] % len(NAMES) if content else 0]
    before, said = path.read_bytes(), verify.trace_of(here).read_bytes()
    try:
        path.write_bytes(content[1:])
        vouch(here)
        ask(here, workplace() / "nothing")
    finally:
        path.write_bytes(before)
        verify.trace_of(here).write_bytes(said)


def index_seeds() -> Iterator[bytes]:
    """Each file as it is."""
    for number, name in enumerate(NAMES):
        yield bytes([number]) + (built() / name).read_bytes()


def trace(content: bytes) -> None:
    """The trace of an index: it is accepted only if it says of every file what it is."""
    here = built()
    path = verify.trace_of(here)
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        verify.verify(here)
        verify.has_digests(here)
    except LookalikeError as error:
        refused(error)
    else:
        if json.loads(content)["files"] != [files.digests(here)]:
            raise DefectError("a trace was believed that is not of these files")
    finally:
        path.write_bytes(before)


def trace_seeds() -> Iterator[bytes]:
    """The right one, and others."""
    yield verify.trace_of(built()).read_bytes()
    yield b'{"files": {"../x": "0"}}'


def journal(content: bytes) -> None:
    """The file of changes to an index."""
    here, changes = built(), workplace() / "changes"
    changes.mkdir(exist_ok=True)
    for path in changes.iterdir():
        path.unlink()
    (changes / FILE).write_bytes(content)
    ask(here, changes)


def journal_seeds() -> Iterator[bytes]:
    """One addition and one removal."""
    changes = workplace() / "seeds"
    gallery = Gallery(built(), changes)
    gallery.add("new.png", "a", sha256(b"x").hexdigest(), b"x", np.ones(DIM, np.float32), replace=False)
    gallery.remove(["02.png"])
    yield (changes / FILE).read_bytes()
    other = workplace() / "seeds of another index"
    with Journal(other).changing("0" * 64, EMBEDDING) as writer:
        writer.append(Event("03.png"))
    yield (other / FILE).read_bytes()


TARGETS = {
    "decode": Target(decode, decode_seeds),  # a picture: preprocess, a query, an upload
    "archive": Target(archive, archive_seeds),  # a tar of pictures
    "labels-csv": Target(labels_csv, labels_csv_seeds),  # download.labels
    "index": Target(index, index_seeds),  # embedding.json, index.json and the .npy files of an index
    "manifest": Target(trace, trace_seeds),  # the trace of an index, its digests
    "journal": Target(journal, journal_seeds),  # changes to an index
}
