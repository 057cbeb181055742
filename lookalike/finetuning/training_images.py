"""Choice of the training images: from the gallery only, and none with the same bytes as a query."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED
from lookalike.evaluation import protocol
from lookalike.finetuning.settings import Settings


@dataclass(frozen=True)
class Material:
    """The images of a training, as sorted row numbers in the collection, int64.

    train     the images that the weights are fitted to.
    queries   validation queries, searched after each epoch; disjoint from the others. Empty without validation.
    gallery   validation gallery: `train` and the classes too small to train on. Empty without validation.
    held_out  names of the classes left out of training.
    notes     messages for the user.
    """

    train: np.ndarray
    queries: np.ndarray
    gallery: np.ndarray
    held_out: tuple[str, ...]
    notes: tuple[str, ...]


def choose(
    paths: np.ndarray, labels: np.ndarray, sha256: np.ndarray, protocol_settings: protocol.Settings, settings: Settings
) -> Material:
    """Split the gallery of section `protocol` into training and validation images.

    paths, labels, sha256  str, (N,) each, of the collection.

    Raises LookalikeError if there are too few labelled images or classes to train on.
    """
    if protocol_settings.kind == "leave-one-out":
        raise LookalikeError(
            "protocol.kind is leave-one-out: every image is a query, and none is left to fine-tune on; set it to "
            "holdout or lists"
        )
    split = protocol.split(paths, labels, sha256, protocol_settings)
    if split.unmeasurable:
        raise LookalikeError(
            f"finetune learns from classes, but {split.unmeasurable}; sort the images into subfolders or name a CSV in "
            "download.labels, or leave finetune.networks empty"
        )
    seen = split.gallery[~np.isin(sha256[split.gallery], sha256[split.queries])]
    seen = seen[labels[seen] != ""]
    names = np.unique(labels[seen])
    held_out = _draw_classes(names, settings, protocol_settings.seed)
    known = seen[~np.isin(labels[seen], held_out)]
    queries = gallery = np.zeros(0, np.int64)
    train = known
    if settings.validation:
        own = protocol.Settings(
            kind="holdout", fraction=settings.validation, seed=settings.seed, queries=UNUSED, gallery=UNUSED
        )
        inner = protocol.split(paths[known], labels[known], sha256[known], own)
        if inner.unmeasurable:
            raise LookalikeError(
                f"finetune.validation is {settings.validation}, but among the training images {inner.unmeasurable}; "
                "set it to 0"
            )
        queries, gallery = known[inner.queries], known[inner.gallery]
        train = gallery
    train, small = _large_enough(train, labels, settings)
    notes = tuple(
        f"{len(items)} classes {what}: {', '.join(items[:5])}{', ...' if len(items) > 5 else ''}"
        for items, what in (
            (list(held_out), "are held out of training"),
            (small, f"have fewer than finetune.images = {settings.images} images and are not trained on"),
        )
        if items
    )
    return Material(train, queries, gallery, held_out, notes)


def _draw_classes(names: np.ndarray, settings: Settings, split_seed: int) -> tuple[str, ...]:
    count = round(settings.held_out_classes * len(names))
    if settings.held_out_classes and not count:
        raise LookalikeError(
            f"finetune.held_out_classes is {settings.held_out_classes}, less than one of {len(names)} classes; set it "
            "to 0, or higher"
        )
    drawn = np.random.default_rng([settings.seed, split_seed]).choice(names, count, replace=False)
    return tuple(sorted(drawn.tolist()))


def _large_enough(train: np.ndarray, labels: np.ndarray, settings: Settings) -> tuple[np.ndarray, list[str]]:
    """Remove the classes with too few images for a batch. Raises LookalikeError if too few classes are left."""
    names, sizes = np.unique(labels[train], return_counts=True)
    if len(names) < 2:
        raise LookalikeError(
            f"finetune learns to tell classes apart, but there is only {len(names)} to train on"
            f"{': ' + repr(str(names[0])) if len(names) else ''}; it needs two, besides those that "
            "finetune.held_out_classes leaves out"
        )
    large = names[sizes >= settings.images]
    if len(large) < settings.classes:
        largest = int(np.sort(sizes)[::-1][: settings.classes][-1])
        raise LookalikeError(
            f"finetune.classes {settings.classes} and finetune.images {settings.images} ask for batches of "
            f"{settings.classes} classes with {settings.images} images each, but only {len(large)} of {len(names)} "
            f"classes have so many to train on; set finetune.classes to at most {max(len(large), 2)}"
            + (f", or finetune.images to at most {largest}" if largest >= 2 and len(names) >= settings.classes else "")
        )
    return train[np.isin(labels[train], large)], names[sizes < settings.images].tolist()


def counts(material: Material, labels: np.ndarray) -> dict[str, Any]:
    """Return the numbers of images and classes for data/finetuned.json."""
    return {
        "images": len(material.train),
        "classes": len(np.unique(labels[material.train])),
        "validation_images": len(material.queries),
        "held_out_classes": list(material.held_out),
    }
