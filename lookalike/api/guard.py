"""What a picture from a stranger must be, beyond what lookalike/images.py asks: one picture, and nothing else."""

import io
import zipfile

from PIL import Image, UnidentifiedImageError

from lookalike import images
from lookalike.api import problems
from lookalike.api.problems import Problem
from lookalike.images import FORMATS, ImageError

HEAD = 1024  # bytes in which a reader of PDF looks for its sign
SIGNS = {b"<script": "a web page", b"<html": "a web page", b"<!doctype": "a web page", b"<svg": "an SVG",
         b"<?php": "a PHP program", b"rar!\x1a\x07": "a RAR archive",
         b"7z\xbc\xaf\x27\x1c": "a 7z archive"}  # fmt: skip


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """Decode an upload into an upright RGB image, or raise the Problem that it is."""
    kind = examined(content, max_pixels)
    try:
        return images.decode(content, max_pixels)
    except ImageError as error:
        raise Problem(problems.BROKEN_IMAGE, f"the {kind} {error}") from None


def examined(content: bytes, max_pixels: int) -> str:
    """The format of what can be decoded safely."""
    try:
        image = images.opened(content, max_pixels)
        several = image.format != "MPO" and getattr(image, "is_animated", False)  # an MPO: a photo and its previews
    except UnidentifiedImageError:
        raise Problem(problems.NOT_AN_IMAGE, f"not an image in a known format ({', '.join(FORMATS)})") from None
    except images.TooManyPixelsError as error:
        raise Problem(
            problems.TOO_MANY_PIXELS, f"{error.found}, more than the {max_pixels} that are accepted"
        ) from None
    except ImageError as error:
        raise Problem(problems.BROKEN_IMAGE, str(error)) from None
    except Exception as error:  # a reader may raise anything on hostile bytes
        raise Problem(problems.BROKEN_IMAGE, f"cannot be decoded: {type(error).__name__}") from None
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    if several:
        raise Problem(problems.SEVERAL_FRAMES, f"the {kind} has more than one frame; send a single picture")
    also = _also(content)
    if also:
        raise Problem(problems.TWO_FORMATS, f"the {kind} is {also} too; send the picture alone")
    return kind


def _also(content: bytes) -> str:
    """What else the content can be read as; "" if nothing."""
    if b"%PDF-" in content[:HEAD]:
        return "a PDF"
    if zipfile.is_zipfile(io.BytesIO(content)):
        return "a ZIP archive"
    lower = content.lower()
    return next((name for sign, name in SIGNS.items() if sign in lower), "")
