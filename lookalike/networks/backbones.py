"""Networks by name as image embedders: cut at a layer, pooled to one vector, saved, loaded.

Convolutional networks come from keras.applications, vision transformers from KerasHub (vit.py).

The architecture is saved with the weights, because a builder may create another one next time: EfficientNetB0 to B7
have an extra layer with ImageNet weights.
"""

import hashlib
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import to_builtins

from lookalike.artifacts.descriptions import (
    ARCHITECTURE_FILE,
    DESCRIPTION_FILE,
    OPENVINO_FILE,
    WEIGHTS_FILE,
    Network,
    describe,
)
from lookalike.base import machine
from lookalike.base.errors import LookalikeError, closest
from lookalike.base.files import write_json
from lookalike.networks import vit
from lookalike.networks.keras_setup import keras, usable
from lookalike.networks.sizes import check_size, only_size
from lookalike.networks.vit_presets import TOWERS

POOLINGS = ("avg", "max", "gem")  # poolings of a convolutional network
GEM_POWER = 3.0  # Radenovic, Tolias, Chum, Fine-tuning CNN Image Retrieval with No Human Annotation, 2018, section 3.2


def names() -> list[str]:
    """Return all backbones: those of keras.applications with a preprocess function, sorted, then the transformers."""
    return sorted(_registry()) + list(TOWERS)


def _registry() -> dict[str, tuple[Callable[..., keras.Model], ModuleType]]:
    applications = keras.applications
    modules = [module for module in vars(applications).values() if isinstance(module, ModuleType)]
    registry = {
        name: (builder, module)
        for module in modules
        if hasattr(module, "preprocess_input")
        for name, builder in vars(module).items()
        if name[0].isupper() and callable(builder)
    }
    for name in ("MobileNetV3Small", "MobileNetV3Large"):  # their builders are not in their module
        registry[name] = (getattr(applications, name), applications.mobilenet_v3)
    return registry


def create(backbone: str, weights: str, file: Path, layer: str, seed: int, pooling: str = "avg") -> keras.Model:
    """Build a backbone without its classifier, with weights, cut behind `layer` ("" for the last feature map).

    weights  "random": drawn with `seed`; "imagenet" or, for a transformer, "preset": downloaded and verified by Keras
             or KerasHub; "file": read from `file`.
    pooling  the pooling that will be passed to `save`; "head" keeps a transformer's own head.

    Raises LookalikeError for an unknown name, layer or pooling, weights that do not fit, or a download that fails.
    """
    check(backbone, weights, pooling)
    return cut(build(backbone, weights, file, seed), backbone, layer, pooling)


def build(backbone: str, weights: str, file: Path, seed: int) -> keras.Model:
    """Build a whole backbone: up to its last feature map, or both towers of CLIP and SigLIP. See `create`."""
    keras.backend.clear_session()  # otherwise numbers in layer names continue from an earlier network
    keras.utils.set_random_seed(seed)
    if backbone in TOWERS:
        whole = vit.from_preset(backbone) if weights == "preset" else vit.build(backbone)
        if weights == "file":
            _load_weights(whole, file / vit.WEIGHTS_FILE if file.is_dir() else file, backbone)
        return whole
    if weights == "file" and re.fullmatch(r"EfficientNetB\d", backbone):
        raise LookalikeError(
            f"model.weights is file, but Keras builds {backbone} with an extra layer for its own ImageNet weights, and "
            "a file does not say which variant it is for; use model.weights=imagenet, or EfficientNetV2"
        )
    if weights == "imagenet":
        whole = _with_imagenet(backbone)
    else:
        whole = _build(backbone, None)
        if weights == "file":
            _load_weights(whole, file, backbone)
    return whole


