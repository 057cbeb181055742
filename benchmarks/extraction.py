"""How fast images become embeddings, what lower precisions cost, what the cache saves; a table's sides in one run.

    python benchmarks/extraction.py speed data/processed data/model --calibration data/calibration.npy
    python benchmarks/extraction.py cache data/processed data/model
    python benchmarks/extraction.py quality data/processed data/model --calibration data/calibration.npy
    python benchmarks/extraction.py query data/index data/model data/raw/some/picture.png
    python benchmarks/extraction.py memory data/processed data/model

speed    Images a second of the network alone, warm, the ways taking turns on the same images: the notebook's loop
         (Keras `predict`, one image at a time), Keras `predict` in batches, and ours; and for ours the share of it that
         the whole extraction reaches, from file to row, with an empty cache. With --xla, also compiled by XLA.
cache    Seconds to embed the collection with TensorFlow in float32: all but a hundredth with an empty cache, then all,
         then all again. Imports and loading the network left out of all three.
quality  The least and the mean cosine to TensorFlow's float32 embedding, and mAP with the protocol and the refinement
         of --params, at each precision.
query    Seconds from starting a process to its first answer, and whether TensorFlow was imported.
memory   Peak memory of `extract` at 2,000 and at 20,000 images.

Needs only what the pipeline wrote. --threads limits every side alike; the default is every core.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.artifacts.arrays import ArrayWriter, load_images, pixel_blocks
from lookalike.base import params
from lookalike.base import script as stage
from lookalike.base.errors import LookalikeError
from lookalike.base.machine import cores, cpu_name, gpu_names
from lookalike.base.params import UNUSED
from lookalike.base.vectors import unit_length
from lookalike.evaluation import protocol
from lookalike.evaluation.measure import evaluate
from lookalike.extraction.extractor import Extractor
from lookalike.index import build
from lookalike.refinement.refinement import OFF, Refinement
from lookalike.runtimes import registry

IN_BATCHES = "Keras `predict`, in batches"
Way = tuple[registry.Name, registry.Precision]
WAYS: list[Way] = [
    ("tensorflow", "float32"), ("tensorflow", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16"),
    ("openvino", "int8"),
]  # fmt: skip
ON_GPU: list[Way] = [("tensorflow", "float16")]  # a CPU takes minutes for what it has no instructions for
Run = Callable[[np.ndarray], object]


def speed(args: argparse.Namespace) -> None:
    """Print images a second of each way, and its ratio to Keras in batches."""
    size, pixels = some_images(args.processed, args.images, args.batch_size)
    ours = ways(args)
    keras = keras_model(args.model, size)
    sides: dict[str, tuple[Run, int]] = {  # how all the images are run, and how many of them
        "Keras `predict`, one by one (the notebook's loop)": (
            lambda images: [keras.predict(images[row : row + 1], verbose=0) for row in range(len(images))],
            max(1, len(pixels) // 4),  # fewer of the slowest: a rate needs seconds, not all the images
        ),
        IN_BATCHES: (lambda images: keras.predict(images, batch_size=args.batch_size, verbose=0), len(pixels)),
    }
    if args.xla:
        sides["tensorflow float32, compiled by XLA"] = (batches(by_xla(keras), args.batch_size), len(pixels))
    extractors = {f"{name} {precision}": extractor(args, size, (name, precision)) for name, precision in ours}
    sides |= {name: (batches(each.network(), args.batch_size), len(pixels)) for name, each in extractors.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for run, _ in sides.values():
        run(pixels[: args.batch_size])  # the first call compiles
    for _ in tqdm(range(args.rounds), desc="speed", unit="round"):
        for name, (run, count) in sides.items():
            rates[name].append(count / timed(partial(run, pixels[:count])))
    base = statistics.median(rates[IN_BATCHES])
    print("\n| way | images/s | times Keras in batches | from file to row, share of it | cores busy meanwhile |")
    print("|---|---|---|---|---|")
    for name, found in rates.items():
        rate = statistics.median(found)
        share, busy = stage_share(args, extractors[name]) if name in extractors else ("", "")
        print(f"| {name} | {rate:.1f} | {rate / base:.2f} | {share} | {busy} |", flush=True)


def stage_share(args: argparse.Namespace, each: Extractor) -> tuple[str, str]:
    """Throughput of the extraction, images.npy to rows in a file, over that of the network on synthetic batches.

    And the share of the cores' time that the extraction used.
    """
    batch, side = each.recipe.batch_size, each.recipe.image_size
    count = min(args.images, len(load_images(args.processed).paths)) // batch * batch
    synthetic = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    network, shares, busy = each.network(), [], []
    for _ in range(args.rounds):
        with fresh_cache(), tempfile.TemporaryDirectory() as folder:
            before = time.process_time()
            whole = timed(partial(embed_first, each, args.processed, count, Path(folder) / "rows.npy"))
            busy.append((time.process_time() - before) / whole / cores())
        start = time.perf_counter()
        for _ in range(count // batch):
            network(synthetic)
        shares.append((time.perf_counter() - start) / whole)
    return f"{statistics.median(shares):.1%}", f"{statistics.median(busy):.0%}"


def cache(args: argparse.Namespace) -> None:
    """Print seconds for an empty cache, one that lacks a hundredth, and a full one."""
    size = load_images(args.processed).pixels.shape[1]
    count = len(load_images(args.processed).paths)
    each = extractor(args, size, ("tensorflow", "float32"))
    each.network()(np.zeros((args.batch_size, size, size, 3), np.uint8))  # imported, loaded and compiled
    print("| cache | images | of them computed | seconds | times faster than computing |\n|---|---|---|---|---|")
    base = 0.0
    before = time.process_time()
    busy, outputs = 0.0, []
    with fresh_cache() as folder, tempfile.TemporaryDirectory() as out:
        known = 0
        for name, images in (("empty", count - count // 100), ("lacks 1 %", count), ("full", count)):
            target = Path(out) / f"{name}.npy"
            seconds = timed(partial(embed_first, each, args.processed, images, target))
            outputs.append(target.read_bytes())
            if not base:
                base, busy = seconds / images, (time.process_time() - before) / seconds / cores()
            print(
                f"| {name} | {images} | {images - known} | {seconds:.2f} | {base * images / seconds:.1f} |", flush=True
            )
            known = images
        size_mb = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    if outputs[1] != outputs[2]:
        raise LookalikeError("the cache gave other bytes than the network")
    print(f"\n{busy:.0%} of {cores()} cores busy while computing; the cache takes {size_mb:.0f} MB")


def quality(args: argparse.Namespace) -> None:
    """Print cosine and mAP of each way, over the collection; what is in the user's cache is not run again."""
    images = load_images(args.processed)
    settings = params.load(args.params, "protocol", protocol.Settings)
    refine = params.load(args.params, "index", build.Settings).refine
    split = protocol.split(images.paths, images.labels, images.sha256, settings)
    print("| way | least cosine | mean cosine | mAP, raw cosine | mAP, refined | P@1, refined |")
    print("|---|---|---|---|---|---|")
    reference, base = None, [0.0, 0.0, 0.0]
    for name, precision in ways(args):
        each = extractor(args, images.pixels.shape[1], (name, precision))
        with tempfile.TemporaryDirectory() as out:
            embed_first(each, args.processed, len(images.paths), Path(out) / "rows.npy")
            features = np.load(Path(out) / "rows.npy")
        vectors = unit_length(features)
        figures = []
        for chosen in (OFF, refine):
            refinement = Refinement.fit(features[split.gallery], chosen)
            gallery = refinement.gallery(features[split.gallery])
            result = evaluate(features, images.labels, split, refinement, gallery, [1])
            figures += [result.per_query["AP"].mean(), result.per_query["P@1"].mean()]
        del figures[1]  # P@1 of raw cosine
        if reference is None:
            reference, base = vectors, figures
        cosines = (vectors * reference).sum(axis=1)
        texts = [f"{value:.4f} ({value - start:+.4f})" for value, start in zip(figures, base, strict=True)]
        print(f"| {name} {precision} | {cosines.min():.5f} | {cosines.mean():.5f} | {' | '.join(texts)} |", flush=True)


