"""The training loop: batches through the trained layers, a validation after each epoch, regular checkpoints."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.base.script import progress_bar
from lookalike.evaluation.measure import evaluate
from lookalike.evaluation.protocol import Split
from lookalike.finetuning import checkpoint, losses
from lookalike.finetuning.batches import Batches
from lookalike.finetuning.checkpoint import Progress
from lookalike.finetuning.settings import Settings
from lookalike.finetuning.training_images import Material
from lookalike.networks.keras_setup import keras, tf
from lookalike.refinement.refinement import OFF, Refinement

logger = logging.getLogger(__name__)

EMBED_BATCH = 256  # images per batch when embedding
SAVE_EVERY = 30.0  # seconds between checkpoints; a kill loses as much work
WARM_UP = 0.05  # share of all steps in which the learning rate rises


class Trainer:
    """A network's trainable part, its optimiser and the state of the training."""

    def __init__(
        self,
        model: keras.Model,
        frozen: np.ndarray,
        labels: np.ndarray,
        material: Material,
        settings: Settings,
        folder: Path,
        *,
        mirror: bool = False,
    ) -> None:
        """Prepare a training, or resume it from the checkpoint in `folder` if there is one.

        model     the trained layers: float32 (B, ...) -> (B, D).
        frozen    float32, (V, N, ...), the frozen layers' outputs for every view of every image.
        labels    str, (N,).
        material  the images to train and validate on.
        mirror    whether an embedding is the mean of those of views 0 and 1, the image and its mirror image.
        """
        self._model, self._frozen, self._labels, self._settings = model, frozen, labels, settings
        self.material, self._folder, self._mirror = material, folder, mirror
        codes = np.unique(labels, return_inverse=True)[1].astype(np.int32)
        self._batches = Batches(
            material.train, codes[material.train], settings.classes, settings.images, len(frozen), settings.seed
        )
        self._variables = model.trainable_variables
        self._optimizer = _optimizer(settings, len(self._batches))
        self._optimizer.build(self._variables)
        self._step = self._compile()
        self._embed = tf.function(lambda block: model(block, training=False), reduce_retracing=True, autograph=False)
        self.progress = Progress()
        self._best = self._weights()
        kept = checkpoint.load(folder)
        if kept:
            self.progress, arrays = kept
            self._best = arrays["best"]
            for variables, name in ((model.variables, "model"), (self._optimizer.variables, "optimizer")):
                for variable, value in zip(variables, arrays[name], strict=True):
                    variable.assign(value)

    def run(self, log: Callable[[dict[str, float]], None]) -> None:
        """Train to the end and leave the best weights in the model.

        log  called with a row of figures after each epoch, and first with those of a resumed training's earlier epochs.
        """
        progress, settings = self.progress, self._settings
        if progress.epoch or progress.step:
            logger.info(f"resumed in epoch {progress.epoch + 1} of {settings.epochs}")
        elif len(self.material.queries):
            progress.start = progress.best = (
                self._validate()
            )  # the untrained network is kept unless training improves it
        for row in progress.history:
            log(row)
        steps = len(self._batches)
        with progress_bar(
            "finetune", settings.epochs * steps, "batch", initial=progress.epoch * steps + progress.step
        ) as bar:
            while not progress.finished:
                self._epoch(bar)
                self._end_epoch(log)
                bar.set_postfix_str(f"epoch {progress.epoch}, best mAP {progress.best:.4f}", refresh=False)
        for variable, value in zip(self._model.variables, self._best, strict=True):
            variable.assign(value)

    def _epoch(self, bar: Any) -> None:
        progress, saved = self.progress, time.monotonic()
        for number, (rows, codes, views) in enumerate(self._batches.epoch(progress.epoch)):
            if number < progress.step:
                continue  # done before the training was killed
            block = tf.constant(self._frozen[views, rows])  # (P K, ...)
            progress.loss += float(self._step(block, tf.constant(codes)))
            progress.step = number + 1
            bar.update(1)
            if time.monotonic() - saved > SAVE_EVERY:
                self._save()
                saved = time.monotonic()

    def _end_epoch(self, log: Callable[[dict[str, float]], None]) -> None:
        progress, settings = self.progress, self._settings
        row = {"loss": progress.loss / len(self._batches)}
        progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
        if len(self.material.queries):
            row["validation_mAP"] = self._validate()
        if row.get("validation_mAP", np.inf) > progress.best:
            progress.best = row.get("validation_mAP", progress.best)
            progress.best_epoch, self._best = progress.epoch, self._weights()
        stale = progress.epoch - progress.best_epoch
        progress.finished = progress.epoch >= settings.epochs or stale >= settings.patience
        progress.history.append(row)
        self._save()
        log(row)

    def _validate(self) -> float:
        """Return the mAP of the validation queries, by cosine without refinement."""
        rows = np.concatenate([self.material.queries, self.material.gallery])
        vectors = self.embed(rows)
        asked = len(self.material.queries)
        split = Split(
            np.arange(asked), np.arange(asked, len(rows)), np.zeros((asked, 0), np.int64), "", ()
        )  # positions in `rows`
        gallery = vectors[asked:]
        refinement = Refinement.fit(gallery, OFF)
        found = evaluate(vectors, self._labels[rows], split, refinement, refinement.gallery(gallery), [1])
        return float(found.per_query["AP"].mean())

    def embed(self, rows: np.ndarray) -> np.ndarray:
        """Embed images as a search does, without augmentation: row numbers, int64 (n,) -> float32 (n, D)."""
        return embedded(self._embed, self._frozen, rows, mirror=self._mirror)

    def _weights(self) -> list[np.ndarray]:
        return [np.array(variable) for variable in self._model.variables]

    def _save(self) -> None:
        arrays = {
            "model": self._weights(),
            "best": self._best,
            "optimizer": [np.array(variable) for variable in self._optimizer.variables],
        }
        checkpoint.save(self._folder, self.progress, arrays)

    def _compile(self) -> Callable[[Any, Any], Any]:
        settings, model, optimizer, variables = self._settings, self._model, self._optimizer, self._variables

        def step(block: Any, codes: Any) -> Any:
            with tf.GradientTape() as tape:
                embeddings = tf.cast(model(block, training=False), tf.float32)  # batch norm as in a search
                embeddings = tf.math.l2_normalize(embeddings, axis=1)  # (B, D)
                loss = loss_of(embeddings, codes, settings)
                scaled = optimizer.scale_loss(loss)
            optimizer.apply(tape.gradient(scaled, variables), variables)
            return loss

        compiled: Callable[[Any, Any], Any] = tf.function(step, autograph=False)  # no branch depends on a tensor
        return compiled


