"""How fast and how exact approximate search is, ours and others', on the same vectors in one run, on one thread.

    pip install hnswlib usearch                                     # both optional; without them those rows are missing
    python benchmarks/index/vectors.py V
    python benchmarks/index/run.py caltech caltech.json --work WORK --features data/features --processed data/processed
    python benchmarks/index/run.py vectors crops.json --work WORK --vectors V/gallery128.npy --queries V/queries128.npy
    python benchmarks/index/run.py vectors million.json --work WORK \
        --vectors V/million.npy --queries V/million_queries.npy
    python benchmarks/index/run.py report caltech.json crops.json million.json --plot docs/results/index.png

caltech   Features of a collection, split and refined as --params says, a query being a feature vector: what searching
          alone costs, what with the projection, and what with projection and query expansion, against scikit-learn's
          cosine and argsort over the features as they are.
vectors   Unit vectors from a file.
report    Tables and a plot from what the other two wrote.

A query is asked alone, through each library's Python. Each method is swept over its knob (candidates of a graph, lists
of an inverted file). Every operating point is timed --repeats times in turn with all others, so that noise hits all
alike, and a query's time is the least of its repeats; p50, p99 and queries a second (one over the mean) are over
queries. Slow methods are asked fewer queries, as the column says. recall@10 counts a hit whose cosine is at least the
exact tenth's less 1e-6. Files that were built are kept in --work, with what building took.

autofaiss pins numpy below 2, so it runs in an environment of its own, and its choice is read as the FAISS index it is:

    python -m venv ENV && ENV/bin/pip install autofaiss 'pyarrow<19'
    python benchmarks/index/run.py vectors ... --autofaiss-python ENV/bin/python
"""

import argparse
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's library, whatever is installed

from benchmarks import common
from benchmarks.index import report
from benchmarks.index.files import Built, apart, built, first_rows, opening
from benchmarks.index.methods import AS_TUNED, Ask, Method, Opened, OpenedOurs, Ours, all_methods
from benchmarks.index.report import ALONE, BRUTE_FORCE
from lookalike.base import params, script
from lookalike.base.files import write_json
from lookalike.base.machine import cores, cpu_name
from lookalike.base.script import progress_bar
from lookalike.base.vectors import unit_length
from lookalike.evaluation import protocol
from lookalike.index import build
from lookalike.index.searcher import Searcher
from lookalike.refinement.faiss_setup import faiss, matrix_products
from lookalike.refinement.refinement import Refinement

K = 10
TIED = 1e-6  # of cosine
WARM_UP = 5  # queries before the clock runs
FEWEST = 20  # queries that a slow method is asked
OPENINGS = 3  # the fastest counts
PROJECTED, EXPANDED = "with projection", "with projection and expansion"


@dataclass(frozen=True)
class Task:
    """Queries, and what their answers are compared with."""

    scope: str
    queries: np.ndarray  # float32 (Q, D), what is asked
    compared: np.ndarray  # float32 (Q, d), unit length, what is searched for in the end
    rows: np.ndarray  # float32 (N, d), unit length

    @cached_property
    def tenth(self) -> np.ndarray:
        """The cosine of each query's exact tenth: float64, (Q,)."""
        queries = self.compared.astype(np.float64)
        with matrix_products(cores()):
            exact = faiss.knn(self.compared, self.rows, K, metric=faiss.METRIC_INNER_PRODUCT)[1]  # (Q, K)
        return np.asarray(np.einsum("qkd,qd->qk", self.rows[exact], queries).min(axis=1))

    def recall(self, found: list[np.ndarray]) -> float:
        """Share of the exact nearest that the first queries found, per tied distance."""
        hits = 0
        for query, least, rows in zip(self.compared, self.tenth, found, strict=False):
            cosines = self.rows[np.unique(rows[rows >= 0])] @ query.astype(np.float64)
            hits += int((cosines >= least - TIED).sum())
        return hits / (len(found) * K)


@dataclass
class Point:
    """A method at an effort, and what was measured."""

    method: str
    effort: int
    ready: Callable[[], Ask]  # sets the knob
    task: Task
    best: np.ndarray = field(default_factory=lambda: np.zeros(0))  # seconds, (q,): the least so far
    found: list[np.ndarray] = field(default_factory=list)


