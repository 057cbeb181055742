"""Pictures to look at: decoded and encoded anew, so that nothing of a file goes along but its pixels."""

import io

from PIL import Image

from lookalike.images import decode

SIDE = 256  # pixels of a thumbnail's longer side, at most
LEAST = 128  # likewise, at least: a tiny picture is enlarged smoothly, so that its subject can be made out
PNG_MOST = 1_000_000  # pixels that are sent without loss, where the file was without
LOSSY = {"JPEG", "MPO", "WEBP"}


def thumbnail(content: bytes, max_pixels: int) -> bytes:
    """The small JPEG of an image file's content. Raises ImageError if it cannot be decoded."""
    return encode(decode.decode(content, max_pixels))


def encode(image: Image.Image) -> bytes:
    """Make an upright RGB picture small and encode its pixels, and nothing else that came with it, as a JPEG."""
    longest = max(image.size)
    scale = min(max(longest, LEAST), SIDE) / longest
    size = [max(1, round(side * scale)) for side in image.size]
    content = io.BytesIO()
    _bare(image.resize((size[0], size[1]), Image.Resampling.BICUBIC)).save(content, format="JPEG", quality=85)
    return content.getvalue()


def copy(content: bytes, side: int | None, max_pixels: int) -> tuple[bytes, str]:
    """Decode an image file and encode it: PNG where the file was without loss and is small, else JPEG.

    side  the most pixels of the longer side; None for all there are.

    Returns the new content and its media type.
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
    """The pixels alone: profile, comment and the like stay with the other."""
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    return bare