def query(args: argparse.Namespace) -> None:
    """Print the seconds of a search in a process of its own, and of one that only imports what a search must."""
    command = [sys.executable, "-m", "lookalike.cli", "search", str(args.picture), "--index", str(args.index)]
    command += ["--model", str(args.model), "-k", "1"]
    imports = [sys.executable, "-c", "import numpy, faiss, openvino"]
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    seconds: dict[str, list[float]] = {"search": [], "imports": []}
    for number in range(args.rounds + 1):
        for name, each in (("search", command), ("imports", imports)):  # in turns, so that noise hits both
            took = timed(lambda: subprocess.run(each, check=True, env=environment, stdout=subprocess.DEVNULL))  # noqa: B023
            seconds[name] += [took] * (number > 0)  # the first reads the files from disk
    shown = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]], check=True, env=environment, capture_output=True, text=True
    )
    imported = re.search(r"\| +tensorflow$", shown.stderr, re.MULTILINE)
    search, least = statistics.median(seconds["search"]), statistics.median(seconds["imports"])
    print(f"{cpu_name()}: start to first answer: median {search:.2f} s, worst {max(seconds['search']):.2f} s of "
          f"{args.rounds}; python -c 'import numpy, faiss, openvino': {least:.2f} s, so {search / least:.2f} times; "
          f"TensorFlow imported: {'yes' if imported else 'no'}")  # fmt: skip


