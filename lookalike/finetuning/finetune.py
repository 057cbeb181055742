"""From a network and its material to the trained network: what the stage and the benchmark share."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import to_builtins

from lookalike.artifacts.arrays import Images
from lookalike.artifacts.descriptions import Network
from lookalike.base import user_cache
from lookalike.base.errors import LookalikeError
from lookalike.finetuning import cut as parts
from lookalike.finetuning import frozen_outputs
from lookalike.finetuning.checkpoint import Progress
from lookalike.finetuning.cut import Cut
from lookalike.finetuning.settings import Settings
from lookalike.finetuning.trainer import Trainer, embedded, through
from lookalike.finetuning.training_images import Material
from lookalike.networks import backbones
from lookalike.networks.keras_setup import keras, tf
from lookalike.runtimes.code_digest import code_digest

# Beside this package: what computes a training's bits, and the validation mAP by which the best epoch is chosen.
DECIDES = (
    "networks/backbones.py", "evaluation/measure.py", "refinement/faiss_setup.py", "evaluation/metrics.py",
    "evaluation/ranking.py", "refinement/refinement.py", "networks/keras_setup.py", "base/vectors.py",
)  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """A trained network, and how the training went."""

    cut: Cut
    model: keras.Model  # what was trained
    head: bool
    trainer: Trainer

    @property
    def progress(self) -> Progress:
        """How the training went."""
        return self.trainer.progress

    def save(self, folder: Path) -> Network:
        """Write the network files; returns what they describe."""
        whole, pooling = parts.joined(self.cut, self.model, self.head)
        network = self.cut.network
        return backbones.save(whole, network.backbone, "finetuned", pooling, folder, mirror=network.mirror)

    def figures(self) -> dict[str, Any]:
        """What the trace in Git tells of it."""
        return {
            "epochs": self.progress.epoch,
            "best_epoch": self.progress.best_epoch,
            "validation_mAP_start": round(self.progress.start, 6),
            "validation_mAP": round(self.progress.best, 6),
        }

    def summary(self) -> str:
        """The same for a person, in a line."""
        progress = self.progress
        if progress.best < 0:
            return f"{progress.epoch} epochs on {len(self.trainer.material.train)} images, without validation"
        return (
            f"{progress.epoch} epochs on {len(self.trainer.material.train)} images; validation mAP "
            f"{progress.start:.4f} -> {progress.best:.4f} in epoch {progress.best_epoch}"
        )


def tune(
    images: Images, folder: Path, material: Material, settings: Settings, log: Callable[[dict[str, float]], None]
) -> Tuned:
    """Train what lies behind `finetune.layer` of the network in `folder`, or go on with a training that was killed.

    log  takes a row of figures after each epoch.

    Raises LookalikeError, one line with the way out, for settings that do not fit the network.
    """
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(settings.seed)
    cut, name, outputs = _frozen(images, folder, settings)
    model = parts.trainable(cut, settings.head, settings.precision)
    if settings.head:
        views = [_to_head(cut, model, view, material.train) for view in outputs]
        parts.start_head(model, views, images.labels[material.train])
    training = _digest(name, settings, [material.train, material.queries, material.gallery], images.labels)
    trainer = Trainer(
        model, outputs, images.labels, material, settings, user_cache.folder("trainings") / training,
        mirror=cut.network.mirror,
    )  # fmt: skip
    trainer.run(log)
    return Tuned(cut, model, settings.head, trainer)


def untrained(images: Images, folder: Path, settings: Settings) -> np.ndarray:
    """What the network in `folder` makes of the images as it came: float32 (N, D)."""
    cut, _, outputs = _frozen(images, folder, settings)
    model = (lambda block: block) if cut.last else partial(parts.trainable(cut, False, "float32"), training=False)
    return embedded(model, outputs, np.arange(len(images.pixels)), mirror=cut.network.mirror)


def _frozen(images: Images, folder: Path, settings: Settings) -> tuple[Cut, str, np.ndarray]:
    """Where the network is cut, the name of what is kept of its frozen layers, and that, (V, N, ...)."""
    cut = parts.cut(folder, settings.layer, settings.head, images.pixels.shape[1])
    if cut.network.mirror and not (settings.flip and settings.views > 1):
        raise LookalikeError(
            "model.mirror is true, so mirror images show the same class, but finetune draws none: set finetune.flip to "
            "true and finetune.views to 2 or more"
        )
    name = frozen_outputs.key(images, cut, settings)
    return cut, name, frozen_outputs.outputs(images, cut, settings, name)


def _to_head(cut: Cut, model: keras.Model, view: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What comes to the head, float32 (n, D), of one view's frozen outputs, (N, ...)."""
    if cut.last:
        return np.asarray(view[rows])
    before = keras.Model(model.input, model.get_layer("unit").input)  # (B, 1, 1, D)
    return through(lambda block: before(block, training=False), view, rows).reshape(len(rows), -1)


def _code() -> str:
    """Digest of the code that decides a training's bits."""
    return code_digest([*Path(__file__).parent.glob("*.py"), *DECIDES])


def _digest(name: str, settings: Settings, rows: list[np.ndarray], labels: np.ndarray) -> str:
    """Name of a training's checkpoint: everything that decides its bits."""
    chosen = to_builtins(settings)
    del chosen["networks"]  # whether there is one
    digest = hashlib.sha256(json.dumps([name, _code(), chosen]).encode())
    for each in rows:
        digest.update(each.tobytes())
    digest.update("\n".join(labels.tolist()).encode())
    return digest.hexdigest()
