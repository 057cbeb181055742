"""Sizes of picture that a network takes."""

from lookalike.artifacts.descriptions import Network
from lookalike.base.errors import LookalikeError
from lookalike.networks.vit_presets import TOWERS

NASNET_SIZES = {"NASNetLarge": 331, "NASNetMobile": 224}  # its graph is made for one size of picture


def only_size(backbone: str) -> int | None:
    """Pixels a side of the pictures that a backbone takes; None if it takes any."""
    return TOWERS[backbone].image_size if backbone in TOWERS else NASNET_SIZES.get(backbone)


def check_size(network: Network, image_size: int) -> None:
    """Raise LookalikeError if the network does not take pictures of that many pixels a side."""
    only = only_size(network.backbone)
    if only and image_size != only:
        raise LookalikeError(
            f"{network.backbone} takes pictures of {only} pixels a side only, but preprocess.image_size is "
            f"{image_size}; set preprocess.image_size={only}, or choose another model.backbone"
        )
