"""Refine every embedding and build the search index.

Reads   data/features                   features.npy float32 (N, D), image_paths.npy, labels.npy
        index.tags.file                 words of the images, if it names a file
Writes  data/index/index.faiss          N refined unit vectors of d dimensions, searchable by cosine
        data/index/mean.npy             float32, (D,), and
        data/index/components.npy       float32, (D, d): the projection of a query; empty without PCA
        data/index/index.json           the chosen index, the reason, its recall; settings, N, d
        data/index/image_paths.npy      str, (N,): row i names vector i
        data/index/embedding.json       network, image size and fit, which a query must share
        data/index/labels.npy           str, (N,): classes, "" for none
        data/index/tags*                words of the images, if there are any (lookalike/index/tags.py)
        data/index.json                 counts, and each file's digest, which a search verifies; for Git

    python stages/index.py data/features data/index
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.artifacts.arrays import load_collection
from lookalike.artifacts.descriptions import load_embedding
from lookalike.base import params, script
from lookalike.base.files import digests, new_folder, write_json
from lookalike.base.script import progress_bar
from lookalike.index import build, tags
from lookalike.index import files as index_files
from lookalike.index.build import fit


def main() -> None:
    """Read the arguments, then build and save the index."""
    parser = script.parser(__doc__)
    parser.add_argument("features", type=Path, help="output folder of extract")
    parser.add_argument("index", type=Path, help="folder to write; replaced as a whole")
    args = parser.parse_args()
    settings = params.load(args.params, "index", build.Settings)
    collection, embedding = load_collection(args.features), load_embedding(args.features)
    texts = {} if settings.tags.file == params.UNUSED else tags.read(Path(settings.tags.file), collection.paths)

    with progress_bar("index", len(collection.paths), "vector") as bar:

        def progress(rows: int) -> None:
            if bar.n >= len(collection.paths):  # the next candidate index is built
                bar.reset()
            bar.update(rows)

        refinement, tuned, why = fit(collection.features, settings, progress)
    with new_folder(args.index) as folder:
        index_files.save(tuned, why, refinement, settings, collection.paths, collection.labels, folder)
        embedding.save(folder)
        if texts:
            by_path = {str(collection.paths[row]): text for row, text in texts.items()}
            tags.Tags.fit(texts, settings.tags.weight).save(folder, by_path)
        files = digests(folder)
        size = (folder / build.INDEX_FILE).stat().st_size
    index, design = tuned.index, tuned.index.design
    trace = {
        "kind": design.kind,
        "storage": design.storage,
        "effort": design.effort,
        "recall@10": round(tuned.recall, 6),
        "images": len(index),
        "dim": index.dim,
        "bytes": size,
        "classes": len(set(collection.labels.tolist()) - {""}),
        **({"tagged": len(texts)} if texts else {}),
        "files": [files],  # in a list, so that DVC reads no metrics from it
    }
    write_json(args.index.with_suffix(".json"), trace)
    looked = f"recall@10 {tuned.recall:.4f}, comparing {tuned.distances:.0f} vectors a query"
    script.notice("index", f"{design.kind}, {design.storage}: {why}; {looked}")


if __name__ == "__main__":
    script.run("index", main)
