"""Fine-tuning of a network on its training images, shared by the stage and the benchmark."""

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

# Modules outside this package that decide a training's bits, or the validation mAP that chooses the best epoch.
DECIDES = (
    "networks/backbones.py",
    "evaluation/measure.py",
    "refinement/faiss_setup.py",
    "evaluation/metrics.py",
    "evaluation/ranking.py",
    "refinement/refinement.py",
    "refinement/reranking.py",
    "networks/keras_setup.py",
    "base/vectors.py",
)


@dataclass(frozen=True)
class Tuned:
    """A trained network and the course of its training."""

    cut: Cut
    model: keras.Model  # the trained part
    head: bool
    trainer: Trainer

    @property
    def progress(self) -> Progress:
        """The training's epochs and figures."""
        return self.trainer.progress

    def save(self, folder: Path) -> Network:
        """Write the network files and return the network's description."""
        whole, pooling = parts.joined(self.cut, self.model, self.head)
        network = self.cut.network
        return backbones.save(whole, network.backbone, "finetuned", pooling, folder, mirror=network.mirror)

    def figures(self) -> dict[str, Any]:
        """Return the training's figures for data/finetuned.json."""
        return {
            "epochs": self.progress.epoch,
            "best_epoch": self.progress.best_epoch,
            "validation_mAP_start": round(self.progress.start, 6),
            "validation_mAP": round(self.progress.best, 6),
        }

    def summary(self) -> str:
        """Return the training's figures as one line of text."""
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
    """Train the layers behind `finetune.layer` of the network in `folder`, or resume a training that was killed.

    log  called with a row of figures after each epoch.

    Raises LookalikeError for settings that do not fit the network.
    """
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(settings.seed)
    cut, name, outputs = _frozen(images, folder, settings)
    model = parts.trainable(cut, settings.head, settings.precision)
    if settings.head:
        views = [_to_head(cut, model, view, material.train) for view in outputs]
        parts.start_head(model, views, images.labels[material.train])
    training = _digest(name, settings, [material.train, material.queries, material.gallery], images.labels)
    folder = user_cache.folder("trainings") / training
    trainer = Trainer(model, outputs, images.labels, material, settings, folder, mirror=cut.network.mirror)
    trainer.run(log)
    return Tuned(cut, model, settings.head, trainer)


def untrained(images: Images, folder: Path, settings: Settings) -> np.ndarray:
    """Embed all images with the untrained network in `folder`: float32 (N, D)."""
    cut, _, outputs = _frozen(images, folder, settings)
    model = (lambda block: block) if cut.last else partial(parts.trainable(cut, False, "float32"), training=False)
    return embedded(model, outputs, np.arange(len(images.pixels)), mirror=cut.network.mirror)


def _frozen(images: Images, folder: Path, settings: Settings) -> tuple[Cut, str, np.ndarray]:
    """Return the cut, the cache key of the frozen outputs, and the frozen outputs, (V, N, ...)."""
    cut = parts.cut(folder, settings.layer, settings.head, images.pixels.shape[1])
    if cut.network.mirror and not (settings.flip and settings.views > 1):
        raise LookalikeError(
            "model.mirror is true, so an embedding needs the mirror image, but finetune draws none: set finetune.flip "
            "to true and finetune.views to 2 or more"
        )
    name = frozen_outputs.key(images, cut, settings)
    return cut, name, frozen_outputs.outputs(images, cut, settings, name)


def _to_head(cut: Cut, model: keras.Model, view: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Compute the head's input, float32 (n, D), from one view's frozen outputs, (N, ...)."""
    if cut.last:
        return np.asarray(view[rows])
    before = keras.Model(model.input, model.get_layer("unit").input)  # (B, 1, 1, D)
    return through(lambda block: before(block, training=False), view, rows).reshape(len(rows), -1)


def _code() -> str:
    """Return a digest of the code that decides a training's bits."""
    return code_digest([*Path(__file__).parent.glob("*.py"), *DECIDES])


def _digest(name: str, settings: Settings, rows: list[np.ndarray], labels: np.ndarray) -> str:
    """Return the name of a training's checkpoint, a digest of everything that decides its bits."""
    chosen = to_builtins(settings)
    del chosen["networks"]  # only says whether the stage runs
    digest = hashlib.sha256(json.dumps([name, _code(), chosen]).encode())
    for each in rows:
        digest.update(each.tobytes())
    digest.update("\n".join(labels.tolist()).encode())
    return digest.hexdigest()
