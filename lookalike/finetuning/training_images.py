"""Which images a training may see: of the gallery only, and none whose bytes a query has too."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED
from lookalike.evaluation import protocol
from lookalike.finetuning.settings import Settings


@dataclass(frozen=True)
class Material:
    """Row numbers in the collection, int64, sorted; disjoint but for what is said.

    train     what the weights are fitted to.
    queries   validation: searched for after each epoch
    gallery   among these, `train` and the classes too small to train on; both empty without validation.
    held_out  names of the classes that were left out of training altogether.
    notes     what a reader should know, a sentence each.
    """

    train: np.ndarray
    queries: np.ndarray
    gallery: np.ndarray
    held_out: tuple[str, ...]
    notes: tuple[str, ...]


def choose(
    paths: np.ndarray, labels: np.ndarray, sha256: np.ndarray, protocol_settings: protocol.Settings, settings: Settings
) -> Material:
    """Divide the gallery of the `protocol` split, given as str (N,) arrays of the collection.

    Raises LookalikeError, one line with the way out, where there is nothing that a metric could be learnt from.
    """
    if protocol_settings.kind == "leave-one-out":
        raise LookalikeError(
            "protocol.kind is leave-one-out: every image is a query, and none is left to fine-tune on; set it to "
            "holdout or lists"
        )
    split = protocol.split(paths, labels, sha256, protocol_settings)
    if split.unmeasurable:
        raise LookalikeError(f"finetune learns from classes, but {split.unmeasurable}; sort the images into subfolders "
                             "or name a CSV in download.labels, or leave finetune.networks empty")  # fmt: skip
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
            raise LookalikeError(f"finetune.validation is {settings.validation}, but in what may be trained on "
                                 f"{inner.unmeasurable}; set it to 0")  # fmt: skip
        queries, gallery = known[inner.queries], known[inner.gallery]
        train = gallery
    train, small = _large_enough(train, labels, settings)
    notes = tuple(
        f"{len(items)} classes {what}: {', '.join(items[:5])}{', ...' if len(items) > 5 else ''}"
        for items, what in (
            (list(held_out), "are held out of training"),
            (small, f"have fewer than finetune.images {settings.images} images to train on: not trained on"),
        )
        if items
    )
    return Material(train, queries, gallery, held_out, notes)


def _draw_classes(names: np.ndarray, settings: Settings, split_seed: int) -> tuple[str, ...]:
    count = round(settings.held_out_classes * len(names))
    if settings.held_out_classes and not count:
        raise LookalikeError(
            f"finetune.held_out_classes is {settings.held_out_classes}, less than one of {len(names)} classes; "
            "set it to 0, or higher"
        )
    drawn = np.random.default_rng([settings.seed, split_seed]).choice(names, count, replace=False)
    return tuple(sorted(drawn.tolist()))


def _large_enough(train: np.ndarray, labels: np.ndarray, settings: Settings) -> tuple[np.ndarray, list[str]]:
    """Leave out the classes with too few images for a batch; check that enough are left."""
    names, sizes = np.unique(labels[train], return_counts=True)
    if len(names) < 2:
        raise LookalikeError(
            f"finetune learns to tell classes apart, but there is only {len(names)} to train on"
            f"{': ' + repr(str(names[0])) if len(names) else ''}; it takes two, beside those that "
            "finetune.held_out_classes leaves out"
        )
    large = names[sizes >= settings.images]
    if len(large) < settings.classes:
        largest = int(np.sort(sizes)[::-1][: settings.classes][-1])
        raise LookalikeError(
            f"finetune.classes {settings.classes} and finetune.images {settings.images} ask for batches of "
            f"{settings.classes} classes with {settings.images} images each, but {len(large)} of {len(names)} classes "
            f"have so many to train on; set finetune.classes to at most {max(len(large), 2)}"
            + (f", or finetune.images to at most {largest}" if largest >= 2 and len(names) >= settings.classes else "")
        )
    return train[np.isin(labels[train], large)], names[sizes < settings.images].tolist()


def counts(material: Material, labels: np.ndarray) -> dict[str, Any]:
    """What the trace in Git tells of it."""
    return {
        "images": len(material.train),
        "classes": len(np.unique(labels[material.train])),
        "validation_images": len(material.queries),
        "held_out_classes": list(material.held_out),
    }
