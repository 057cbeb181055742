"""The settings of fine-tuning."""

from typing import Annotated, Literal

from msgspec import Meta

from lookalike.base.params import Section

Share = Annotated[float, Meta(ge=0, le=0.5)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+$")]


class Settings(Section, frozen=True):
    """Section `finetune` of params.yaml."""

    networks: Annotated[list[Name], Meta(max_length=1)]
    layer: str
    head: bool
    loss: Literal["supcon", "triplet-hard", "triplet-semihard"]
    temperature: Annotated[float, Meta(gt=0, le=10)]
    margin: Annotated[float, Meta(gt=0, le=2)]
    classes: Annotated[int, Meta(ge=2)]
    images: Annotated[int, Meta(ge=2)]
    epochs: Annotated[int, Meta(ge=1)]
    learning_rate: Annotated[float, Meta(gt=0, lt=1)]
    weight_decay: Annotated[float, Meta(ge=0, lt=1)]
    views: Annotated[int, Meta(ge=1, le=64)]
    flip: bool
    shift: Share
    zoom: Share
    rotate: Annotated[float, Meta(ge=0, le=180)]
    light: Share
    validation: Share
    patience: Annotated[int, Meta(ge=1)]
    held_out_classes: Share
    precision: Literal["float32", "float16", "bfloat16"]
    seed: Annotated[int, Meta(ge=0, lt=2**32)]
