"""Find the images of a collection that look like a picture.

    python -m lookalike.search photo.jpg
    python -m lookalike.search photo.jpg other.png -k 20 --index data/index --model data/model

Prints rank, cosine, class and path of each hit, the most similar first. Needs what `dvc repro` (or `dvc pull` and
`dvc repro model`) made; runs on OpenVINO, without TensorFlow.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookalike import images, searcher, stage
from lookalike.collection import load_names
from lookalike.errors import LookalikeError
from lookalike.network import check_same_network, load_embedding
from lookalike.runtimes import openvino

MAX_PIXELS = 100_000_000  # of a query; guards memory


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    path: str
    label: str  # "" if it has none
    cosine: float  # of the refined vectors, -1 to 1


class PictureSearch:
    """An index and its network, asked together."""

    def __init__(self, index: Path, model: Path) -> None:
        """Open what `index` and `model` wrote; raises LookalikeError unless that model made that index."""
        self.embedding = load_embedding(index)
        check_same_network(self.embedding, model)
        self.searcher = searcher.load(index)
        self.paths, self.labels = load_names(index)
        if len(self.paths) != len(self.searcher.index):
            raise LookalikeError(
                f"{index} has {len(self.searcher.index)} vectors but {len(self.paths)} paths; they are written "
                "together, so make it anew: dvc repro --force index"
            )
        self._network = openvino.load(model, self.embedding.image_size, 1, "float32")

    def search(self, content: bytes, k: int) -> list[Hit]:
        """Find the k images most similar to an image file's content, best first.

        Raises ImageError if it cannot be decoded, LookalikeError for a k below 1 or above the number of images.
        """
        if not 1 <= k <= len(self.paths):
            raise LookalikeError(
                f"k is {k}, but the index holds {len(self.paths)} images; choose 1 to {len(self.paths)}"
            )
        pixels = images.fit(images.decode(content, MAX_PIXELS), self.embedding.image_size, self.embedding.fit)
        cosines, rows = self.searcher.search(self._network(pixels[np.newaxis]), k)
        return [
            Hit(str(self.paths[row]), str(self.labels[row]), float(cosine))
            for cosine, row in zip(cosines[0], rows[0], strict=True)
            if row >= 0  # an approximate index may reach fewer images than it holds
        ]


def main() -> None:
    """Read the arguments, then search for each picture."""
    parser = stage.door("search", __doc__)
    parser.add_argument("pictures", type=Path, nargs="+", help="image files to search with")
    parser.add_argument("-k", type=int, default=10, help="hits of each (default: %(default)s)")
    parser.add_argument("--index", type=Path, default=Path("data/index"), help="default: %(default)s")
    parser.add_argument("--model", type=Path, default=Path("data/model"), help="default: %(default)s")
    args = parser.parse_args()
    opened = PictureSearch(args.index, args.model)
    for picture in args.pictures:
        try:
            hits = opened.search(picture.read_bytes(), args.k)
        except images.ImageError as error:
            raise LookalikeError(f"{picture}: {error}") from None
        if len(hits) < args.k:
            stage.notice("search", f"the approximate index reached {len(hits)} images only; index.kind flat finds all")
        if len(args.pictures) > 1:
            print(picture)
        for rank, hit in enumerate(hits, start=1):
            print(f"{rank:4}  {hit.cosine:7.4f}  {hit.label:20}  {hit.path}")


if __name__ == "__main__":
    stage.run("search", main)
