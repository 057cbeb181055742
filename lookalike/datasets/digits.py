"""Scikit-learn's handwritten digits: 1,797 real 8 x 8 greyscale scans in ten classes, inside the package.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi:10.24432/C50P49, CC BY 4.0.
"""

import io
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from lookalike.datasets.base import Item, Settings


def items(_settings: Settings) -> Iterator[Item]:
    """Yield each digit as a PNG, white ink on black, its 17 grey levels spread over 0 to 255."""
    from sklearn.datasets import load_digits  # imported here because it takes a second

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    for number, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        yield Item(PurePosixPath(str(label), f"digit_{number:04}.png"), str(label), png.getvalue())


def origin(_settings: Settings) -> str:
    """Return name and version of the package that contains the digits."""
    import sklearn

    return f"scikit-learn {sklearn.__version__}, load_digits"
