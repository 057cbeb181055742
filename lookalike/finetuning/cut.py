"""The cut of a network into frozen and trained layers, and the joining of the two after training."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

from lookalike.artifacts.descriptions import Network, describe
from lookalike.base.errors import LookalikeError, closest
from lookalike.base.vectors import unit_length
from lookalike.networks import backbones
from lookalike.networks.keras_setup import keras
from lookalike.networks.sizes import check_size
from lookalike.networks.vit_presets import TOWERS

POOLING = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
HEAD = "head"  # name of the head's layer
SHRINK = 0.3  # shrinkage, chosen on validation queries; 0.03 and 1 are little worse (docs/results/finetuning.md)


@dataclass(frozen=True)
class Cut:
    """The place where a network is cut.

    folder      folder of the network files.
    layer       the last frozen layer.
    last        whether it is the network's last, so that only the head is trained.
    image_size  pixels a side.
    shape       shape of an image's frozen output: pooled, (D,), if `last`, else a feature map.
    """

    folder: Path
    network: Network
    layer: str
    last: bool
    image_size: int
    shape: tuple[int, ...]


def cut(folder: Path, layer: str, head: bool, image_size: int) -> Cut:
    """Cut the network in `folder` behind `layer`, "" for the last.

    Raises LookalikeError for an unknown layer, a layer that a path through the network bypasses, or if there would be
    nothing to train.
    """
    network = describe(folder)
    check_size(network, image_size)
    if network.backbone in TOWERS:
        raise LookalikeError(
            f"{folder} is {network.backbone}, a vision transformer; finetune trains convolutional networks only; "
            "choose another model.backbone, or leave finetune.networks empty"
        )
    features = backbones.load_features(folder, "float32")
    names = [item.name for item in features.layers]
    name = layer or names[-1]
    if name not in names:
        raise LookalikeError(
            f"finetune.layer is {name!r}, but {folder} ({network.backbone}) has no such layer; {closest(name, names)}"
        )
    if head and network.pooling not in POOLING:
        raise LookalikeError(
            f"finetune.head is true, but a head needs model.pooling {' or '.join(POOLING)}, not {network.pooling}; "
            "set it to false, and train layers of the backbone"
        )
    last = name == names[-1]
    if not last:
        _behind(features, name)
    elif not head:
        raise LookalikeError(
            f"finetune.layer is {name!r}, the last, and finetune.head is false: nothing is left to train; choose an "
            "earlier layer, or a head"
        )
    if last:
        shape: tuple[int, ...] = (network.dim,)
    else:
        inputs = keras.Input((image_size, image_size, 3))
        shape = keras.Model(features.input, features.get_layer(name).output)(inputs).shape[1:]
    return Cut(folder, network, name, last, image_size, tuple(shape))


def trainable(where: Cut, head: bool, precision: str) -> keras.Model:
    """Return the trained part of the network: float32 (B, *shape) -> float32 (B, D)."""
    inputs = keras.Input(where.shape)
    if where.last:
        vectors = inputs
    else:
        behind = _behind(backbones.load_features(where.folder, precision), where.layer)
        for item in behind.layers:
            if isinstance(item, keras.layers.BatchNormalization):
                item.trainable = False  # training uses the same fixed statistics as a search
        vectors = backbones.pool(
            keras.ops.cast(behind(inputs, training=False), "float32"), where.network.pooling, where.network.backbone
        )
    if head:
        vectors = keras.ops.reshape(vectors, (-1, 1, 1, where.network.dim))
        for layer in _head(where.network.dim):
            vectors = layer(vectors)
        vectors = keras.ops.reshape(keras.ops.cast(vectors, "float32"), (-1, where.network.dim))
    return keras.Model(inputs, vectors)


def start_head(model: keras.Model, views: list[np.ndarray], classes: np.ndarray) -> None:
    """Set the head's initial weights to within-class whitening, which damps what varies within classes.

        W = (S + s I)^(-1/2),   S = mean over classes of the covariance within each,   s = SHRINK * mean variance of S

    The root is symmetric, so that it changes every dimension as little as possible and index.refine.power still finds
    dominant channels to damp. It is a closed form that learns nothing about a particular class, so that classes outside
    the training gain too.

    views    float32, (n, D) each, input of the head for every view of the training images, the images themselves first.
    classes  str, (n,).

    Source: Hatch, Kajarekar, Stolcke, Within-class covariance normalization for SVM-based speaker recognition,
    Interspeech 2006, equations 9 and 13 (shrinkage).
    """
    head = model.get_layer(HEAD)
    unit = np.stack([unit_length(each) for each in views]).astype(np.float64)  # (V, n, D)
    within = np.zeros((unit.shape[2], unit.shape[2]))
    codes = np.unique(classes)
    for code in codes:
        own = unit[:, classes == code].reshape(-1, unit.shape[2])
        own = own - own.mean(axis=0)
        within += own.T @ own / len(own) / len(codes)
    mean = unit[0].mean(axis=0)
    with threadpool_limits(1):  # as in lookalike/refinement/refinement.py: several threads sum in another order
        variances, directions = scipy.linalg.eigh(within)
        whitening = (directions * (variances + SHRINK * variances.mean()) ** -0.5) @ directions.T
        whitening /= np.linalg.norm((unit[0] - mean) @ whitening, axis=1).mean()
        bias = -mean @ whitening
    head.set_weights([whitening.astype(np.float32)[None, None], bias.astype(np.float32)])  # (1, 1, D, D), (D,)


def joined(where: Cut, trained: keras.Model, head: bool) -> tuple[keras.Model, str]:
    """Return the whole network in float32 with the trained weights, without pixel normalisation, and its pooling.

    A head becomes part of the network: it follows the pooling, and average pooling leaves its output, (B, 1, 1, D),
    unchanged.
    """
    features = backbones.load_features(where.folder, "float32")
    parts = [] if where.last else [_behind(features, where.layer)]
    output, pooling = features.output, where.network.pooling
    if head:
        output = POOLING[pooling](keepdims=True, name="pooled")(output)
        for layer in _head(where.network.dim):
            output = layer(output)
        pooling = "avg"
    whole = keras.Model(features.input, output)
    # The layers behind the cut are the same objects in `features` and in `parts`.
    values = trained.get_weights()
    targets = [variable for part in parts for variable in part.weights]
    if head:
        targets += whole.get_layer(HEAD).weights
    for variable, value in zip(targets, values, strict=True):
        variable.assign(value)
    return whole, pooling


def _behind(features: keras.Model, layer: str) -> keras.Model:
    """Return the network behind a layer; it shares its weights with `features`."""
    try:
        return keras.Model(features.get_layer(layer).output, features.output)
    except ValueError:
        raise LookalikeError(
            f"finetune.layer is {layer!r}, but some paths through the network bypass it; choose one that all paths "
            f"pass: {', '.join(_meeting(features))}"
        ) from None


def _meeting(features: keras.Model) -> list[str]:
    """Return the names of the layers that every path from the input to the output passes."""
    found = []
    for item in features.layers[:-1]:
        try:
            keras.Model(item.output, features.output)
        except ValueError:
            continue
        found.append(item.name)
    return found


def _head(dim: int) -> list[keras.layers.Layer]:
    """Return the head's layers: (B, 1, 1, dim) -> the same shape."""
    return [keras.layers.UnitNormalization(axis=-1, name="unit"), keras.layers.Conv2D(dim, 1, name=HEAD)]
