"""The sides of benchmarks/index/run.py: each builds an index file of unit vectors, opens it, and answers one query.

A method's `settings` say all that decides its file. Another kind of ours is a line in `all_methods`.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lookalike.base.errors import LookalikeError
from lookalike.index import build as indexes
from lookalike.index import files as index_files
from lookalike.index.base import Storage
from lookalike.index.ivf import CODES, PER_LIST
from lookalike.index.ivf import Settings as IvfSettings
from lookalike.refinement.faiss_setup import faiss

EF = (10, 16, 25, 40, 63, 100, 160, 250, 400, 800)  # candidates of a graph search
PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # lists of an inverted file that are read
EF_CONSTRUCTION = 200
TARGET = 0.99  # recall that ours tune themselves to
STORAGES: tuple[Storage, ...] = ("float32", "float16", "int8")
AS_TUNED = 0  # in a sweep: leave the knob as the file has it; a method without a knob has this only
Ask = Callable[[np.ndarray], np.ndarray]  # float32 (1, d) -> int64 (k,), best first, -1 where fewer were found


class Opened(Protocol):
    """An index that answers."""

    def ask(self, effort: int, k: int) -> Ask:
        """A search for k rows that looks at `effort` candidates, or lists."""


class Method(Protocol):
    """A library's way. What is built is one file."""

    @property
    def name(self) -> str:
        """As the tables show it."""

    @property
    def library(self) -> str:
        """Whose."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the file."""

    @property
    def sweep(self) -> tuple[int, ...]:
        """Efforts that are tried."""

    @property
    def threads(self) -> int:
        """That build."""

    def build(self, rows: np.ndarray, path: Path) -> str:
        """Index float32 (N, d), and say what the method chose by itself."""

    def open(self, path: Path) -> Opened:
        """Read the file into memory."""


