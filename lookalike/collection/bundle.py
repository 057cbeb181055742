"""One folder to deploy: an index, the network that a query needs, and thumbnails; every file with its digest.

    bundle.json                  what it is
    index/, index.json           as the stage index wrote them
    model/, model.json           the network for OpenVINO; no Keras weights
    thumbnails/, thumbnails.json one file of small pictures, re-encoded without metadata
    metrics/, plots/             how good it is, where that was measured

Beside each of the three folders lies its trace, with digests; whoever opens a folder compares.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec import to_builtins

from lookalike.artifacts import descriptions
from lookalike.artifacts.descriptions import DESCRIPTION_FILE, OPENVINO_FILE, OPENVINO_WEIGHTS_FILE, check_same_network
from lookalike.base import files
from lookalike.base.errors import LookalikeError
from lookalike.base.files import new_folder, write_json
from lookalike.collection import thumbnails, verify
from lookalike.collection.picture_search import Pictures
from lookalike.collection.thumbnails import Thumbnails

DESCRIPTION = "bundle.json"
MODEL_FILES = (DESCRIPTION_FILE, OPENVINO_FILE, OPENVINO_WEIGHTS_FILE)


@dataclass(frozen=True)
class Source:
    """What a bundle is made of: folders that the stages wrote, and the pictures."""

    index: Path
    model: Path
    images: Path
    metrics: Path
    plots: Path


@dataclass(frozen=True)
class Bundle:
    """What was written."""

    folder: str
    images: int
    bytes: int
    fingerprint: str  # of the index


def write(
    out: Path,
    opened: Pictures,
    source: Source,
    *,
    without_changes: bool,
    progress: Callable[[int], Callable[[], object]],
) -> Bundle:
    """Write a bundle; it takes the place of one that was there.

    out              a new or an empty folder, or another bundle.
    without_changes  leave out what was added and removed since the index was built.
    progress         takes the number of pictures; what it returns is called after each.

    Raises LookalikeError where `out` is something else or has changes of its own, where there are changes, for a
    network that is not the index's, and for an image whose picture cannot be read.
    """
    if out.exists() and not _may_be_replaced(out):
        raise LookalikeError(f"{out} is there and is no bundle, so it was left as it is; name another folder")
    if (out / "changes").exists():
        raise LookalikeError(
            f"{out / 'changes'} keeps what was added to that bundle and removed from it, which a new one would lose; "
            "name another folder, or move it away"
        )
    changed = len(opened.gallery.state.changed)
    if changed and not without_changes:
        raise LookalikeError(
            f"{opened.gallery.journal.path} has changes of {changed} images that the index itself lacks, and so would "
            "the bundle; leave them out: --without-changes; or, where the images are a folder of yours, fold them and "
            "rebuild: lookalike fold, dvc repro"
        )
    check_same_network(opened.gallery.embedding, source.model)
    names = opened.gallery.state.names.paths
    pictures = Thumbnails(opened.gallery, source.images)
    with new_folder(out) as partial:
        _copy(source.index, partial / "index", sorted(path.name for path in source.index.iterdir()
                                                      if not path.name.startswith(".")))  # fmt: skip
        shutil.copyfile(verify.trace_of(source.index), partial / "index.json")
        if verify.has_digests(source.model):
            verify.verify(source.model, remedy="lookalike bundle")
        _copy(
            source.model,
            partial / "model",
            (*MODEL_FILES, *(descriptions.FILES if descriptions.present(source.model) else ())),
        )
        (partial / thumbnails.FOLDER).mkdir()
        one_more = progress(len(names))
        thumbnails.write((str(name) for name in names), pictures.own, partial / thumbnails.FOLDER, one_more)
        for name in ("model", thumbnails.FOLDER):
            write_json(partial / f"{name}.json", {"files": [files.digests(partial / name)]})
        _copy_report(source, partial)
        written = json.loads((partial / "index.json").read_text(encoding="utf-8"))["files"]
        if [files.digests(partial / "index")] != written:
            raise LookalikeError(f"{source.index} was written while it was copied; try again")
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        bundle = Bundle(str(out), len(names), size, opened.gallery.fingerprint)
        write_json(partial / DESCRIPTION, {**asdict(bundle), "embedding": to_builtins(opened.gallery.embedding)})
    return bundle


def _may_be_replaced(out: Path) -> bool:
    return out.is_dir() and not out.is_symlink() and ((out / DESCRIPTION).is_file() or not any(out.iterdir()))


def _copy(source: Path, target: Path, names: tuple[str, ...] | list[str]) -> None:
    target.mkdir()
    for name in names:
        try:
            shutil.copyfile(source / name, target / name)
        except FileNotFoundError:
            raise LookalikeError(f"{source / name} does not exist; make it: dvc repro") from None


def _copy_report(source: Source, target: Path) -> None:
    """How good it is, where that was measured: what the page of figures shows."""
    shown = [*source.metrics.glob("*.json"), *source.plots.glob("figures.csv"), *source.plots.glob("*.png")]
    for path in sorted(shown):
        folder = target / ("metrics" if path.suffix == ".json" else "plots")
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.name)