def embedded(model: Callable[[Any], Any], frozen: np.ndarray, rows: np.ndarray, *, mirror: bool) -> np.ndarray:
    """Embed the images in `rows`, int64 (n,), from the frozen outputs, (V, N, ...): float32 (n, D)."""
    own = through(model, frozen[0], rows)
    return (own + through(model, frozen[1], rows)) / 2 if mirror else own


def through(model: Callable[[Any], Any], view: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Run a model on `rows`, int64 (n,), of one view's frozen outputs, (N, ...): float32 (n, ...)."""
    blocks = []
    for start in range(0, len(rows), EMBED_BATCH):
        part = rows[start : start + EMBED_BATCH]
        padded = np.pad(part, (0, EMBED_BATCH - len(part)), mode="edge")  # another shape may give other last bits
        blocks.append(np.asarray(model(tf.constant(view[padded])), np.float32)[: len(part)])
    return np.concatenate(blocks)


def loss_of(embeddings: Any, codes: Any, settings: Settings) -> Any:
    """Compute the loss chosen by finetune.loss."""
    if settings.loss == "supcon":
        return losses.supervised_contrastive(embeddings, codes, settings.temperature)
    if settings.loss == "triplet-hard":
        return losses.triplet_hard(embeddings, codes, settings.margin)
    return losses.triplet_semihard(embeddings, codes, settings.margin)


def _optimizer(settings: Settings, steps: int) -> Any:
    """Return AdamW; its learning rate rises linearly at first, then falls to zero along a cosine.

    Source: Loshchilov, Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """
    total = settings.epochs * steps
    warm_up = max(1, round(WARM_UP * total))
    rate = keras.optimizers.schedules.CosineDecay(
        settings.learning_rate / warm_up,
        max(1, total - warm_up),
        warmup_target=settings.learning_rate,
        warmup_steps=warm_up,
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay)
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.precision == "float16" else optimizer
