"""Vision transformers of KerasHub as embedders: built by name, cut to tokens or to the tower's own head.

KerasHub is an optional requirement, imported only when one is used. A query through OpenVINO never needs it.
"""

from typing import Any

from lookalike.base.errors import LookalikeError, closest
from lookalike.networks.keras_setup import keras
from lookalike.networks.vit_presets import TOWERS, Family, Tower

WEIGHTS_FILE = "model.weights.h5"  # name of the weights file in a preset's folder
EXTRA = "pip install -r requirements/vit.txt"
# Mean and standard deviation of each channel, for pixels from 0 to 1, that each family was trained with: Google's for
# ViT and SigLIP, ImageNet's for DINOv2, OpenAI's for CLIP.
# Sources: their image processors, and KerasHub's tools/checkpoint_conversion.
HALF = (0.5, 0.5, 0.5)
NORMALISATION: dict[Family, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "vit": (HALF, HALF),
    "siglip": (HALF, HALF),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
# cls: the class token. head: the tower's output for comparison with texts, which is CLIP's projection of the class
# token, or SigLIP's attention over the patches. avg, max and gem pool the patches' tokens only.
POOLINGS: dict[Family, tuple[str, ...]] = {
    "vit": ("cls", "avg", "max", "gem"),
    "dinov2": ("cls", "avg", "max", "gem"),
    "clip": ("cls", "avg", "max", "gem", "head"),
    "siglip": ("avg", "max", "gem", "head"),
}


def library() -> Any:
    """Return KerasHub's models. Importing them registers their layers, which Keras needs to read an architecture."""
    try:
        from keras_hub import models
    except ImportError as error:
        raise LookalikeError(f"KerasHub, for vision transformers, cannot be imported ({error}): {EXTRA}") from None
    return models


def build(name: str) -> keras.Model:
    """Build a network with weights drawn from Keras's seed: both towers, for CLIP and SigLIP."""
    models, tower = library(), TOWERS[name]
    image_shape = (tower.image_size, tower.image_size, 3)
    common = {"image_shape": image_shape, "num_layers": tower.layers, "num_heads": tower.heads, "hidden_dim": tower.dim}
    if tower.family == "vit":
        return models.ViTBackbone(patch_size=tower.patch, mlp_dim=tower.mlp, **common)
    common |= {"patch_size": tower.patch, "intermediate_dim": tower.mlp}
    if tower.family == "dinov2":
        trained = (tower.trained_size, tower.trained_size, 3)
        common |= {"num_register_tokens": tower.registers, "position_embedding_shape": trained}
        return models.DINOV2Backbone(**common)
    if tower.family == "clip":
        images = models.CLIPVisionEncoder(**common)
        texts = models.CLIPTextEncoder(**_text_settings(tower))
        # KerasHub sets the positions only when it loads weights; until then every patch has the first position.
        positions = images.embedding.position_ids
        positions.assign(keras.ops.expand_dims(keras.ops.arange(positions.shape[1]), 0))
        return models.CLIPBackbone(images, texts, projection_dim=tower.projection)
    texts = models.SigLIPTextEncoder(**_text_settings(tower))
    return models.SigLIPBackbone(models.SigLIPVisionEncoder(**common), texts)


def _text_settings(tower: Tower) -> dict[str, int]:
    text = tower.text
    assert text  # noqa: S101  every tower of these two families has a text tower
    return {
        "vocabulary_size": text.vocabulary,
        "max_sequence_length": text.length,
        "embedding_dim": text.dim,
        "hidden_dim": text.dim,
        "num_layers": text.layers,
        "num_heads": text.heads,
        "intermediate_dim": text.mlp,
    }


def from_preset(name: str) -> keras.Model:
    """Download a network with its trained weights, verified by KerasHub."""
    models, tower = library(), TOWERS[name]
    kinds = {
        "vit": models.ViTBackbone,
        "dinov2": models.DINOV2Backbone,
        "clip": models.CLIPBackbone,
        "siglip": models.SigLIPBackbone,
    }
    kind = kinds[tower.family]
    if name not in kind.presets:
        raise LookalikeError(
            f"model.weights is preset, but there are no trained weights of {name}; set model.weights=random, or choose "
            f"another backbone: {', '.join(other for other in TOWERS if other in kind.presets)}"
        )
    size = {"image_shape": (tower.image_size, tower.image_size, 3)} if tower.family == "dinov2" else {}
    try:
        return kind.from_preset(name, **size)
    except Exception as error:  # Kaggle's client and the HTTP client each raise their own
        raise LookalikeError(
            f"model.weights is preset, but {name} could not be fetched: {' '.join(str(error).split())[:300]}. With no "
            f"network: model.weights=file and model.file=<folder of the preset, or its {WEIGHTS_FILE}>"
        ) from None


def cut(whole: keras.Model, name: str, layer: str, pooling: str) -> keras.Model:
    """Cut an image tower out of a network: images (B, S, S, 3) -> tokens (B, T, D), or (B, D) for pooling "head".

    layer  the layer to cut behind; "" for the last. ViT can be cut only there.
    """
    tower = TOWERS[name]
    check_pooling(name, pooling)
    if tower.family == "vit":
        # ViT becomes a single layer, because its layers cannot be read back from an architecture one by one.
        images = keras.Input((tower.image_size, tower.image_size, 3), name="images")
        result = keras.Model(images, whole(images))
        known = {result.layers[-1].name: result.output}
    else:
        encoder = whole if tower.family == "dinov2" else whole.vision_encoder
        result = keras.Model(encoder.inputs[0], encoder.output)
        outputs = {item.name: item.output for item in encoder.layers[1:]}
        known = {item: output for item, output in outputs.items() if len(getattr(output, "shape", ())) == 3}
    if layer and pooling == "head":
        raise LookalikeError(
            f"model.layer is {layer!r}, but model.pooling head needs the last layer of {name}; set model.layer to "
            '"", or choose another pooling'
        )
    if layer and layer not in known:
        raise LookalikeError(f"model.layer is {layer!r}, but {name} has no such layer; {closest(layer, list(known))}")
    if pooling != "head":
        return keras.Model(result.inputs[0], known[layer or list(known)[-1]])
    if tower.family == "siglip":
        return result
    return keras.Model(result.inputs[0], whole.vision_projection(result.output[:, 0]))


def check_pooling(name: str, pooling: str) -> None:
    """Raise LookalikeError if a tower does not have this pooling."""
    able = POOLINGS[TOWERS[name].family]
    if pooling not in able:
        raise LookalikeError(
            f"model.pooling is {pooling!r}, which {name} does not have; set it to one of {', '.join(able)}"
        )


def normalise(pixels: Any, name: str) -> Any:
    """Normalise pixel values as a tower expects them: float32 from 0 to 255, (B, S, S, 3) -> float32, same shape."""
    mean, deviation = (keras.ops.convert_to_tensor(values) for values in NORMALISATION[TOWERS[name].family])
    return (pixels / 255.0 - mean) / deviation
