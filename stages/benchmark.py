"""Measure the search latency of the index against brute force, in one run, on the same queries.

Reads   data/features                   embeddings, paths and labels
        data/index                      the settings of the index
        data/processed                  the files' hashes, which decide the split
Writes  metrics/latency.json            a list of one object: p50, p95, p99 in ms of one query at a time; recall@10;
                                        memory in bytes; machine
        plots/latency.csv               percentile, and the milliseconds of brute_force, flat and the index
        plots/operating_curve.csv       method, effort, recall, milliseconds: the price of a higher recall
        plots/operating_curve.png       the same as a plot

brute_force is the usual notebook code: scikit-learn's cosine_similarity of one query with all features, numpy.argsort.
The other methods start from the same feature vector and do a whole search, including projection and query expansion.
flat compares the refined query with every refined vector, exactly. The index has the kind and settings of data/index;
it is timed, and its recall@10 is measured against flat. It is called flat_float16 or flat_int8 if it compares all
vectors, but rounded ones. Queries are those of section protocol; the gallery is refined and indexed again in memory.
The operating curve leaves out projection and expansion; if the index is flat, it also shows an hnsw graph.

Timings differ from run to run; compare methods within a run, never two runs.

    python stages/benchmark.py data/features data/index data/processed metrics/latency.json plots
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from msgspec import Meta
from sklearn.metrics.pairwise import cosine_similarity
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.artifacts.arrays import check_same_images, load_collection, load_images
from lookalike.base import params, script
from lookalike.base.files import new_files, write_json
from lookalike.base.machine import cores, cpu_name
from lookalike.base.script import progress_bar
from lookalike.evaluation import protocol
from lookalike.index import build, files
from lookalike.index.searcher import Searcher
from lookalike.refinement.faiss_setup import faiss
from lookalike.refinement.refinement import Refinement
from lookalike.report import plots

K = 10  # hits per query
FLAT = build.Design(kind="flat", storage="float32")
GRAPH = build.Design(kind="hnsw", storage="float16", neighbors=16, ef_construction=200, effort=K)
MOST_EFFORT = 1024  # largest efSearch on the operating curve
WARM_UP = 5  # queries before the measurement: first calls touch memory and start threads


class Settings(params.Section, frozen=True):
    """Section `benchmark` of params.yaml."""

    queries: Annotated[int, Meta(ge=1)]
    repeats: Annotated[int, Meta(ge=1)]
    threads: Annotated[int, Meta(ge=1, le=1024)]


def main() -> None:
    """Read the arguments, then time the methods in turn."""
    parser = script.parser(__doc__)
    parser.add_argument("features", type=Path, help="output folder of extract")
    parser.add_argument("index", type=Path, help="output folder of index")
    parser.add_argument("processed", type=Path, help="output folder of preprocess")
    parser.add_argument("metrics", type=Path, help="JSON file to write")
    parser.add_argument("plots", type=Path, help="folder to write tables and a figure into")
    args = parser.parse_args()
    settings = params.load(args.params, "benchmark", Settings)
    protocol_settings = params.load(args.params, "protocol", protocol.Settings)
    collection, images = load_collection(args.features), load_images(args.processed)
    check_same_images(images, collection)
    split = protocol.split(collection.paths, collection.labels, images.sha256, protocol_settings)
    features = np.array(collection.features[split.gallery])  # in memory, as in a notebook
    count = len(split.queries)
    chosen = np.unique(np.linspace(0, count - 1, min(settings.queries, count)).round().astype(int))  # evenly spread
    queries = np.array(collection.features[split.queries[chosen]])
    plan = files.load_plan(args.index)
    if (split.exclude >= 0).any():
        script.notice("benchmark", "queries find themselves in the gallery (leave-one-out); timings are not affected")
    refinement = Refinement.fit(features, plan.refine)
    gallery = refinement.gallery(features)
    index, exact = plan.build(gallery), build.build(gallery, FLAT)
    rounded = index.kind == "flat" and index.design.storage != FLAT.storage
    name = f"flat_{index.design.storage}" if rounded else index.kind
    k = min(K, len(features))
    report: dict[str, Any] = {"queries": len(queries), "gallery": len(features), "dim": features.shape[1]}

    def brute_force(query: np.ndarray) -> np.ndarray:
        return np.asarray(np.argsort(-cosine_similarity(query[np.newaxis], features)[0])[:k])

    def by(chosen: build.Index) -> Callable[[np.ndarray], np.ndarray]:
        searcher = Searcher(refinement, chosen)
        return lambda query: np.asarray(searcher.search(query[np.newaxis], k)[1][0])

    methods = {"brute_force": brute_force, "flat": by(exact), name: by(index)}
    faiss.omp_set_num_threads(settings.threads)
    with threadpool_limits(settings.threads):
        seconds, found = measure(methods, queries, settings.repeats)
        shown = {"flat": exact, name: index}
        if index.kind == "flat":
            shown[GRAPH.kind] = build.build(gallery, GRAPH)
        curve = operating_curve(shown, refinement.project(queries), k, settings.repeats)
    for method, memory in {
        "brute_force": features.nbytes,
        "flat": exact.nbytes,
        name: index.nbytes,
    }.items():
        report[method] = percentiles(seconds[method]) | {"bytes": memory}
    if len(queries):
        pairs = zip(found["flat"], found[name], strict=True)
        recall = float(np.mean([np.isin(wanted, got).mean() for wanted, got in pairs]))
        report[name][f"recall@{k}"] = round(recall, 6)
        report["speedup_p50"] = round(float(np.median(seconds["brute_force"]) / np.median(seconds[name])), 1)
        script.notice(
            "benchmark",
            f"{name} is {report['speedup_p50']} times as fast as brute force, "
            f"recall@{k} {recall:.4f} against exact search of the same vectors",
        )
    report["machine"] = {"threads": settings.threads, "cores": cores(), "cpu": cpu_name()}
    write_json(args.metrics, [report])  # a list, because DVC would read each number of an object as a metric
    with new_files(args.plots, "benchmark") as folder:
        for file, content in {"latency": table(seconds, name), "operating_curve": curve}.items():
            content.to_csv(folder / f"{file}.csv", index=False, lineterminator="\n")
        plots.operating_curve(curve, len(features), folder / "operating_curve.png")


def operating_curve(chosen: dict[str, build.Index], queries: np.ndarray, k: int, repeats: int) -> pd.DataFrame:
    """Return a table of method, effort, recall and p50_ms of the search alone, with the effort doubled step by step.

    queries  float32, (Q, d), projected.

    Recall@k is the share of the first method's hits that a method finds.
    """
    ways: dict[str, build.Index] = {}
    for method, index in chosen.items():
        most = index.design.lists or (min(MOST_EFFORT, len(index)) if index.kind == "hnsw" else 1)
        efforts = [2**power for power in range(most.bit_length())]
        efforts = [effort for effort in efforts if effort >= K] if index.kind == "hnsw" else efforts
        ways |= {f"{method} {effort}": index.tuned(effort) for effort in efforts or [most]}

    def by(index: build.Index) -> Callable[[np.ndarray], np.ndarray]:
        return lambda query: np.asarray(index.search(query[np.newaxis], k)[1][0])

    seconds, found = measure({name: by(index) for name, index in ways.items()}, queries, repeats)
    exact = found[next(iter(ways))] if ways else []
    rows = []
    for name, index in ways.items() if len(queries) else ():
        recall = np.mean([np.isin(wanted, got).mean() for wanted, got in zip(exact, found[name], strict=True)])
        method, effort = name.split()[0], index.design.effort
        rows.append((method, effort, round(float(recall), 6), percentiles(seconds[name])["p50_ms"]))
    return pd.DataFrame(rows, columns=["method", "effort", "recall", "p50_ms"])


def measure(
    methods: dict[str, Callable[[np.ndarray], np.ndarray]], queries: np.ndarray, repeats: int
) -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    """Time each method on each query, one at a time; methods take turns, so that noise affects all alike.

    queries  float32, (Q, D).

    Returns seconds, float64 (repeats * Q,), and the rows found, both by method.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    found: dict[str, list[np.ndarray]] = {}
    with progress_bar("benchmark", repeats * len(methods) * len(queries), "query") as bar:
        for _ in range(repeats):
            for name, method in methods.items():
                for query in queries[:WARM_UP]:
                    method(query)
                found[name] = []
                for query in queries:
                    start = time.perf_counter()
                    rows = method(query)
                    seconds[name].append(time.perf_counter() - start)
                    found[name].append(rows)
                bar.update(len(queries))
    return {name: np.array(values) for name, values in seconds.items()}, found


def percentiles(seconds: np.ndarray) -> dict[str, float | None]:
    """Return p50, p95 and p99 in milliseconds; None without a measurement."""
    return {
        f"p{percent}_ms": round(float(np.percentile(seconds, percent)) * 1000, 4) if len(seconds) else None
        for percent in (50, 95, 99)
    }


def table(seconds: dict[str, np.ndarray], kind: str) -> pd.DataFrame:
    """Return a table of percentile and each method's milliseconds at it, for a plot of the distribution."""
    steps = np.arange(1, 100) if len(seconds[kind]) else np.zeros(0, int)
    columns = {"brute_force": "brute_force", "flat": "flat", "index": kind}
    milliseconds = {
        name: (np.percentile(seconds[method], steps) * 1000).round(4) if len(steps) else []
        for name, method in columns.items()
    }
    return pd.DataFrame({"percentile": steps} | milliseconds)


if __name__ == "__main__":
    script.run("benchmark", main)
