"""Compute index and evaluation from the same features as other processors would, and compare every byte.

Numerical libraries choose their instructions by the processor, and add up in another order with others. Environment
variables make them choose as on another processor: OPENBLAS_CORETYPE, FAISS_OPT_LEVEL, NPY_DISABLE_CPU_FEATURES,
ONEDNN_MAX_CPU_ISA, and the number of threads. Every combination that this processor can run is tried; each must write
the files that are written without any of them. ONEDNN_MAX_CPU_ISA, which neither stage reads, goes along in turn.

    make anywhere
    python proof/anywhere.py --kinds auto hnsw --extremes

Prints a table of what was set, how often, and in how many files a run differed; ends with status 1 if one did.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.base.files import file_digest
from lookalike.base.machine import cores, cpu_features, cpu_name

ROOT = Path(__file__).resolve().parents[1]
NUMPY = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"  # what NumPy 2 looks for beyond its baseline
# What each value needs of the processor, by the names of its features.
NEEDS = {
    "OPENBLAS_CORETYPE": {"Prescott": "", "Nehalem": "", "Haswell": "avx2", "Zen": "avx2", "SkylakeX": "avx512f"},
    "FAISS_OPT_LEVEL": {"generic": "", "avx2": "avx2", "avx512": "avx512f"},
    "NPY_DISABLE_CPU_FEATURES": {"": "", NUMPY: ""},
    "OMP_NUM_THREADS": {"1": "", "2": ""},
}
ONEDNN = {"SSE41": "", "AVX2": "avx2", "AVX512_CORE": "avx512f"}
QUICK = {"split_seeds": 2, "resamples": 100, "map_images": 300}  # of evaluate: the same code, a third of the time
KINDS = ("auto", "hnsw", "ivf")  # of index; evaluate runs with the first


@dataclass(frozen=True)
class Difference:
    """A run that wrote other files than the one without any setting."""

    settings: dict[str, str]
    files: list[str]


def combinations(*, extremes: bool) -> Iterator[dict[str, str]]:
    """Every combination that this processor can run; or the one that is farthest from it."""
    features = cpu_features().split()
    able = {
        name: [value for value, needed in values.items() if not needed or needed in features]
        for name, values in NEEDS.items()
    }
    onednn = itertools.cycle(value for value, needed in ONEDNN.items() if not needed or needed in features)
    if extremes:
        yield {"OPENBLAS_CORETYPE": "Prescott", "FAISS_OPT_LEVEL": "generic", "NPY_DISABLE_CPU_FEATURES": NUMPY,
               "OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41"}  # fmt: skip
        return
    for values in itertools.product(*able.values()):
        yield dict(zip(able, values, strict=True)) | {"ONEDNN_MAX_CPU_ISA": next(onednn)}


def run(settings: dict[str, str], data: Path, params: Path, kinds: list[str]) -> dict[str, str]:
    """Run `index` for each kind, and `evaluate`, in a folder of their own: the digest of every file, by its name."""
    environment = {**os.environ, **settings, "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory(prefix="anywhere") as name:
        folder = Path(name)
        for kind in kinds:
            content = yaml.safe_load(params.read_text(encoding="utf-8"))
            content["index"]["kind"] = kind
            content["evaluate"] |= QUICK
            chosen = folder / f"{kind}.yaml"
            chosen.write_text(yaml.safe_dump(content), encoding="utf-8")
            features, index = data / "features", folder / kind / "index"
            commands: list[list[str | Path]] = [["stages/index.py", features, index]]
            if kind == kinds[0]:
                written = [folder / kind / name for name in ("metrics.json", "plots")]
                commands.append(["stages/evaluate.py", features, index, data / "processed", *written])
            for command in commands:
                done = subprocess.run([sys.executable, *command, "--params", chosen], cwd=ROOT, env=environment,
                                      capture_output=True, text=True, check=False)  # fmt: skip
                if done.returncode:
                    raise RuntimeError(f"{settings}: {command[0]}: {done.stderr[-2000:]}")
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".yaml")
        return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def differences(
    data: Path, params: Path, kinds: list[str], tried: list[dict[str, str]]
) -> tuple[list[Difference], list[str]]:
    """What differs from a run without settings, and the files that were compared."""
    expected = run({}, data, params, kinds)
    found = []
    with ThreadPoolExecutor(cores()) as pool:
        runs = pool.map(lambda settings: run(settings, data, params, kinds), tried)
        for settings, written in zip(tried, tqdm(runs, "anywhere", len(tried), unit="run"), strict=True):
            files = sorted(name for name in expected.keys() | written if expected.get(name) != written.get(name))
            if files:
                found.append(Difference(settings, files))
    return found, sorted(expected)


def table(tried: list[dict[str, str]], found: list[Difference]) -> str:
    """Markdown: setting, value, runs, and how many of them differed."""
    lines = ["| setting | value | runs | differ |", "|---|---|---|---|"]
    for name in [*NEEDS, "ONEDNN_MAX_CPU_ISA"]:
        for value in dict.fromkeys(settings[name] for settings in tried):
            runs = sum(settings[name] == value for settings in tried)
            differ = sum(each.settings[name] == value for each in found)
            lines.append(f"| {name} | {value or '(none)'} | {runs} | {differ} |")
    return "\n".join(lines)


def main() -> int:
    """Read the arguments, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"),
                        help="folder with features/ and processed/ (default: %(default)s)")  # fmt: skip
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=["auto", "flat", "hnsw", "ivf"],
                        help="kinds of index; evaluate runs with the first (default: all three)")  # fmt: skip
    parser.add_argument("--extremes", action="store_true", help="only the settings farthest from this processor")
    args = parser.parse_args()
    tried = list(combinations(extremes=args.extremes))
    try:
        found, files = differences(args.data.absolute(), args.params.absolute(), args.kinds, tried)
    except RuntimeError as error:
        print(f"anywhere: error: {error}", file=sys.stderr)
        return 2
    print(f"{cpu_name()}; kinds {', '.join(args.kinds)}; {len(files)} files a run\n\n{table(tried, found)}\n")
    for each in found:
        print(f"{each.settings}: {', '.join(each.files)}")
    print(f"{len(tried)} combinations, {len(tried) - len(found)} of them wrote the same bytes")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
