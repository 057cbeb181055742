"""From the bytes of an image file to an upright square of RGB pixels, under guard.

NumPy is imported only where it is needed: decoders run this, and start in 0.07 s instead of 0.15 s without.
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

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # by content; Pillow's other readers are never tried
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
WHITE = (255, 255, 255)
SCANS = 64  # of a progressive JPEG, each of which is a pass over all pixels; common files have about ten
STRIPS = 1 << 17  # of a TIFF, or tiles; common files have at most one a row of pixels
SEGMENTS = 10_000  # of a JPEG before its pixels, each read in Python; common files have at most some hundred
_MARKER = re.compile(rb"[^\xff]*\xff+(.)", re.DOTALL)  # of a segment, after junk and fill bytes
_SOS = 0xDA  # the marker after which a JPEG's pixels follow
_WITHOUT_LENGTH = {0, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}  # markers that no length follows, as Pillow has it
_OPENING = threading.Lock()  # Pillow has one limit for all threads
UPRIGHT = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class ImageError(Exception):
    """A file is not an image that can be used; the message is the reason, the same in every run."""


class TooManyPixelsError(ImageError):
    """A picture is larger than `max_pixels`; `found` says how large: "60000 x 60000 pixels"."""

    def __init__(self, found: str, max_pixels: int) -> None:
        super().__init__(found, max_pixels)  # its own arguments, so that it can be pickled
        self.found, self.max_pixels = found, max_pixels

    def __str__(self) -> str:
        return f"{self.found}, more than max_pixels = {self.max_pixels}"


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """Decode an image file into an upright RGB image.

    The first frame of an animation; EXIF orientation applied; transparency laid on white; 16-bit greyscale scaled to
    8 bits. Width x height is checked against `max_pixels` before any pixel is decoded.

    Raises ImageError for anything else: another format, a truncated file, pixels whose range is not defined.
    """
    with _explained():
        return decode_opened(opened(content, max_pixels), content)


def decode_opened(image: Image.Image, content: bytes) -> Image.Image:
    """Decode what `opened` made of the content, as `decode` does; the header is not read again."""
    with _explained():
        if image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > SCANS:
            raise ImageError(f"a JPEG of more than {SCANS} scans, which would take long; save it anew")
        image.load()
        return _to_rgb(_upright(image))


@contextmanager
def _explained() -> Iterator[None]:
    """Raise ImageError, with the reason, for whatever a decoder raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which is not the pixels' fault
            yield
    except ImageError:
        raise
    except UnidentifiedImageError:  # its message holds a memory address
        raise ImageError(f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # a decoder may raise anything on hostile bytes; the file is rejected, with the reason
        raise ImageError(f"cannot be decoded: {type(error).__name__}: {' '.join(str(error).split())}") from None


def opened(content: bytes, max_pixels: int) -> Image.Image:
    """Read an image file's header, and none of its pixels. Raises ImageError, or whatever the format's reader does."""
    content = without_fill_bytes(content)
    if content.startswith(tuple(TiffImagePlugin.PREFIXES)):
        _check_strips(content)
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # For Pillow's readers, of which GIF's makes room for a frame at once. They refuse above twice as much.
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError as error:
            count = re.findall(r"\d+", str(error))[0]  # its message has the product alone
            raise TooManyPixelsError(f"{count} pixels", max_pixels) from None
        finally:
            Image.MAX_IMAGE_PIXELS = None  # no limit of its own: a large `max_pixels` is meant
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixelsError(f"{width} x {height} pixels", max_pixels)
    return image


def without_fill_bytes(content: bytes) -> bytes:
    """Drop fill bytes (runs of 0xFF) and junk between the segments before a JPEG's pixels; any other content is kept.

    Pillow skips them one by one, in Python: 19 MB of them took 20 s of a core, and take 0.03 s so.
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
    raise ImageError(f"a JPEG of more than {SEGMENTS} segments, which would take long; save it anew")


def _check_strips(content: bytes) -> None:
    """Raise ImageError for a TIFF of very many strips or tiles, for each of which Pillow makes an object at once."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if content[2:3] == b"+" else 8])
        file = io.BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        count = max(len(tags.get(tag, ())) for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS))
    except Exception:  # opening it will say what is wrong
        return
    if count > STRIPS:
        raise ImageError(f"a TIFF of {count} strips or tiles, more than {STRIPS}, which would take long; save it anew")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF around good pixels: take them as they are stored
        return image
    # Not ImageOps.exif_transpose, which also writes the EXIF anew: an object a number, seconds for some megabytes.
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

    how  "crop" keeps the central square; "pad" keeps everything, on white; "stretch" changes the aspect.
    """
    target = (size, size)
    if how == "crop":
        return ImageOps.fit(image, target, Image.Resampling.BICUBIC)
    if how == "pad":
        return ImageOps.pad(image, target, Image.Resampling.BICUBIC, color=WHITE)
    return image.resize(target, Image.Resampling.BICUBIC)


def fit(image: Image.Image, size: int, how: str) -> "np.ndarray":
    """Resize to a square as `fitted` does: uint8, (size, size, 3)."""
    return as_pixels(fitted(image, size, how).tobytes())


def square(content: bytes, size: int, how: str, max_pixels: int) -> bytes:
    """Decode an image file and make it a square: what `as_pixels` takes."""
    return fitted(decode(content, max_pixels), size, how).tobytes()


def as_pixels(square: bytes) -> "np.ndarray":
    """The pixels of an RGB square: uint8, (S, S, 3)."""
    import numpy as np

    side = isqrt(len(square) // 3)
    return np.frombuffer(square, np.uint8).reshape(side, side, 3)


@dataclass(frozen=True)
class Decoded:
    """What became of one file: the SHA-256 of its bytes, and either a square or the reason why not."""

    sha256: str
    square: bytes | None
    reason: str = ""

    @property
    def pixels(self) -> "np.ndarray | None":
        """The square's, uint8 (S, S, 3)."""
        return None if self.square is None else as_pixels(self.square)


def decode_file(path: Path, size: int, how: str, max_pixels: int) -> Decoded:
    """Read, decode and fit one file."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        return Decoded(sha256, square(content, size, how, max_pixels))
    except ImageError as error:
        return Decoded(sha256, None, str(error))
