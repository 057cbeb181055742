"""Build the embedding network and save it for Keras and OpenVINO.

Reads   the internet, model.file, or nothing        depending on model.weights in params.yaml
Writes  data/model/architecture.json                the network up to model.layer, and
        data/model/model.weights.h5                 its weights, for Keras
        data/model/network.xml, network.bin         the same from pixels to embedding, for OpenVINO
        data/model/tokenizer.json, text.xml, text.bin   the text encoder, for CLIP with its head
        data/model/model.json                       backbone, layer, pooling, mirror, D
        data/model.json                             the same and the weights' hash, for Git

    python stages/model.py data/model
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, to_builtins

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from lookalike.artifacts import descriptions
from lookalike.base import params, script
from lookalike.base.files import file_digest, new_folder, write_json


class Settings(params.Section, frozen=True):
    """Section `model` of params.yaml."""

    backbone: str
    weights: Literal["random", "imagenet", "preset", "file"]
    file: str
    layer: str
    pooling: Literal["avg", "max", "gem", "cls", "head"]
    mirror: bool
    seed: Annotated[int, Meta(ge=0, lt=2**32)]


def main() -> None:
    """Read the arguments, then build the network, cut it and save it."""
    parser = script.parser(__doc__)
    parser.add_argument("model", type=Path, help="folder to write; replaced as a whole")
    args = parser.parse_args()
    settings = params.load(args.params, "model", Settings)

    from lookalike.networks import backbones, clip_text

    file = Path(settings.file)
    backbones.check(settings.backbone, settings.weights, settings.pooling)
    whole = backbones.build(settings.backbone, settings.weights, file, settings.seed)
    model = backbones.cut(whole, settings.backbone, settings.layer, settings.pooling)
    preset = clip_text.preset_of(settings.backbone, settings.weights, file, settings.pooling)
    with new_folder(args.model) as folder:
        description = backbones.save(
            model, settings.backbone, settings.weights, settings.pooling, folder, mirror=settings.mirror
        )
        if preset:
            clip_text.save(whole, settings.backbone, preset, folder)
    sha256 = file_digest(args.model / descriptions.WEIGHTS_FILE)
    write_json(args.model.with_suffix(".json"), {**to_builtins(description), "weights_sha256": sha256})
    script.notice(
        "model",
        f"{settings.backbone} ({settings.weights}), {description.layer}: {description.dim} dimensions"
        + (", with a text encoder" if preset else ""),
    )


if __name__ == "__main__":
    script.run("model", main)