def caltech(args: argparse.Namespace) -> dict[str, Any]:
    """Measure on a collection's features, with what a search does before it searches."""
    collection, images = common.load(args)
    settings = params.load(args.params, "protocol", protocol.Settings)
    split = protocol.split(collection.paths, collection.labels, images.sha256, settings)
    features, asked = (np.array(collection.features[rows]) for rows in (split.gallery, split.queries))
    refinement = Refinement.fit(features, params.load(args.params, "index", build.Settings).refine)
    rows, projected = refinement.gallery(features), refinement.project(asked)
    args.work.mkdir(parents=True, exist_ok=True)
    vectors = args.work / f"{args.result.stem}.npy"
    np.save(vectors, rows)
    files, opened = open_all(args, vectors, len(rows))

    def whole(opened: OpenedOurs, effort: int, expanding: bool) -> Ask:
        index = opened.at(effort)
        if expanding:
            searcher = Searcher(refinement, index)
            return lambda query: np.asarray(searcher.search(query, K)[1][0])
        return lambda query: np.asarray(index.search(refinement.project(query), K)[1][0])

    exact = build.build(rows, build.Design(kind="flat", storage="float32"))
    expanded = refinement.expand(projected, exact.search, exact.vectors)
    tasks = [Task(PROJECTED, asked, projected, rows), Task(EXPANDED, asked, expanded, rows)]
    points = swept(opened, Task(ALONE, projected, projected, rows))
    points += [
        Point(method.name, effort, partial(whole, index, effort, task.scope == EXPANDED), task)
        for method, index in opened
        if isinstance(method, Ours) and isinstance(index, OpenedOurs)
        for effort in method.sweep
        for task in tasks
    ]
    raw = Task(f"{features.shape[1]} dimensions, unrefined", asked, unit_length(asked), unit_length(features))
    points.append(Point(BRUTE_FORCE, AS_TUNED, lambda: brute_force(features), raw))
    return result(args, points, files, opened, projected[:1])


def vectors(args: argparse.Namespace) -> dict[str, Any]:
    """Measure on unit vectors from a file."""
    asked = np.load(args.queries)
    count = min(args.limit or len(np.load(args.vectors, mmap_mode="r")), len(np.load(args.vectors, mmap_mode="r")))
    files, opened = open_all(args, args.vectors, count)
    rows = first_rows(args.vectors, count)
    task = Task(ALONE, asked, asked, rows)
    points = [*swept(opened, task), Point(BRUTE_FORCE, AS_TUNED, lambda: brute_force(rows), task)]
    return result(args, points, files, opened, asked[:1])


def open_all(
    args: argparse.Namespace, vectors: Path, count: int
) -> tuple[dict[str, Built], list[tuple[Method, Opened]]]:
    """Every method's file, built if need be, and opened."""
    dim = np.load(vectors, mmap_mode="r").shape[1]
    methods = [method for method in all_methods(count, dim, args.links, args.autofaiss_python)
               if re.search(args.methods, method.name)]  # fmt: skip
    files = {method.name: built(method, vectors, count, args.work) for method in methods}
    return files, [(method, method.open(files[method.name].path)) for method in methods]


def swept(opened: list[tuple[Method, Opened]], task: Task) -> list[Point]:
    """Every method at each of its efforts."""
    return [
        Point(method.name, effort, partial(index.ask, effort, K), task)
        for method, index in opened
        for effort in method.sweep
    ]


def brute_force(rows: np.ndarray) -> Ask:
    """As in a notebook."""
    return lambda query: np.asarray(np.argsort(-cosine_similarity(query, rows)[0])[:K])


def result(
    args: argparse.Namespace,
    points: list[Point],
    files: dict[str, Built],
    opened: list[tuple[Method, Opened]],
    query: np.ndarray,
) -> dict[str, Any]:
    """Time all points, and the opening of our files; what the report reads."""
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        measure(points, args.repeats, args.seconds)
    ours = [method for method, _ in opened if isinstance(method, Ours)]
    first = {}
    for name, mapped in (("read whole", False), ("memory-mapped", True)):
        for method in ours:
            tries = [apart(opening, method, files[method.name].path, query, mapped) for _ in range(OPENINGS)]
            first[f"{method.name}, {name}"] = {"ms": min(tries)[0] * 1000, "mb": min(tries)[1]}
    task = points[0].task
    return {
        "rows": len(task.rows),
        "dim": task.rows.shape[1],
        "queries": len(task.queries),
        "files": {name: asdict(file) | {"path": file.path.name} for name, file in files.items()},
        "points": [measured(point) for point in points],
        "opening": first,
    }


