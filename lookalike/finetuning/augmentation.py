"""Data augmentation: views of an image that keep its class: shifted, zoomed, rotated, mirrored, of other contrast."""

import numpy as np
from PIL import Image

from lookalike.finetuning.settings import Settings


def view(pixels: np.ndarray, sha256: str, number: int, settings: Settings) -> np.ndarray:
    """Draw a view, uint8 (S, S, 3) -> uint8 (S, S, 3): number 0 is the image itself, 1 with `flip` its mirror image.

    The others are drawn with finetune.seed, their number and the image's bytes as seed, so that they do not depend on
    which other images there are. Pixels from outside the picture are white, like the margin of a padded one.
    """
    if number == 0:
        return pixels
    if number == 1 and settings.flip:
        return pixels[:, ::-1]
    rng = np.random.default_rng([settings.seed, number, int(sha256[:15], 16)])
    side = len(pixels)
    scale = 1 + rng.uniform(-settings.zoom, settings.zoom)
    angle = np.deg2rad(rng.uniform(-settings.rotate, settings.rotate))
    right, down = rng.uniform(-settings.shift, settings.shift, 2) * side
    gain = 1 + rng.uniform(-settings.light, settings.light)
    mirrored = settings.flip and rng.random() < 0.5
    # The affine map from a pixel of the view to one of the image: rotation and zoom about the centre, then shift.
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    centre = side / 2
    matrix = (
        cosine, -sine, centre * (1 - cosine + sine) + right,
        sine, cosine, centre * (1 - sine - cosine) + down,
    )  # fmt: skip
    image = Image.fromarray(pixels).transform(
        (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255)
    )
    lit: np.ndarray = np.clip((np.asarray(image, np.float32) - 128) * gain + 128, 0, 255).round().astype(np.uint8)
    return lit[:, ::-1] if mirrored else lit
