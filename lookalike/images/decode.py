"""Decoding of an image file's bytes into an upright RGB square, with limits against hostile files.

NumPy is imported only where it is needed: without it, a decoder process starts in 0.07 s instead of 0.15 s.
"""

import hashlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # detected by content; no other Pillow reader is tried
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
WHITE = (255, 255, 255)
SCANS = 64  # most scans of a progressive JPEG, each a pass over all pixels; common files have about ten
STRIPS = 1 << 17  # most strips or tiles of a TIFF; common files have at most one per row of pixels
SEGMENTS = 10_000  # most segments before a JPEG's pixels, each read in Python; common files have at most some hundred
_MARKER = re.compile(rb"[^\xff]*\xff+(.)", re.DOTALL)  # a segment's marker, after junk and fill bytes
_SOS = 0xDA  # start of scan: the marker before a JPEG's pixels
_WITHOUT_LENGTH = {0, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}  # markers without a length field, as in Pillow
_OPENING = threading.Lock()  # Pillow's limit is global: one thread at a time may set it
UPRIGHT = {  # EXIF orientation: the transposition that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """An unusable image file; the message is the reason, the same in every run."""


class TooManyPixelsError(ImageError):
    """A picture larger than `max_pixels`; `found` is its size, such as "60000 x 60000 pixels"."""

    def __init__(self, found: str, max_pixels: int) -> None:
        super().__init__(found, max_pixels)  # the same arguments, so that the exception can be pickled
        self.found, self.max_pixels = found, max_pixels

    def __str__(self) -> str:
        return f"{self.found}, more than max_pixels = {self.max_pixels}"


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """Decode an image file into an upright RGB image.

    Only the first frame of an animation is used. EXIF orientation is applied, transparency is blended with white,
    16-bit greyscale is scaled to 8 bits. Width x height is checked against `max_pixels` before any pixel is decoded.

    Raises ImageError for a picture that is too large, another format, a truncated file, or pixels of undefined range.
    """
    with _explained():
        return decode_opened(opened(content, max_pixels), content)


def decode_opened(image: Image.Image, content: bytes) -> Image.Image:
    """Decode what `opened` made of the content, as `decode` does; the header is not read again."""
    with _explained():
        if image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > SCANS:
            raise ImageError(f"a JPEG with more than {SCANS} scans, which would take too long; save it anew")
        image.load()
        return _to_rgb(_upright(image))


@contextmanager
def _explained() -> Iterator[None]:
    """Raise ImageError, with the reason, for whatever a decoder raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, but the pixels may be fine
            yield
    except ImageError:
        raise
    except UnidentifiedImageError:  # its message contains a memory address, which differs from run to run
        raise ImageError(f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise ImageError(f"cannot be decoded: {type(error).__name__}: {' '.join(str(error).split())}") from None


def opened(content: bytes, max_pixels: int) -> Image.Image:
    """Read an image file's header but no pixels. Raises ImageError, or any exception of the format's reader."""
    content = without_fill_bytes(content)
    if content.startswith(tuple(TiffImagePlugin.PREFIXES)):
        _check_strips(content)
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Pillow's readers check this limit and refuse above twice as much; GIF's allocates a frame while it opens.
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError as error:
            count = re.findall(r"\d+", str(error))[0]  # the message contains width x height multiplied
            raise TooManyPixelsError(f"{count} pixels", max_pixels) from None
        finally:
            Image.MAX_IMAGE_PIXELS = None  # no limit of Pillow's own, so that a larger `max_pixels` takes effect
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixelsError(f"{width} x {height} pixels", max_pixels)
    return image


def without_fill_bytes(content: bytes) -> bytes:
    """Drop fill bytes (runs of 0xFF) and junk between the segments before a JPEG's pixels; keep everything else.

    Pillow skips them one by one in Python: 20 s -> 0.03 s for 19 MB of them.
    """
    if not content.startswith(b"\xff\xd8\xff"):
        return content
    kept, position = [content[:2]], 2
    for _ in range(SEGMENTS):
        found = _MARKER.match(content, position)
        if found is None or content[found.start(1)] == _SOS:
            start = len(content) if found is None else found.start(1) - 1
            return b"".join([*kept, content[start:]])
        start, end = found.start(1) - 1, found.end()
        if content[end - 1] not in _WITHOUT_LENGTH:
            end += max(2, int.from_bytes(content[end : end + 2]))
        kept.append(content[start:end])
        position = end
    raise ImageError(f"a JPEG with more than {SEGMENTS} segments, which would take too long; save it anew")


def _check_strips(content: bytes) -> None:
    """Raise ImageError for a TIFF with too many strips or tiles, because Pillow creates an object for each."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if content[2:3] == b"+" else 8])
        file = io.BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        count = max(len(tags.get(tag, ())) for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS))
    except Exception:  # opening the file will report the problem
        return
    if count > STRIPS:
        raise ImageError(
            f"a TIFF with {count} strips or tiles, more than {STRIPS}, which would take too long; save it anew"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF but good pixels: use them as they are stored
        return image
    # Not ImageOps.exif_transpose: it also rewrites the EXIF, which takes seconds for some megabytes.
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        import numpy as np

        grey = np.asarray(image).astype(np.int64)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise ImageError(f"mode {image.mode}: values from {grey.min()} to {grey.max()}, beyond 16 bits")
        image = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError("floating-point pixels have no defined range; convert to 8 or 16 bits first")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")
    return image.convert("RGB")


def fitted(image: Image.Image, size: int, how: str) -> Image.Image:
    """Resize to a square, antialiased (bicubic over the whole footprint of an output pixel).

    how  "crop" keeps the central square; "pad" keeps everything and adds white; "stretch" changes the aspect ratio.
    """
    target = (size, size)
    if how == "crop":
        return ImageOps.fit(image, target, Image.Resampling.BICUBIC)
    if how == "pad":
        return ImageOps.pad(image, target, Image.Resampling.BICUBIC, color=WHITE)
    return image.resize(target, Image.Resampling.BICUBIC)


def fit(image: Image.Image, size: int, how: str) -> "np.ndarray":
    """Resize to a square as `fitted` does; return its pixels, uint8 (size, size, 3)."""
    return as_pixels(fitted(image, size, how).tobytes())


def square(content: bytes, size: int, how: str, max_pixels: int) -> bytes:
    """Decode an image file and make it square; return the bytes that `as_pixels` takes."""
    return fitted(decode(content, max_pixels), size, how).tobytes()


def as_pixels(square: bytes) -> "np.ndarray":
    """Return the pixels of an RGB square, uint8 (S, S, 3)."""
    import numpy as np

    side = isqrt(len(square) // 3)
    return np.frombuffer(square, np.uint8).reshape(side, side, 3)


@dataclass(frozen=True)
class Decoded:
    """Result of decoding one file: the SHA-256 of its bytes, and either a square or the reason why there is none."""

    sha256: str
    square: bytes | None
    reason: str = ""

    @property
    def pixels(self) -> "np.ndarray | None":
        """The square's pixels, uint8 (S, S, 3); None if there is no square."""
        return None if self.square is None else as_pixels(self.square)


def decode_file(path: Path, size: int, how: str, max_pixels: int) -> Decoded:
    """Read a file, decode it and make it square."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        return Decoded(sha256, square(content, size, how, max_pixels))
    except ImageError as error:
        return Decoded(sha256, None, str(error))