def measure(points: list[Point], repeats: int, seconds: float) -> None:
    """Time every query alone, the points in turn, and keep each query's least time.

    seconds  that a point may take a turn; a slow one is asked its first queries only, at least a few.
    """
    asked: dict[int, list[np.ndarray]] = {}
    for _ in progress(repeats, len(points)):
        for number, point in enumerate(points):
            ask = point.ready()
            if number not in asked:
                queries = [np.ascontiguousarray(query[np.newaxis]) for query in point.task.queries]
                start = time.perf_counter()
                for query in queries[:WARM_UP]:
                    ask(query)
                each = (time.perf_counter() - start) / WARM_UP
                asked[number] = queries[: max(FEWEST, int(seconds / each))]
                point.best = np.full(len(asked[number]), np.inf)
            for query in asked[number][:WARM_UP]:
                ask(query)
            point.found = []
            for place, query in enumerate(asked[number]):
                start_ns = time.perf_counter_ns()
                found = ask(query)
                point.best[place] = min(point.best[place], (time.perf_counter_ns() - start_ns) / 1e9)
                point.found.append(found)


def progress(repeats: int, points: int) -> Iterator[int]:
    """Count repeats, with a bar."""
    with progress_bar("index", repeats, "turn") as bar:
        for number in range(repeats):
            yield number
            bar.update()


def measured(point: Point) -> dict[str, Any]:
    """A point's figures."""
    return {
        "method": point.method,
        "scope": point.task.scope,
        "effort": point.effort,
        "recall": round(point.task.recall(point.found), 5),
        "p50_us": round(float(np.percentile(point.best, 50)) * 1e6, 1),
        "p99_us": round(float(np.percentile(point.best, 99)) * 1e6, 1),
        "mean_us": round(float(point.best.mean()) * 1e6, 1),
        "queries": len(point.best),
    }


def versions() -> dict[str, str]:
    """Of what computes; a library that is not there is left out."""
    found = {"python": platform.python_version()}
    for name in ("faiss-cpu", "hnswlib", "usearch", "scikit-learn", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main() -> None:
    """Read the arguments, measure or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for function in (caltech, vectors):
        command = commands.add_parser(function.__name__, help=(function.__doc__ or "").rstrip("."))
        command.set_defaults(function=function)
        command.add_argument("result", type=Path, help="JSON file to write")
        command.add_argument("--work", type=Path, required=True, help="folder that keeps what was built")
        command.add_argument("--methods", default="", metavar="REGEX", help="only those whose name it finds")
        command.add_argument("--links", type=int, nargs="+", default=[32], help="of a node in a graph's lowest layer "
                             "(default: 32)")  # fmt: skip
        command.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
        command.add_argument("--seconds", type=float, default=5, help="of a point's turn (default: %(default)s)")
        command.add_argument("--autofaiss-python", type=Path, help="of an environment with autofaiss; left out without")
        if function is caltech:
            common.add_places(command)
        else:
            command.add_argument("--vectors", type=Path, required=True, help="float32 (N, d), unit length")
            command.add_argument("--queries", type=Path, required=True, help="float32 (Q, d), unit length")
            command.add_argument("--limit", type=int, default=0, help="only the first rows (default: all)")
    command = commands.add_parser("report", help="Tables and a plot of results")
    command.set_defaults(function=None)
    command.add_argument("results", type=Path, nargs="+", help="what the other commands wrote")
    command.add_argument("--plot", type=Path, help="PNG file to write")
    args = parser.parse_args()
    if args.function:
        header = {
            "command": " ".join(["python", *sys.argv]),
            "machine": f"{cpu_name()}, {cores()} cores, 1 thread for every search",
            "versions": versions(),
        }
        write_json(args.result, header | {"set": args.command, **args.function(args)})
    report.report([args.result] if args.function else args.results, None if args.function else args.plot)


if __name__ == "__main__":
    script.run("index", main)
