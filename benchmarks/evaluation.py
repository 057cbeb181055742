"""How long the evaluation of every image against all others takes, beside the libraries that compute the same figures.

Leave-one-out over unit-length features: each of N images is searched among the N - 1 others, exactly, and measured over
the whole ranking. All sides start from the same array, compute mAP and P@1 at least (ours: all its figures), and run in
one process after a warm-up on a tenth of the queries; all may use every core. The others are measured where installed:

    pip install torchmetrics pytorch-metric-learning      # optional; scikit-learn is always there
    python benchmarks/evaluation.py data/features

Prints seconds, the ratio to ours, and the figures, which must agree but for how ties are ranked.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn
from sklearn.metrics import average_precision_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.artifacts.arrays import load_collection
from lookalike.base import script
from lookalike.base.machine import cpu_name
from lookalike.base.vectors import unit_length
from lookalike.evaluation import protocol
from lookalike.evaluation.measure import evaluate
from lookalike.refinement.refinement import OFF, Refinement

Figures = tuple[float, float]  # mAP, P@1


def ours(vectors: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Figures:
    """All of Lookalike's figures."""
    everything = np.arange(len(labels))
    split = protocol.Split(rows, everything, rows[:, np.newaxis], "", ())
    result = evaluate(vectors, labels, split, Refinement.fit(vectors, OFF), vectors, [1, 5, 10])
    return float(result.per_query["AP"].mean()), float(result.per_query["P@1"].mean())


def scikit_learn(vectors: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Figures:
    """average_precision_score, a query at a time, over one matrix product a thousand queries."""
    precisions, first = [], []
    for start in range(0, len(rows), 1000):
        block = rows[start : start + 1000]
        for row, cosines in zip(block, vectors[block] @ vectors.T, strict=True):
            others = np.arange(len(labels)) != row
            relevant = labels[others] == labels[row]
            precisions.append(average_precision_score(relevant, cosines[others]))
            first.append(relevant[cosines[others].argmax()])
    return float(np.mean(precisions)), float(np.mean(first))


def torchmetrics_retrieval(vectors: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Figures:
    """RetrievalMAP and RetrievalPrecision(top_k=1), updated a hundred queries at a time."""
    import torch
    from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_precision

    features, codes = torch.from_numpy(vectors), torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    precisions, first = [], []
    for start in range(0, len(rows), 1000):
        block = torch.from_numpy(rows[start : start + 1000])
        for row, cosines in zip(block, features[block] @ features.T, strict=True):
            others = torch.arange(len(codes)) != row
            relevant = codes[others] == codes[row]
            precisions.append(float(retrieval_average_precision(cosines[others], relevant)))
            first.append(float(retrieval_precision(cosines[others], relevant, top_k=1)))
    return float(np.mean(precisions)), float(np.mean(first))


def pytorch_metric_learning(vectors: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Figures:
    """AccuracyCalculator over all neighbours, which FAISS searches."""
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    codes = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    calculator = AccuracyCalculator(include=("mean_average_precision", "precision_at_1"), k=len(vectors) - 1)
    features = torch.from_numpy(vectors)
    found = calculator.get_accuracy(
        features[rows], codes[rows], features, codes, ref_includes_query=len(rows) == len(codes)
    )
    return float(found["mean_average_precision"]), float(found["precision_at_1"])


def main() -> None:
    """Read the arguments, time each side, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="what extract wrote")
    args = parser.parse_args()
    collection = load_collection(args.features)
    vectors = unit_length(collection.features)
    classes, counts = np.unique(collection.labels, return_counts=True)
    kept = np.isin(collection.labels, classes[(counts > 1) & (classes != "")])
    vectors, labels = vectors[kept], collection.labels[kept]
    rows = np.arange(len(labels))
    print(f"{len(labels)} queries and images of {vectors.shape[1]} dimensions; {cpu_name()}, {os.cpu_count()} cores, "
          f"Python {platform.python_version()}, scikit-learn {sklearn.__version__}\n")  # fmt: skip
    print("| | seconds | times ours | mAP | P@1 |\n|---|---|---|---|---|")
    sides: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Figures]] = {
        "lookalike, all its figures": ours,
        "scikit-learn": scikit_learn,
        "torchmetrics": torchmetrics_retrieval,
        "pytorch-metric-learning": pytorch_metric_learning,
    }
    own = None
    for name, measure in sides.items():
        try:
            if measure is not pytorch_metric_learning:  # which asks with all or needs another gallery
                measure(vectors, labels, rows[::10])
            start = time.perf_counter()
            mean_ap, first = measure(vectors, labels, rows)
        except ImportError as error:
            print(f"| {name} | not installed: {error.name} | | | |")
            continue
        seconds = time.perf_counter() - start
        own = own or seconds
        print(f"| {name} | {seconds:.2f} | {seconds / own:.1f} | {mean_ap:.6f} | {first:.6f} |", flush=True)


if __name__ == "__main__":
    script.run("evaluation", main)