@dataclass(frozen=True)
class Ours:
    """Our kinds, built, tuned to TARGET and asked through the library."""

    design: indexes.Design
    threads: int = 1
    library = "ours"

    @property
    def name(self) -> str:
        """Kind and storage."""
        links = f", {2 * self.design.neighbors} links" if self.design.neighbors else ""
        code = f"{self.design.code_bytes} bytes" if self.design.code_bytes else self.design.storage
        return f"ours: {self.design.kind} {code}{links}"

    @property
    def settings(self) -> dict[str, Any]:
        """The design, what it is tuned to, and FAISS's version."""
        design = self.design.stated()
        return design | ({"target": TARGET} if self.sweep[1:] else {}) | {"version": faiss.__version__}

    @property
    def sweep(self) -> tuple[int, ...]:
        """Its own choice first."""
        if self.design.lists:
            return (AS_TUNED, *(probes for probes in PROBES if probes <= self.design.lists // 2))
        return (AS_TUNED, *EF) if self.design.neighbors else (AS_TUNED,)

    def build(self, rows: np.ndarray, path: Path) -> str:
        """One thread: the same input gives the same bytes. Tuned on images that are held out of it for a while."""
        held = indexes.draw(len(rows), seed=0)
        sample = indexes.Sample.of(rows, held, rows[held])
        tuned = indexes.build_and_tune(rows, self.design, sample, TARGET, self.threads)
        tuned.index.save(path)
        return f"effort {tuned.index.design.effort}, recall {tuned.recall:.4f} on its sample"

    def open(self, path: Path, mapped: bool = True) -> "OpenedOurs":
        """Memory-mapped, as a search opens it, or read whole."""
        index = index_files.read(path, self.design, mapped=mapped)
        inner = inner_index(index.raw)
        effort = inner.hnsw.efSearch if self.design.neighbors else inner.nprobe if self.design.lists else 0
        return OpenedOurs(index.tuned(effort))


class OpenedOurs:
    """An index of the library's."""

    def __init__(self, index: indexes.Index) -> None:
        """Take it, tuned."""
        self.index = index

    def at(self, effort: int) -> indexes.Index:
        """The same, at another effort."""
        return self.index.tuned(effort) if effort else self.index

    def ask(self, effort: int, k: int) -> Ask:
        """See `Opened.ask`."""
        index = self.at(effort)
        return lambda query: np.asarray(index.search(query, k)[1][0])


class OpenedFaiss:
    """Any FAISS index; its knob is found by its type."""

    def __init__(self, index: faiss.Index) -> None:
        """Keep it, and what its knob was."""
        self.index, inner = index, inner_index(index)
        self._knob: tuple[Any, str] | None = None
        if isinstance(inner, faiss.IndexHNSW):
            self._knob = (inner.hnsw, "efSearch")
        elif isinstance(inner, faiss.IndexIVF):
            self._knob = (inner, "nprobe")
        self._tuned = getattr(*self._knob) if self._knob else AS_TUNED

    def ask(self, effort: int, k: int) -> Ask:
        """See `Opened.ask`."""
        if self._knob:
            setattr(*self._knob, effort or self._tuned)
        return lambda query: np.asarray(self.index.search(query, k)[1][0])


def inner_index(index: faiss.Index) -> faiss.Index:
    """What is below re-ranking and rotation."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return inner_index(index.base_index)
    if isinstance(index, faiss.IndexPreTransform | faiss.IndexIDMap):
        return inner_index(index.index)
    return index


@dataclass(frozen=True)
class HnswLib:
    """The reference implementation of HNSW. `links` are those of a node in the lowest layer, twice its M."""

    links: int
    threads: int = 2
    sweep = EF
    library = "hnswlib"

    @property
    def name(self) -> str:
        """With its links."""
        return f"hnswlib, {self.links} links"

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor takes."""
        return {"M": self.links // 2, "ef_construction": EF_CONSTRUCTION, "version": installed("hnswlib")}

    def build(self, rows: np.ndarray, path: Path) -> str:
        """See `Method.build`."""
        hnswlib = import_module("hnswlib")
        index = hnswlib.Index("ip", rows.shape[1])
        index.init_index(len(rows), M=self.links // 2, ef_construction=EF_CONSTRUCTION)
        index.add_items(rows, num_threads=self.threads)
        index.save_index(str(path))
        return ""

    def open(self, path: Path) -> Opened:
        """See `Method.open`. Its file does not say the dimension, but holds (d + 1 + 2 M + 1 label) words a row."""
        hnswlib = import_module("hnswlib")
        words = int(np.fromfile(path, np.uint64, 4)[3])  # bytes a row: offset, capacity, count, this
        index = hnswlib.Index("ip", (words - 4 * (self.links + 1) - 8) // 4)
        index.load_index(str(path))
        index.set_num_threads(1)

        class Wrapped:
            def ask(self, effort: int, k: int) -> Ask:
                index.set_ef(effort)
                return lambda query: np.asarray(index.knn_query(query, k, num_threads=1)[0][0], np.int64)

        return Wrapped()


@dataclass(frozen=True)
class USearch:
    """Unum's HNSW, with vectors stored at a precision. Its connectivity is M, its lowest layer's is twice that."""

    links: int
    dtype: str
    threads: int = 2
    sweep = EF
    library = "usearch"

    @property
    def name(self) -> str:
        """With its precision and links."""
        return f"usearch {self.dtype}, {self.links} links"

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor takes."""
        return {"connectivity": self.links // 2, "dtype": self.dtype, "expansion_add": EF_CONSTRUCTION,
                "version": installed("usearch")}  # fmt: skip

    def build(self, rows: np.ndarray, path: Path) -> str:
        """See `Method.build`."""
        index = import_module("usearch.index").Index(
            ndim=rows.shape[1],
            metric="ip",
            dtype=self.dtype,
            connectivity=self.links // 2,
            expansion_add=EF_CONSTRUCTION,
        )
        index.add(np.arange(len(rows)), rows, threads=self.threads)
        index.save(str(path))
        return ""

    def open(self, path: Path) -> Opened:
        """See `Method.open`."""
        index = import_module("usearch.index").Index.restore(str(path))
        if index is None:
            raise LookalikeError(f"{path} cannot be read by usearch; remove it, and it is built anew")

        class Wrapped:
            def ask(self, effort: int, k: int) -> Ask:
                index.expansion_search = effort
                return lambda query: np.asarray(index.search(query[0], k, threads=1).keys, np.int64)

        return Wrapped()


@dataclass(frozen=True)
class AutoFaiss:
    """What autofaiss chooses and tunes by itself, in the environment of another Python: it needs numpy below 2."""

    python: Path
    threads: int = 2
    sweep: tuple[int, ...] = (AS_TUNED, 1, 2, 4, *EF)  # its choice may be an inverted file
    library = "autofaiss"

    @property
    def name(self) -> str:
        """Its name."""
        return "autofaiss, as it chooses"

    @property
    def settings(self) -> dict[str, Any]:
        """The defaults of its version."""
        code = "from importlib.metadata import version as v; print(v('autofaiss'), 'faiss', v('faiss-cpu'), end='')"
        try:
            asked = subprocess.run([self.python, "-c", code], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise LookalikeError(
                f"--autofaiss-python {self.python} has no autofaiss ({error}); "
                "python -m venv ENV && ENV/bin/pip install autofaiss 'pyarrow<19'"
            ) from None
        return {"version": asked.stdout}

    def build(self, rows: np.ndarray, path: Path) -> str:
        """See `Method.build`."""
        code = (
            "import sys, numpy; from autofaiss import build_index; path, cores = sys.argv[1:]; "
            "build_index(numpy.load(path + '.npy'), path, path + '.infos', metric_type='ip', nb_cores=int(cores))"
        )
        files = [Path(f"{path}{suffix}") for suffix in (".npy", ".infos")]
        np.save(files[0], rows)
        try:
            subprocess.run([self.python, "-c", code, path, str(self.threads)], check=True, stdout=sys.stderr)
            infos = json.loads(files[1].read_text(encoding="utf-8"))
            return f"{infos['index_key']}, {infos['index_param']}"
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def open(self, path: Path) -> Opened:
        """See `Method.open`: the file is FAISS's, its knob as tuned."""
        return OpenedFaiss(faiss.read_index(str(path)))


def all_methods(count: int, dim: int, links: list[int], autofaiss: Path | None) -> list[Method]:
    """Those for `count` rows of `dim`; a library that is not installed is left out, with a word."""
    design, lists = indexes.Design, IvfSettings(lists=0, code_bytes=dim // 2).lists_for(count)
    found: list[Method] = [Ours(design(kind="flat", storage="float32"))]
    found += [
        Ours(design(kind="hnsw", storage=storage, neighbors=each // 2, ef_construction=EF_CONSTRUCTION))
        for each in links
        for storage in STORAGES
    ]
    found += [Ours(design(kind="ivf", storage=storage, lists=lists)) for storage in STORAGES[1:]]
    if count >= CODES * PER_LIST:
        found.append(Ours(design(kind="ivfpq", storage="int8", lists=lists, code_bytes=dim // 2)))
    others = [HnswLib(each) for each in links] + [USearch(each, dtype) for each in links for dtype in ("f32", "f16")]
    for method in others:
        try:
            installed(method.library)
            found.append(method)
        except LookalikeError as error:
            print(f"{method.name} is left out: {error}", file=sys.stderr)
    return [*found, AutoFaiss(autofaiss)] if autofaiss else found


def installed(package: str) -> str:
    """The version of an optional package."""
    try:
        return version(package)
    except PackageNotFoundError:
        raise LookalikeError(f"{package} is not installed: pip install {package}") from None