def save(
    model: keras.Model, backbone: str, weights: str, pooling: str, folder: Path, *, mirror: bool = False
) -> Network:
    """Write the network files and return the network's description."""
    (folder / ARCHITECTURE_FILE).write_text(model.to_json(indent=1) + "\n", encoding="utf-8")
    _check_room(model, folder)
    model.save_weights(folder / WEIGHTS_FILE)
    fingerprint = hashlib.sha256((pooling + " mirror" * mirror).encode())
    for name in (ARCHITECTURE_FILE, WEIGHTS_FILE):
        fingerprint.update((folder / name).read_bytes())
    network = Network(
        backbone,
        weights,
        model.layers[-1].name,
        pooling,
        model.output.shape[-1],
        model.count_params(),
        fingerprint.hexdigest(),
        mirror,
    )
    from lookalike.networks.openvino_setup import convert  # imported here because loading with Keras does not need it
    from lookalike.networks.openvino_setup import save as save_openvino

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The structure of `inputs`")  # the converter passes a tuple
        converted = convert(_embedder(model, network, only_size(backbone)))
    save_openvino(converted, folder / OPENVINO_FILE)
    write_json(folder / DESCRIPTION_FILE, to_builtins(network))
    return network


def _check_room(model: keras.Model, folder: Path) -> None:
    """Raise OSError unless the disk has room for the weights, because HDF5 crashes when the disk is full."""
    size = sum(4 * math.prod(variable.shape) + 8192 for variable in model.variables) + (
        1 << 20
    )  # bytes, an upper bound
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)


def load(folder: Path, image_size: int, precision: str) -> keras.Model:
    """Load a network as one model from pixels to embedding: uint8 (B, S, S, 3) -> float32 (B, D).

    precision  "float32", or "float16" / "bfloat16" for the convolutions, with variables and pooling in float32.

    The model includes the backbone's own normalisation of pixel values.
    """
    network = describe(folder)
    check_size(network, image_size)
    return _embedder(load_features(folder, precision), network, image_size)


def load_features(folder: Path, precision: str) -> keras.Model:
    """Load a network without pixel normalisation and pooling: float32 (B, S, S, 3) -> the input of `pool`.

    precision  as in `load`.
    """
    network = describe(folder)
    _check_name(network.backbone)
    keras.backend.clear_session()
    if network.backbone in TOWERS:
        vit.library()  # registers KerasHub's layers with Keras
    try:
        architecture = json.loads((folder / ARCHITECTURE_FILE).read_text(encoding="utf-8"))
    except ValueError:
        raise LookalikeError(
            f"{folder / ARCHITECTURE_FILE} does not describe a network; make it anew: dvc repro --force model"
        ) from None
    if precision != "float32":
        if not usable(precision):
            raise LookalikeError(
                f"TensorFlow cannot compute in {precision} on this processor "
                f"({', '.join([machine.cpu_name(), *machine.environment('ONEDNN_')])}); set the precision to float32"
            )
        _set_policy(architecture, f"mixed_{precision}")
    cut = keras.models.model_from_json(json.dumps(architecture))
    _load_weights(cut, folder / WEIGHTS_FILE, network.backbone)
    return cut


def preprocess(pixels: Any, backbone: str) -> Any:
    """Normalise pixel values as the backbone expects them: uint8 (B, S, S, 3) -> float32, same shape."""
    values = keras.ops.cast(pixels, "float32")
    if backbone in TOWERS:
        return vit.normalise(values, backbone)
    return _registry()[backbone][1].preprocess_input(values)


def _embedder(cut: keras.Model, network: Network, image_size: int | None) -> keras.Model:
    """Add normalisation before a feature network and pooling after it; `image_size` None allows any size.

    With `network.mirror`, an embedding is the mean of the image's and its mirror image's (test-time augmentation).
    Source: Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep CNNs, 2012, section 4.1.
    """
    inputs = keras.Input((image_size, image_size, 3), dtype="uint8")
    pixels = keras.ops.concatenate([inputs, inputs[:, :, ::-1]]) if network.mirror else inputs  # (2 B, S, S, 3)
    try:
        features = cut(preprocess(pixels, network.backbone), training=False)
    except ValueError as error:  # the picture is so small that a feature map would be empty before the last layer
        raise LookalikeError(
            f"{network.backbone} at preprocess.image_size {image_size}: {' '.join(str(error).split())[:200]}; "
            "choose a larger size, or an earlier model.layer"
        ) from None
    vectors = pool(keras.ops.cast(features, "float32"), network.pooling, network.backbone)
    if network.mirror:
        vectors = keras.ops.mean(keras.ops.reshape(vectors, (2, -1, network.dim)), axis=0)
    return keras.Model(inputs, vectors)


