"""Set images apart that int8 is calibrated on, in a file that never changes by itself.

    python -m lookalike.cli.calibration data/processed data/calibration.npy
    dvc add data/calibration.npy                          # or git add: a few megabytes
    dvc exp run -S extract.runtime=openvino -S extract.precision=int8 -S extract.calibration=data/calibration.npy

Writes uint8 (n, S, S, 3): n images of the collection, drawn with a seed. A file that exists is not overwritten: another
calibration set is another network, and every image is embedded anew.
"""

from pathlib import Path

import numpy as np

from lookalike.artifacts.arrays import load_images
from lookalike.base import script
from lookalike.base.errors import LookalikeError
from lookalike.base.files import new_file


def draw(pixels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw `count` images of uint8 (N, S, S, 3) without repetition, or all if there are fewer; in their order."""
    rows = np.random.default_rng(seed).permutation(len(pixels))[:count]
    return np.asarray(pixels[np.sort(rows)])


def main() -> None:
    """Read the arguments, then write the file."""
    parser = script.door("calibration", __doc__)
    parser.add_argument("processed", type=Path, help="what preprocess wrote")
    parser.add_argument("file", type=Path, help=".npy file to write; must not exist")
    parser.add_argument("--images", type=int, default=100, help="1 to 10000 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    args = parser.parse_args()
    if not 1 <= args.images <= 10_000:
        raise LookalikeError(f"--images is {args.images}; choose 1 to 10000")
    if args.seed < 0:
        raise LookalikeError(f"--seed is {args.seed}; choose 0 or more")
    if args.file.suffix != ".npy":
        raise LookalikeError(f"{args.file}: the name must end in .npy")
    if args.file.exists():
        raise LookalikeError(f"{args.file} exists; it is frozen. Delete it first, or choose another name")
    images = draw(load_images(args.processed).pixels, args.images, args.seed)
    with new_file(args.file) as partial, partial.open("wb") as file:
        np.save(file, images, allow_pickle=False)
    script.notice("calibration", f"{len(images)} images in {args.file}, {args.file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    script.run("calibration", main)
