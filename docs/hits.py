"""Draw the picture at the head of the README: some digits and the images most similar to each.

Reads   data/index, data/raw      the default collection, built by `make`
Writes  docs/hits.png             a row for each query: the query, then its hits

    python docs/hits.py

Only the handwritten digits may be shown here: no photograph of another data set is ours to publish.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
QUERIES = ("3/digit_0003.png", "6/digit_0006.png", "9/digit_0009.png")  # the last is a hard one
HITS = 7  # of each query
TITLE = 56  # pixels above the pictures of one row, which name the size of the collection
COLOURS = 40  # grey levels, green and red; keeps the file below 60 kB


def main() -> None:
    """Search with each query, put the rows below each other, and reduce the colours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/hits.png", help="PNG to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(query, Path(folder) / f"{number}.png") for number, query in enumerate(QUERIES)]
    picture = Image.new("RGB", (rows[0].width, sum(one.height for one in rows)), "white")
    for number, one in enumerate(rows):
        picture.paste(one, (0, sum(above.height for above in rows[:number])))
    picture.quantize(COLOURS).save(args.picture, optimize=True)


def row(query: str, file: Path) -> Image.Image:
    """Draw one query and its hits, without the title, by the command `lookalike similar`."""
    command = [sys.executable, "-m", "lookalike.cli", "similar", query, "-k", str(HITS), "--grid", str(file)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    with Image.open(file) as drawn:
        return drawn.convert("RGB").crop((0, TITLE, drawn.width, drawn.height))


if __name__ == "__main__":
    main()
