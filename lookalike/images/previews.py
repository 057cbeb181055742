"""Pictures for display: decoded and encoded again, so that they contain nothing of the file but its pixels."""

import io

from PIL import Image

from lookalike.images import decode

SIDE = 256  # most pixels of a thumbnail's longer side
LEAST = 128  # fewest pixels of it: a tiny picture is enlarged smoothly, so that its subject can be made out
PNG_MOST = 1_000_000  # most pixels of a copy as PNG, which is made if the file's format is lossless
LOSSY = {"JPEG", "MPO", "WEBP"}


def thumbnail(content: bytes, max_pixels: int) -> bytes:
    """Return an image file's thumbnail, a JPEG. Raises ImageError if the file cannot be decoded."""
    return encode(decode.decode(content, max_pixels))


def encode(image: Image.Image) -> bytes:
    """Return an upright RGB picture's thumbnail: a JPEG of its pixels, without any metadata."""
    longest = max(image.size)
    scale = min(max(longest, LEAST), SIDE) / longest
    size = [max(1, round(side * scale)) for side in image.size]
    content = io.BytesIO()
    _bare(image.resize((size[0], size[1]), Image.Resampling.BICUBIC)).save(content, format="JPEG", quality=85)
    return content.getvalue()


def copy(content: bytes, side: int | None, max_pixels: int) -> tuple[bytes, str]:
    """Decode an image file and encode it again: as PNG if its format is lossless and it is small, else as JPEG.

    side  most pixels of the longer side; None for no limit.

    Returns the new content and its media type. Raises ImageError if the file cannot be decoded.
    """
    image = decode.decode(content, max_pixels)
    kind = decode.opened(content, max_pixels).format
    if side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if kind in LOSSY or image.width * image.height > PNG_MOST:
        _bare(image).save(out, "JPEG", quality=90)
        return out.getvalue(), "image/jpeg"
    _bare(image).save(out, "PNG")
    return out.getvalue(), "image/png"


def _bare(image: Image.Image) -> Image.Image:
    """Return a copy of the pixels, without colour profile, comment and other metadata."""
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    return bare