def memory(args: argparse.Namespace) -> None:
    """Print the peak memory of two extractions, of different size, each in a process of its own."""
    images = load_images(args.processed)
    size = images.pixels.shape[1]
    peaks = {}
    for count in (2_000, 20_000):
        with fresh_cache(), tempfile.TemporaryDirectory() as folder:
            processed = Path(folder) / "processed"
            processed.mkdir()
            with ArrayWriter(processed / "images.npy", (count, size, size, 3), np.uint8) as file:
                for row in range(count):  # shifted copies of real images: all different
                    shift = row // len(images.paths)
                    file.write(
                        np.array([row]), np.roll(images.pixels[row % len(images.paths)], shift, axis=1)[np.newaxis]
                    )
            names = np.array([f"{row:064d}" for row in range(count)])  # as long as a hash, or a path
            for name in ("image_paths", "labels", "sha256"):
                np.save(processed / f"{name}.npy", names)
            (processed / "fit.txt").write_text(images.fit)
            script = Path(__file__).resolve().parents[1] / "stages" / "extract.py"
            subprocess.run(
                [sys.executable, script, processed, args.model, Path(folder) / "features", "--params", args.params],
                check=True, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        # the largest of all children so far: the second is the larger one, or as large
        peaks[count] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    small, large = peaks.values()
    print(f"peak memory of extract at {size} pixels: {small:.0f} MB at 2,000 images, {large:.0f} MB at 20,000: "
          f"{large / small - 1:+.1%}")  # fmt: skip


def ways(args: argparse.Namespace) -> list[Way]:
    """Those that this machine and the arguments allow."""
    found: list[Way] = []
    for way in [*WAYS, *(ON_GPU if gpu_names() else [])]:
        if args.command == "speed" and args.runtime not in ("", way[0]):
            continue
        if way[1] == "int8" and args.calibration == Path(UNUSED):
            print("int8 is left out: no --calibration", file=sys.stderr)
            continue
        try:
            extractor(args, load_images(args.processed).pixels.shape[1], way).network()
            found.append(way)
        except LookalikeError as error:
            print(f"{' '.join(way)} is left out: {error}", file=sys.stderr)
    return found


def extractor(args: argparse.Namespace, size: int, way: Way) -> Extractor:
    """Ours, for a runtime and a precision."""
    return Extractor(way[0], args.model, size, args.batch_size, way[1], args.calibration)


def keras_model(model: Path, size: int) -> Any:
    """Plain Keras, as a notebook has it."""
    from lookalike.networks import backbones

    return backbones.load(model, size, "float32")


def by_xla(model: Any) -> registry.Embedder:
    """Compiled by XLA, otherwise as lookalike.runtimes.tensorflow does; Keras's `predict` refuses deterministic XLA."""
    from lookalike.networks.keras_setup import tf

    compiled = tf.function(lambda pixels: model(pixels, training=False), jit_compile=True, autograph=False)
    return lambda pixels: np.asarray(compiled(tf.constant(pixels)))


def batches(network: registry.Embedder, size: int) -> Run:
    """Run a network over any number of images, a multiple of a batch."""
    return lambda pixels: [network(pixels[start : start + size]) for start in range(0, len(pixels), size)]


def some_images(processed: Path, count: int, batch: int) -> tuple[int, np.ndarray]:
    """Picture size, and `count` of the images from all over the collection, in memory: uint8 (n, S, S, 3)."""
    pixels = load_images(processed).pixels
    rows = np.unique(np.linspace(0, len(pixels) - 1, min(count, len(pixels))).astype(int))
    return pixels.shape[1], np.array(pixels[rows[: len(rows) // batch * batch]])


def embed_first(each: Extractor, processed: Path, count: int, target: Path) -> None:
    """What the stage does: read, embed, write the first `count` images."""

    def blocks() -> Iterator[np.ndarray]:
        left = count
        for block in pixel_blocks(processed):
            yield block[:left]
            left -= len(block[:left])
            if not left:
                return

    with ArrayWriter(target, (count, each.recipe.dim), np.float32) as rows:
        each.embed(blocks(), rows.write)


class fresh_cache:
    """An empty cache while the block runs."""

    def __enter__(self) -> Path:
        self._before = os.environ.get("LOOKALIKE_CACHE")
        self._folder = tempfile.TemporaryDirectory()
        os.environ["LOOKALIKE_CACHE"] = self._folder.name
        return Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del os.environ["LOOKALIKE_CACHE"]
        else:
            os.environ["LOOKALIKE_CACHE"] = self._before
        self._folder.cleanup()


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="cores that every side may use (default: all)")
    commands = parser.add_subparsers(dest="command", required=True)
    for function in (speed, cache, quality, memory, query):
        command = commands.add_parser(function.__name__, help=(function.__doc__ or "").rstrip("."))
        command.set_defaults(function=function, calibration=Path(UNUSED))
        command.add_argument("--rounds", type=int, default=3, help="the median counts (default: %(default)s)")
        if function is query:
            command.add_argument("index", type=Path, help="what index wrote")
            command.add_argument("model", type=Path, help="what model wrote")
            command.add_argument("picture", type=Path, help="an image file")
            continue
        command.add_argument("processed", type=Path, help="what preprocess wrote")
        command.add_argument("model", type=Path, help="what model wrote")
        command.add_argument("--calibration", type=Path, default=Path(UNUSED), help="for int8; left out without")
        command.add_argument("--images", type=int, default=512, help="for speed (default: %(default)s)")
        command.add_argument("--batch-size", type=int, default=32, help="images a batch (default: %(default)s)")
        if function is speed:
            known = list(registry.RUNTIMES)
            command.add_argument("--runtime", choices=known, default="", help="only the ways of this one")
            command.add_argument("--xla", action="store_true", help="also TensorFlow in float32, compiled by XLA")
        command.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    if args.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # what every library goes by
    machine = ", ".join([*gpu_names(), cpu_name()])
    print(f"{' '.join(['python', *sys.argv])}\n{machine}, {cores()} cores\n")
    args.function(args)


if __name__ == "__main__":
    stage.run("extraction", main)
