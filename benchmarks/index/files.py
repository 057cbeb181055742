"""The index files of benchmarks/index/run.py: built once, in a process of their own, and opened in others.

A file is kept under a name made of the vectors and of the method's settings, with the seconds and the peak memory of
building beside it: a million takes half an hour to link, and is linked once.
"""

import hashlib
import json
import multiprocessing
import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.index.methods import AS_TUNED, Method, Ours
from lookalike.base import script
from lookalike.base.files import file_digest, new_file, write_json
from lookalike.refinement.faiss_setup import faiss


@dataclass(frozen=True)
class Built:
    """An index file, and what it took."""

    path: Path
    bytes: int
    seconds: float
    threads: int
    peak_mb: float  # of the building process, the vectors and the libraries included
    settings: dict[str, Any]
    chosen: str = ""  # by the method itself


def built(method: Method, vectors: Path, count: int, work: Path) -> Built:
    """The file of a method over the first rows of an .npy file; built, in a process of its own, if it is not there."""
    named = json.dumps([file_digest(vectors), count, method.library, method.settings, method.threads], sort_keys=True)
    slug = re.sub(r"[^a-z0-9]+", "-", method.name.lower())
    path = work / f"{count}-{slug}-{hashlib.sha256(named.encode()).hexdigest()[:12]}.index"
    record = path.with_suffix(".json")
    if not record.exists():
        script.notice("index", f"building {method.name} over {count} rows, threads: {method.threads}")
        work.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            seconds, peak, chosen = apart(_build, method, vectors, count, partial)
        took = {"seconds": round(seconds, 2), "peak_mb": round(peak)}
        write_json(record, took | {"settings": method.settings, "chosen": chosen})
    content = json.loads(record.read_text(encoding="utf-8"))
    return Built(path, path.stat().st_size, threads=method.threads, **content)


def _build(method: Method, vectors: Path, count: int, path: Path) -> tuple[float, float, str]:
    faiss.omp_set_num_threads(method.threads)
    rows = first_rows(vectors, count)  # read before the clock runs
    with threadpool_limits(method.threads):
        start = time.perf_counter()
        chosen = method.build(rows, path)
        seconds = time.perf_counter() - start
    peak = max(memory_mb("VmHWM"), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    return seconds, peak, chosen


def opening(method: Ours, path: Path, query: np.ndarray, mapped: bool) -> tuple[float, float]:
    """Seconds from nothing to the first answer, and the memory of its own that the process holds more then, in MB."""
    faiss.omp_set_num_threads(1)
    before, start = memory_mb("RssAnon"), time.perf_counter()
    opened = method.open(path, mapped)
    opened.ask(AS_TUNED, 10)(query)
    return time.perf_counter() - start, memory_mb("RssAnon") - before


def apart(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_mb(line: str) -> float:
    """A figure of /proc/self/status: RssAnon of its own now, VmHWM at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(rf"{line}:\s+(\d+)", status)[0]) / 1024


def first_rows(vectors: Path, count: int) -> np.ndarray:
    """The first rows of an .npy file, in memory: float32, (count, d)."""
    return np.array(np.load(vectors, mmap_mode="r")[:count])
