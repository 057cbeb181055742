"""Say how far what the pipeline wrote is from what is committed; `make` ends with it.

Silent where nothing differs, and where settings or code do: that is another experiment. On another processor the last
bits of embeddings differ, and so every file that is made of them; then one line says by how much, how far the figures
are, and how to put the tree back. Ends with status 1 where features or figures are really off.

    python proof/committed.py
"""

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.base.machine import cpu_name
from proof.reproduce import METRICS, TOLERANCE, flat, inputs, outputs

FEATURES = "data/features"
MOST = 1e-5  # of the largest value, by which embeddings may differ between processors; 8e-7 was seen
BACK = "git checkout dvc.lock data metrics plots && dvc pull --force"


def committed(name: str) -> bytes:
    """A file of the last commit."""
    return subprocess.run(["git", "show", f"HEAD:{name}"], capture_output=True, check=True).stdout


def features_of(folder: Path) -> np.ndarray | None:
    """Fetch the committed features into a folder, from DVC's cache or remote; None if they are nowhere."""
    target = folder / "features"
    command = ["dvc", "get", "--quiet", "--rev", "HEAD", ".", FEATURES, "--out", str(target)]
    done = subprocess.run(command, capture_output=True, check=False)
    return None if done.returncode else np.load(target / "features.npy", allow_pickle=False)


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays of features, as a share of the largest value; infinite for other shapes."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours.astype(np.float64) - theirs).max(initial=0) / (np.abs(theirs).max(initial=0) or 1))


def figures_apart(ours: bytes, theirs: bytes) -> tuple[float, str]:
    """The largest difference of two metrics.json, and the figure; infinite where a count or a name differs."""
    one, other = (flat(json.load(io.BytesIO(content))) for content in (ours, theirs))
    most = (0.0, "")
    for name in dict.fromkeys([*one, *other]):
        a, b = one.get(name), other.get(name)
        far = abs(a - b) if isinstance(a, float) and isinstance(b, float) else 0.0 if a == b else float("inf")
        most = max(most, (far, name))
    return most


def main() -> int:
    """Compare, and say what there is to say."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dvc.lock").write_bytes(committed("dvc.lock"))
        ours, theirs = outputs(Path()), outputs(folder)
        if list(inputs(Path(), folder, {out for _, out in ours})):
            return 0
        differ = [out for (stage, out), md5 in ours.items() if md5 != theirs.get((stage, out))]
        if not differ:
            return 0
        before = features_of(folder) if FEATURES in differ else None
    most, figure = figures_apart(Path(METRICS).read_bytes(), committed(METRICS))
    figures = f"every figure is within {most:.5f}" if most <= TOLERANCE else f"{figure} is off by {most:.5f}"
    if FEATURES not in differ:
        tell(
            f"from the committed features, {', '.join(differ)} came out otherwise, and {figures}: other libraries "
            f"than the pinned ones, or a defect; please report it. Back to what is committed: {BACK}"
        )
        return int(most > TOLERANCE)
    distance, by = 0.0, "(the committed ones could not be fetched)"
    if before is not None:
        distance = apart(np.load(f"{FEATURES}/features.npy", allow_pickle=False), before)
        by = f"by {distance:.1e} of the largest value at most"
    if distance > MOST or most > TOLERANCE:
        tell(
            f"error: features differ from the committed ones {by}, and {figures}; that is no other processor's "
            "rounding. Where to look: make reproduce"
        )
        return 1
    tell(
        f"features differ in their last bits from the committed ones {by}, because this is another processor "
        f"({cpu_name()}); {figures}. Back to what is committed: {BACK}"
    )
    return 0


def tell(message: str) -> None:
    """Print a line on stderr."""
    print(f"make: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