def _set_policy(node: Any, policy: str) -> None:
    """Change the dtype policy of every layer in an architecture."""
    if isinstance(node, dict):
        if node.get("class_name") == "DTypePolicy":
            node["config"]["name"] = policy
        for value in node.values():
            _set_policy(value, policy)
    elif isinstance(node, list):
        for value in node:
            _set_policy(value, policy)


def pool(features: Any, pooling: str, backbone: str) -> Any:
    """Pool a network's output to one vector per image, (B, D).

    features  float32, a feature map (B, H, W, D), or a transformer's tokens (B, T, D), or (B, D) from its own head.
    """
    if pooling == "head":
        return features
    if pooling == "cls":
        return features[:, 0]
    if backbone in TOWERS:
        features = features[:, TOWERS[backbone].special_tokens :]
    axes = tuple(range(1, len(features.shape) - 1))  # (B, H, W, D) or (B, T, D) -> (B, D)
    if pooling == "max":
        return keras.ops.max(features, axis=axes)
    if pooling == "gem":
        powers = keras.ops.power(keras.ops.maximum(features, 1e-6), GEM_POWER)
        return keras.ops.power(keras.ops.mean(powers, axis=axes), 1 / GEM_POWER)
    return keras.ops.mean(features, axis=axes)


def _check_name(backbone: str) -> None:
    if backbone not in TOWERS and backbone not in _registry():
        raise LookalikeError(f"model.backbone is {backbone!r}; {closest(backbone, names())}")


def check(backbone: str, weights: str, pooling: str) -> None:
    """Raise LookalikeError for an unknown backbone, or for a pooling or weights that it does not have."""
    _check_name(backbone)
    if backbone in TOWERS:
        vit.check_pooling(backbone, pooling)
    elif pooling not in POOLINGS:
        raise LookalikeError(
            f"model.pooling is {pooling!r}, which {backbone} does not have; set it to one of {', '.join(POOLINGS)}"
        )
    other, right = ("imagenet", "preset") if backbone in TOWERS else ("preset", "imagenet")
    if weights == other:
        raise LookalikeError(f"model.weights is {weights!r}, but {backbone} is downloaded with model.weights={right}")


def _build(backbone: str, weights: str | None) -> keras.Model:
    size = only_size(backbone)
    return _registry()[backbone][0](include_top=False, weights=weights, input_shape=(size, size, 3))


def _with_imagenet(backbone: str) -> keras.Model:
    try:
        return _build(backbone, "imagenet")
    except Exception as error:  # Keras raises a bare Exception when a download fails, ValueError for a wrong hash
        raise LookalikeError(
            f"model.weights is imagenet, but the weights of {backbone} could not be fetched: "
            f"{' '.join(str(error).split())}. With no network: model.weights=file and model.file=<path>.weights.h5"
        ) from None


def _load_weights(model: keras.Model, file: Path, backbone: str) -> None:
    if not file.is_file() or file.suffix != ".h5":
        raise LookalikeError(f"{file} is not a weights file; model.file must name a .weights.h5 of {backbone}")
    try:
        with warnings.catch_warnings():
            # Keras only warns when it leaves a layer's random weights in place; treat that as an error.
            warnings.filterwarnings("error", message=".*(no matching group|could not be loaded|retain their).*")
            model.load_weights(file)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        reason = " ".join(str(error).split())[:200]
        raise LookalikeError(f"{file} does not fit {backbone} without its classifier: {reason}") from None


def cut(whole: keras.Model, backbone: str, layer: str, pooling: str) -> keras.Model:
    """Cut a network from `build` behind a layer, "" for the last, so that its output can be pooled. See `create`."""
    if backbone in TOWERS:
        return vit.cut(whole, backbone, layer, pooling)
    if not layer:
        return whole
    known = [item.name for item in whole.layers]
    if layer not in known:
        raise LookalikeError(f"model.layer is {layer!r}, but {backbone} has no such layer; {closest(layer, known)}")
    output = whole.get_layer(layer).output
    if len(output.shape) != 4:
        raise LookalikeError(
            f"model.layer {layer!r} gives {output.shape}, not a feature map (B, H, W, D); choose another"
        )
    return keras.Model(whole.input, output)
