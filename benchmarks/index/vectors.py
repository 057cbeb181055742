"""Make the vectors that run.py searches: 100,000 crops of real photographs, and a million matched to them.

    python benchmarks/index/vectors.py FOLDER --raw data/raw --model data/model

Reads   data/raw, data/model            photographs with labels.csv, and network files that OpenVINO runs
Writes  FOLDER/features.npy             float32, (N, D), seeded random crops of four fifths of the photographs, embedded
        FOLDER/queries.npy              float32, (1000, D), crops of the other fifth: no query shares a photograph
        FOLDER/gallery128.npy           float32, (N, 128), unit length: refined by index.refine of --params, fitted on
        FOLDER/queries128.npy           (1000, 128)         features.npy, without augmentation
        FOLDER/million.npy              float32, (1000000, 128), unit length, generated
        FOLDER/million_queries.npy      float32, (1000, 128)
        FOLDER/vectors.json             how they were made, and the table that is printed

A step whose files are there is skipped. A crop keeps 20 to 100 % of the area at an aspect of 3/4 to 4/3, half of them
mirrored. The generated rows are

    x = x_i + s sum over j of g_j (x_j - x_i) / sqrt(m),   scaled to length 1,

for every gallery row i alike often, its m nearest rows j, and g standard normal: they stay in the directions in which
the real rows scatter. s and m are searched for until local intrinsic dimension and distance to the tenth neighbour,
of the million among themselves, are those of the real rows among themselves; more than 10 % apart is an error. The
million's queries start from the real queries and their nearest gallery rows in the same way, with the same m and
the share of s at which they lie to the million as the real queries do to the real rows; that too to within 10 %.
"""

import argparse
import csv
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.lib.format import open_memmap
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's library, whatever is installed

from lookalike.artifacts import descriptions
from lookalike.artifacts.arrays import ArrayWriter
from lookalike.base import params, script
from lookalike.base.errors import LookalikeError
from lookalike.base.files import new_file, write_json
from lookalike.base.machine import cores, cpu_name
from lookalike.base.script import progress_bar
from lookalike.base.vectors import unit_length
from lookalike.images import decode
from lookalike.index import build
from lookalike.refinement.faiss_setup import faiss
from lookalike.refinement.refinement import Refinement
from lookalike.runtimes import openvino

SIZE, BATCH = 224, 32
QUERY_SHARE = 0.2  # of the photographs
NEIGHBOURS = 100  # k of the intrinsic dimension
TENTH = 10
SAMPLE = 1_000  # rows whose neighbours are measured
CLOSE, LIMIT = 0.05, 0.10  # of a ratio to 1: where the search stops, and what is an error
GENERATED = 1 << 27  # bytes of the neighbours under way
CHECKED = ("LID", "d10")
SHARES = (0.6, 0.7, 0.8, 0.9, 1.0)  # of the rows' s, tried for the queries
LADDER = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # m


def crops(args: argparse.Namespace) -> None:
    """Embed random crops of the photographs: features.npy and queries.npy."""
    with (args.raw / "labels.csv").open(encoding="utf-8", newline="") as file:
        paths = [args.raw / path for path in sorted(row["path"] for row in csv.DictReader(file))]
    order = np.random.default_rng(args.seed).permutation(len(paths))
    asked, kept = np.split(order, [round(QUERY_SHARE * len(paths))])
    precision: Any = "bfloat16" if "bfloat16" in openvino.usable() else "float32"
    embed, dim = openvino.load(args.model, SIZE, BATCH, precision), descriptions.describe(args.model).dim
    for name, photographs, rows in (("queries", asked, args.queries), ("features", kept, args.crops)):
        counts = {
            photo: len(part)
            for photo, part in zip(photographs.tolist(), np.array_split(range(rows), len(photographs)), strict=True)
        }
        with (
            new_file(args.folder / f"{name}.npy") as path,
            ArrayWriter(path, (rows, dim), np.float32) as array,
            progress_bar(name, rows, "crop") as bar,
        ):
            for first, pixels in batches(crops_of(paths, counts, args.seed)):
                full = np.zeros((BATCH, SIZE, SIZE, 3), np.uint8)
                full[: len(pixels)] = pixels
                array.write(np.arange(first, first + len(pixels)), embed(full)[: len(pixels)])
                bar.update(len(pixels))


