"""Checks of an uploaded picture, beyond those of lookalike/images/decode.py: one picture, and nothing else.

Decoders run this, which need not wait for imports that only the server needs.
"""

import io
import zipfile
from math import inf

from PIL import Image, UnidentifiedImageError

from lookalike.images import decode as images
from lookalike.images.decode import FORMATS, ImageError

HEAD = 1024  # bytes in which a reader of PDF looks for its sign
SIGNS = {
    b"<script": "a web page",
    b"<html": "a web page",
    b"<!doctype": "a web page",
    b"<svg": "an SVG",
    b"<?php": "a PHP program",
    b"rar!\x1a\x07": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
}


class RefusedError(ImageError):
    """A picture that is not accepted; `kind` is the name of the problem, one of lookalike/api/problems.py."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return self.detail


class LaboriousError(ImageError):
    """A picture that is much work to decode, and has not been decoded."""


def square(content: bytes, size: int, how: str, max_pixels: int, most: float = inf) -> tuple[str, bytes]:
    """Decode an upload and make it a square, as lookalike.images.decode.square does: its format, and the square.

    Raises as `decode` does.
    """
    kind, image = _decoded(content, max_pixels, most)
    return kind, images.fitted(image, size, how).tobytes()


def decode(content: bytes, max_pixels: int, most: float = inf) -> Image.Image:
    """Decode an upload into an upright RGB image. Its header is read once.

    most  of `work`.

    Raises RefusedError for what is not accepted, LaboriousError for what is more work.
    """
    return _decoded(content, max_pixels, most)[1]


def _decoded(content: bytes, max_pixels: int, most: float) -> tuple[str, Image.Image]:
    try:
        content = images.without_fill_bytes(content)  # first: 19 MB of them took 0.09 s in all, and take 0.02 s so
    except ImageError as error:
        raise RefusedError("broken-image", str(error)) from None
    kind, image = _examined(content, max_pixels, most)
    try:
        return kind, images.decode_opened(image, content)
    except ImageError as error:
        raise RefusedError("broken-image", f"the {kind} {error}") from None


def _examined(content: bytes, max_pixels: int, most: float) -> tuple[str, Image.Image]:
    """Open what can be decoded safely: its format, and the image, of which only the header is read."""
    try:
        image = images.opened(content, max_pixels)
        several = image.format != "MPO" and getattr(image, "is_animated", False)  # an MPO: a photo and its previews
    except UnidentifiedImageError:
        raise RefusedError("not-an-image", f"not an image in a known format ({', '.join(FORMATS)})") from None
    except images.TooManyPixelsError as error:
        raise RefusedError("too-many-pixels", f"{error.found}, more than the {max_pixels} that are accepted") from None
    except ImageError as error:
        raise RefusedError("broken-image", str(error)) from None
    except Exception as error:  # a reader may raise anything on hostile bytes
        raise RefusedError("broken-image", f"cannot be decoded: {type(error).__name__}") from None
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    if work(image, content) > most:
        raise LaboriousError
    if several:
        raise RefusedError("several-frames", f"the {kind} has more than one frame; send a single picture")
    also = _also(content)
    if also:
        raise RefusedError("two-formats", f"the {kind} is {also} too; send the picture alone")
    return kind, image


def work(image: Image.Image, content: bytes) -> int:
    """Estimate how much work a picture is: its pixels, times the scans of a JPEG, times 4 in other formats.

    64 million are 0.2 to 0.5 s of a core: a PNG of 16 megapixels, a JPEG of 12 with five scans.
    """
    return image.width * image.height * (content.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 4)


def _also(content: bytes) -> str:
    """Name a second format that the content can be read as; "" if there is none."""
    if b"%PDF-" in content[:HEAD]:
        return "a PDF"
    if zipfile.is_zipfile(io.BytesIO(content)):
        return "a ZIP archive"
    lower = content.lower()
    return next((name for sign, name in SIGNS.items() if sign in lower), "")
