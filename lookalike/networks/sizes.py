"""The image sizes that a network accepts."""

from lookalike.artifacts.descriptions import Network
from lookalike.base.errors import LookalikeError
from lookalike.networks.vit_presets import TOWERS

NASNET_SIZES = {"NASNetLarge": 331, "NASNetMobile": 224}  # pixels; NASNet's graph is built for one image size


def only_size(backbone: str) -> int | None:
    """Return the only image size in pixels that a backbone accepts; None if it accepts any."""
    return TOWERS[backbone].image_size if backbone in TOWERS else NASNET_SIZES.get(backbone)


def check_size(network: Network, image_size: int) -> None:
    """Raise LookalikeError if the network does not accept images of `image_size` pixels a side."""
    only = only_size(network.backbone)
    if only and image_size != only:
        raise LookalikeError(
            f"{network.backbone} accepts only images of {only} pixels a side, but preprocess.image_size is "
            f"{image_size}; set preprocess.image_size={only}, or choose another model.backbone"
        )