def crops_of(paths: list[Path], counts: dict[int, int], seed: int) -> Iterator[np.ndarray]:
    """Crops of each photograph, uint8 (n, S, S, 3), n as `counts` says by its number; decoded in threads, ahead."""
    pending: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(cores()) as pool:
        for photo, count in counts.items():
            pending.append(pool.submit(random_crops, paths[photo], count, np.random.default_rng([seed, photo])))
            if len(pending) > 4 * cores():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def random_crops(path: Path, count: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a photograph `count` times: uint8, (count, S, S, 3)."""
    try:
        photo = decode.decode(path.read_bytes(), max_pixels=100_000_000)
    except decode.ImageError as error:
        raise LookalikeError(f"{path}: {error}; remove its line from labels.csv") from None
    result = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for pixels in result:
        area = rng.uniform(0.2, 1) * photo.width * photo.height
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = min(photo.width, np.sqrt(area * aspect)), min(photo.height, np.sqrt(area / aspect))
        left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
        box = (left, top, left + width, top + height)
        crop = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
        pixels[:] = np.asarray(crop)[:, :: rng.choice([-1, 1])]
    return result


def batches(parts: Iterator[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Join parts and cut them into batches, the last perhaps short: the first one's row, and uint8 (b, S, S, 3)."""
    first, held = 0, np.zeros((0, SIZE, SIZE, 3), np.uint8)
    for part in parts:
        held = np.concatenate([held, part])
        while len(held) >= BATCH:
            yield first, held[:BATCH]
            first, held = first + BATCH, held[BATCH:]
    if len(held):
        yield first, held


def refined(args: argparse.Namespace) -> None:
    """Refine the crops' features as the pipeline does, without augmentation: gallery128.npy and queries128.npy."""
    settings = replace(params.load(args.params, "index", build.Settings).refine, augment=0)
    features = np.load(args.folder / "features.npy", mmap_mode="r")
    refinement = Refinement.fit(features, settings)
    for source, target in (("queries", "queries128"), ("features", "gallery128")):
        with new_file(args.folder / f"{target}.npy") as path, path.open("wb") as file:
            np.save(file, refinement.project(np.load(args.folder / f"{source}.npy", mmap_mode="r")))


def million(args: argparse.Namespace) -> None:
    """Generate rows that lie as the refined gallery's do: million.npy, million_queries.npy and vectors.json."""
    gallery, asked = (np.load(args.folder / f"{name}128.npy") for name in ("gallery", "queries"))
    rng = np.random.default_rng(args.seed)
    own = rng.choice(len(gallery), min(SAMPLE, len(gallery)), replace=False)
    real = describe(gallery[own], gallery, own)
    near = knn(gallery, gallery, LADDER[-1] + 1)[:, 1:]  # (N, M): all but itself, or a twin
    sample = rng.choice(args.rows, min(SAMPLE, args.rows), replace=False)
    with ExitStack() as stack:
        path = stack.enter_context(new_file(args.folder / "million.npy"))
        rows = open_memmap(path, "w+", np.float32, (args.rows, gallery.shape[1]))

        def attempt(spread: float, count: int) -> dict[str, float]:
            generate(gallery, gallery, near[:, :count], spread, args.seed, rows)
            found = describe(rows[sample], rows, sample)
            ratios = " ".join(f"{key} {found[key] / real[key]:.3f}" for key in CHECKED)
            script.notice("vectors", f"s {spread:.4f}, m {count}: ratio of {ratios}")
            return found

        spread, count, made = match(attempt, real)
        path = stack.enter_context(new_file(args.folder / "million_queries.npy"))
        questions = open_memmap(path, "w+", np.float32, (len(asked), gallery.shape[1]))
        ours, theirs = describe(asked, gallery), knn(asked, gallery, count)
        tries: list[tuple[float, float]] = []  # how far off, share of s
        for share in (*SHARES, 0.0):  # the last one writes the best anew
            share = share or min(tries)[1]
            generate(asked, gallery, theirs, share * spread, args.seed + 1, questions)
            answered = describe(questions, rows)
            tries.append((max(abs(answered[key] / ours[key] - 1) for key in CHECKED), share))
        table = {
            "gallery128": {"rows": len(gallery), **real},
            "million": {"rows": args.rows, **made},
            "queries128 in gallery128": {"rows": len(gallery), **ours},
            "million_queries in million": {"rows": args.rows, **answered},
        }
        settings = {"crops": args.crops, "seed": args.seed, "s": spread, "m": count, "s of queries": share * spread}
        off = max(abs(given[key] / wanted[key] - 1) for given, wanted in ((made, real), (answered, ours))
                  for key in CHECKED)  # fmt: skip
        if off > LIMIT:
            raise LookalikeError(f"no s and m makes rows like the real ones: the best, s {spread:.3f} and m {count}, "
                                 f"is {off:.0%} off; give more --crops or fewer --rows")  # fmt: skip
    backbone = descriptions.describe(args.model).backbone
    write_json(args.folder / "vectors.json", {"settings": settings | {"network": backbone}, "sets": table})


def generate(
    centres: np.ndarray, gallery: np.ndarray, near: np.ndarray, spread: float, seed: int, out: np.ndarray
) -> None:
    """Fill `out`, float32 (R, d), with rows around each of `centres`, float32 (n, d), in turn.

    near  int64, (n, m): the gallery rows in whose directions they scatter.
    """
    count, wanted = near.shape[1], len(out)
    copies = -(-wanted // len(centres))
    step = max(1, GENERATED // (count * gallery.shape[1] * 4))
    for start in range(0, len(centres), step):
        centre = centres[start : start + step, np.newaxis]  # (b, 1, d)
        rng = np.random.default_rng([seed, start])
        noise = rng.standard_normal((len(centre), copies, count), np.float32)
        made = centre + spread / np.sqrt(np.float32(count)) * noise @ (gallery[near[start : start + step]] - centre)
        made = unit_length(made.reshape(-1, made.shape[2])).reshape(made.shape)  # (b, copies, d)
        for copy in range(copies):
            first = copy * len(centres) + start
            part = out[first : first + len(centre)]
            part[:] = made[: len(part), copy]


def match(
    attempt: Callable[[float, int], dict[str, float]], real: dict[str, float]
) -> tuple[float, int, dict[str, float]]:
    """Find s for the distance and m for the dimension; the best pair, and what it gives. The last attempt is the best.

    Both figures grow with either, so m is halved in on, and s is fitted anew for every m.
    """
    found: list[tuple[float, float, int]] = []  # how far off, s, m
    low, high, spread = 0, len(LADDER) - 1, 0.5
    while low <= high:
        middle = (low + high) // 2
        for _ in range(6):
            made = attempt(spread, LADDER[middle])
            dimension, distance = (made[key] / real[key] for key in CHECKED)
            found.append((max(abs(dimension - 1), abs(distance - 1)), spread, LADDER[middle]))
            if found[-1][0] <= CLOSE:
                return spread, LADDER[middle], made
            if abs(distance - 1) <= CLOSE / 2:
                break
            spread /= distance
        low, high = (middle + 1, high) if dimension < 1 else (low, middle - 1)
    _, spread, count = min(found)
    return spread, count, attempt(spread, count)


def describe(queries: np.ndarray, rows: np.ndarray, own: np.ndarray | None = None) -> dict[str, float]:
    """How the rows lie around the queries: intrinsic dimension, and distance to the tenth neighbour.

    queries  float32, (Q, d), unit length, as are the rows, (N, d).
    own      int64, (Q,): the queries' own rows, which do not count.
    """
    nearest = knn(queries, rows, NEIGHBOURS + (own is not None))  # (Q, k)
    distances = np.linalg.norm(queries[:, np.newaxis].astype(np.float64) - rows[nearest], axis=2)
    if own is not None:
        distances = np.sort(np.where(nearest == own[:, np.newaxis], 0, distances), axis=1)[:, 1:]
    dimensions, tenth = lid(distances), distances[:, TENTH - 1]
    return {
        "LID": float(1 / np.mean(1 / dimensions)),
        "d10": float(tenth.mean()),
        "LID median": float(np.median(dimensions)),
        "d10 median": float(np.median(tenth)),
    }


def lid(distances: np.ndarray) -> np.ndarray:
    """Local intrinsic dimension around each point, by maximum likelihood.

        LID = - ( 1/(k-1) * sum over i < k of log(r_i / r_k) )^-1

    distances  float64, (Q, k): r_1 <= ... <= r_k to the k nearest; zeros, of twins, are dropped.

    Returns float64, (Q,). Of many points we report the inverse of the mean inverse, which is the likeliest dimension
    if all have the same (MacKay, Ghahramani, Comments on Levina and Bickel, 2005), and the median.
    Sources: Levina, Bickel, Maximum likelihood estimation of intrinsic dimension, NIPS 2004; Amsaleg et al.,
    Estimating local intrinsic dimensionality, KDD 2015.

    >>> lid(np.array([[1.0, 2.0, 4.0], [0.0, 1.0, 2.0]])).round(3)
    array([0.962, 1.443])
    """
    logs = np.log(distances[:, -1:] / np.where(distances > 0, distances, distances[:, -1:]))  # a zero adds nothing
    return np.asarray(((distances > 0).sum(axis=1) - 1) / logs.sum(axis=1))


def knn(queries: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """The k most similar rows of each query: int64, (Q, k)."""
    return np.asarray(faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)[1])


def show(table: dict[str, dict[str, float]]) -> None:
    """Print the sets, and what of the real one's figures each has."""
    print("| set | rows | LID | ratio | mean distance to the 10th | ratio | LID, median | distance, median |")
    print("|---|---|---|---|---|---|---|---|")
    names = list(table)
    for name, base in zip(names, [names[0], names[0], names[2], names[2]], strict=True):
        own, real = table[name], table[base]
        parts = [f"{own[key]:.3f} | {own[key] / real[key]:.3f}" for key in CHECKED]
        print(f"| {name} | {own['rows']:,} | {' | '.join(parts)} | {own['LID median']:.3f} | {own['d10 median']:.3f} |")


def main() -> None:
    """Read the arguments, make what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="what download wrote (default: %(default)s)")
    parser.add_argument(
        "--model", type=Path, default=Path("data/model"), help="what model wrote (default: %(default)s)"
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--crops", type=int, default=100_000, help="of gallery photographs (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1_000, help="crops of the others (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="to generate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (default: %(default)s)")
    args = parser.parse_args()
    print(f"{' '.join(['python', *sys.argv])}\n{cpu_name()}, {cores()} cores\n", flush=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    for step, files in STEPS.items():
        if not all((args.folder / name).exists() for name in files):
            step(args)
    show(json.loads((args.folder / "vectors.json").read_text(encoding="utf-8"))["sets"])


STEPS: dict[Callable[[argparse.Namespace], None], tuple[str, ...]] = {
    crops: ("features.npy", "queries.npy"),
    refined: ("gallery128.npy", "queries128.npy"),
    million: ("million.npy", "million_queries.npy", "vectors.json"),
}

if __name__ == "__main__":
    script.run("vectors", main)
