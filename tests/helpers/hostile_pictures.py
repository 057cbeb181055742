"""Hostile pictures, the same for a seed: cut, flipped, lying about their size, in every mode, and crafted ones.

Each is `kind/encoding-what` and the bytes of a file; tests/images/test_hostile.py says what has to become of them.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from lookalike.images.decode import FORMATS

Named = tuple[str, bytes]
SIZE = (24, 18)  # of the pictures that are damaged
SHORT, LONG, RATIONAL = 3, 4, 5  # of a TIFF's values
BIG = 20_000_000  # bytes: the largest file that `lookalike serve` takes by default
FALSE_SIZES = [(0, 0), (0, 18), (1, 1), (23, 18), (24, 19), (48, 36), (255, 65535), (2000, 2000), (65535, 65535),
               (2**31 - 1, 2**31 - 1)]  # fmt: skip
TURNED = {  # how a camera stores a picture that is upright when the orientation is undone
    1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
}  # fmt: skip
# Format and options of each way to write an RGB picture.
ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {}),
    "jpeg_progressive": ("JPEG", {"progressive": True}),
    "jpeg_restarts": ("JPEG", {"restart_marker_blocks": 1, "subsampling": 0}),
    "png": ("PNG", {}),
    "png_palette": ("PNG", {}),
    "webp": ("WEBP", {}),
    "webp_lossless": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {}),
    "tiff_big": ("TIFF", {"big_tiff": True}),
    "tiff_lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff_deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff_jpeg": ("TIFF", {"compression": "jpeg"}),
    "bmp": ("BMP", {}),
}
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F")


def photo(seed: int, width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    """A smooth coloured picture, another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def encoded(name: str, seed: int = 0) -> bytes:
    """A small picture in one of ENCODINGS."""
    kind, options = ENCODINGS[name]
    return saved(photo(seed).quantize(16) if name == "png_palette" else photo(seed), kind, **options)


def pictures(seed: int = 0) -> Iterator[Named]:
    """Every hostile picture."""
    for make in (truncated, flipped, lying, modes, orientations, crafted):
        for name, content in make(seed):
            yield f"{make.__name__}/{name}", content


def truncated(seed: int) -> Iterator[Named]:
    """Each encoding, cut at every hundredth of its length."""
    for name in ENCODINGS:
        content = encoded(name, seed)
        for percent in range(100):
            yield f"{name}-{percent:02}", content[: len(content) * percent // 100]


def flipped(seed: int) -> Iterator[Named]:
    """Each encoding with one bit changed, in the first 64 bytes and anywhere; then with every fiftieth byte changed."""
    draw = random.Random(seed)
    for name in ENCODINGS:
        content = encoded(name, seed)
        for number in range(120):
            damaged = bytearray(content)
            if number < 100:
                damaged[draw.randrange(64 if number % 2 else len(content))] ^= 1 << draw.randrange(8)
            else:
                for _ in range(len(content) // 50 + 1):
                    damaged[draw.randrange(8, len(content))] = draw.randrange(256)
            yield f"{name}-{number:03}", bytes(damaged)


def lying(seed: int) -> Iterator[Named]:
    """Each encoding, its header claiming another size than the pixels that follow have."""
    for name, (kind, _) in ENCODINGS.items():
        content = encoded(name, seed)
        for width, height in FALSE_SIZES:
            for part, claim in LIARS[kind](content, width, height):
                yield f"{name}{part}-{width}x{height}", claim


def put(content: bytes, position: int, form: str, *values: int) -> bytes:
    """The content with numbers in the place of what was there."""
    return content[:position] + struct.pack(form, *values) + content[position + struct.calcsize(form) :]


def _lying_png(content: bytes, width: int, height: int) -> Iterator[Named]:
    head = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    yield "", content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]


def _lying_bmp(content: bytes, width: int, height: int) -> Iterator[Named]:
    yield "", put(content, 18, "<ii", width, height)
    yield "-top-down", put(content, 18, "<ii", width, -height)


def _lying_gif(content: bytes, width: int, height: int) -> Iterator[Named]:
    if max(width, height) < 1 << 16:
        frame = content.index(b",", 13 + 3 * (2 << (content[10] & 7)))
        yield "-screen", put(content, 6, "<HH", width, height)
        claim = put(content, frame + 5, "<HH", width, height)
        yield "-frame", claim
        for disposal in (2, 3):  # the reader makes room for what is to be put in the frame's place, at once
            control = b"!\xf9\x04" + bytes([disposal << 2 | 1]) + bytes(4)
            yield f"-frame-disposal{disposal}", claim[:frame] + control + claim[frame:]


def _lying_jpeg(content: bytes, width: int, height: int) -> Iterator[Named]:
    if max(width, height) < 1 << 16:
        head = next(content.index(mark) for mark in (b"\xff\xc0\x00", b"\xff\xc2\x00") if mark in content)
        yield "", put(content, head + 5, ">HH", height, width)


def _lying_webp(content: bytes, width: int, height: int) -> Iterator[Named]:
    def uint24(*values: int) -> bytes:
        return b"".join((max(value, 0) & 0xFFFFFF).to_bytes(3, "little") for value in values)

    if content[12:16] == b"VP8 ":
        yield "-frame", put(content, 26, "<HH", width & 0x3FFF, height & 0x3FFF)
    body, canvas = content[12:], uint24(width - 1, height - 1)
    frame = b"ANMF" + struct.pack("<I", 16 + len(body)) + uint24(0, 0, SIZE[0] - 1, SIZE[1] - 1) + bytes(4) + body
    animation = b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame
    for what, flags, pixels in (("still", 0, body), ("animated", 2, animation)):
        extended = b"WEBPVP8X" + struct.pack("<II", 10, flags) + canvas + pixels
        yield f"-{what}", b"RIFF" + struct.pack("<I", len(extended)) + extended


def _lying_tiff(content: bytes, width: int, height: int) -> Iterator[Named]:
    big = content[2] == 43
    start = struct.unpack_from("<Q", content, 8)[0] if big else struct.unpack_from("<I", content, 4)[0]
    step, first, form = (20, start + 8, "<HQQ") if big else (12, start + 2, "<HII")
    places = range(first, first + step * struct.unpack_from("<H", content, start)[0], step)
    at = {struct.unpack_from("<H", content, place)[0]: place + 2 for place in places}
    claim = put(put(content, at[256], form, LONG, 1, width), at[257], form, LONG, 1, height)
    yield "", claim
    for tag in (273, 278, 279):  # where the strips are, rows a strip, bytes a strip
        yield f"-tag{tag}", put(claim, at[tag], form, LONG, 1, max(width, 1) * 1000 & 0xFFFFFFFF)


LIARS = {"PNG": _lying_png, "BMP": _lying_bmp, "GIF": _lying_gif, "JPEG": _lying_jpeg, "WEBP": _lying_webp,
         "TIFF": _lying_tiff}  # fmt: skip


def in_mode(mode: str, seed: int = 0) -> Image.Image:
    """A picture in one of Pillow's modes."""
    rgb = photo(seed)
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        return ImageCms.applyTransform(rgb, to_lab)
    if mode in ("I", "I;16", "I;16B"):
        grey = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
        kinds = {"I": np.int32, "I;16": np.dtype("<u2"), "I;16B": np.dtype(">u2")}
        return Image.fromarray(grey.astype(kinds[mode]))
    if mode in ("LA", "PA", "RGBA"):
        layer = rgb.convert("RGBA")
        layer.putalpha(photo(seed + 1).convert("L"))
        return layer.convert(mode)
    return rgb.convert(mode)


def modes(seed: int) -> Iterator[Named]:
    """Every mode in every format that can hold it."""
    for mode in MODES:
        image = in_mode(mode, seed)
        for kind in FORMATS:
            try:
                yield f"{kind.lower()}-{mode.replace(';', '')}", saved(image, kind)
            except (OSError, ValueError, KeyError, SystemError, TypeError):  # not a mode of that format
                continue


def oriented(kind: str, orientation: int, seed: int = 0, **options: Any) -> bytes:
    """A picture stored turned, with the EXIF orientation that undoes it."""
    stored = photo(seed, 64, 48)
    for step in TURNED.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(stored, kind, exif=exif, **options)


def orientations(seed: int) -> Iterator[Named]:
    """Every orientation there is, and some that are not, in every format that has EXIF."""
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in (*range(10), 255, 65535):
            yield f"{kind.lower()}-{orientation}", oriented(kind, orientation, seed)


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    """A black PNG."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row, packer = bytes(1 + (width * bits + 7) // 8), zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def directory(entries: list[tuple[int, int, int, int]], data: bytes = b"", then: int = 0) -> bytes:
    """A little-endian TIFF: one directory of (tag, type, count, value or place), what it points to after it."""
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", then) + data


def _place(entries: int) -> int:
    """Where the data of a `directory` begins."""
    return 14 + 12 * entries


def grey_tiff(width: int, height: int, *more: tuple[int, int, int, int], data: bytes = b"", then: int = 0) -> bytes:
    """An uncompressed TIFF of 8-bit grey in one strip, or as `more` says."""
    entries = {256: (LONG, 1, width), 257: (LONG, 1, height), 258: (SHORT, 1, 8), 259: (SHORT, 1, 1),
               262: (SHORT, 1, 1), 273: (LONG, 1, 8), 277: (SHORT, 1, 1), 278: (LONG, 1, height),
               279: (LONG, 1, width * height)}  # fmt: skip
    entries |= {tag: (kind, count, value) for tag, kind, count, value in more}
    return directory([(tag, *entry) for tag, entry in sorted(entries.items())], data, then)


def many_scans(scans: int, side: int) -> bytes:
    """A progressive JPEG whose last scan, a pass over all its pixels in a few bytes, comes again and again."""
    content = saved(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * scans + b"\xff\xd9"


def large_exif(size: int) -> bytes:
    """EXIF of fractions, each of which becomes an object, that says: turn the picture."""
    count = (size - 64) // 8
    entries = [(0x0112, SHORT, 1, 6), (0x9999, RATIONAL, count, _place(2))]
    return directory(entries, struct.pack("<II", 3, 7) * count)


def crafted(seed: int) -> Iterator[Named]:
    """One of each trick."""
    small, page = photo(seed), saved(photo(seed), "TIFF")
    yield from _bombs()
    fractions = large_exif(BIG)
    yield "png-exif-of-20-MB", png(40, 30, 8, 2, chunk(b"eXIf", fractions))
    yield "webp-exif-of-2-MB", saved(small, "WEBP", exif=b"Exif\0\0" + large_exif(2_000_000))
    jpeg, block = saved(small, "JPEG"), 65_000
    pieces = [fractions[start : start + block] for start in range(0, len(fractions), block)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece for piece in pieces)
    yield "jpeg-exif-in-300-segments", jpeg[:2] + segments + jpeg[2:]
    overlapping = [(tag, 7, 3_000_000, _place(65_535)) for tag in range(65_535)]
    yield "tiff-values-that-overlap", directory(overlapping, bytes(3_000_000))
    yield "tiff-directory-in-a-circle", grey_tiff(24, 18, then=8)
    yield "tiff-of-100000-pages", page[:-4] + b"".join(
        struct.pack("<HI", 0, len(page) + 6 * (number + 1)) for number in range(100_000))  # fmt: skip
    offsets = (BIG - 1_000) // 8
    strips = [(273, LONG, offsets, _place(9)), (278, LONG, 1, 1), (279, LONG, offsets, _place(9) + 4 * offsets)]
    yield "tiff-of-2500000-strips", grey_tiff(24, 18, *strips, data=bytes(8 * offsets))
    for name, packed in (("raw", 1), ("lzw", 5), ("deflate", 8), ("packbits", 32773), ("fax4", 4), ("jpeg", 7)):
        tiles = [(259, SHORT, 1, packed), (322, LONG, 1, 2**30), (323, LONG, 1, 2**30), (324, LONG, 1, 8),
                 (325, LONG, 1, 99)]  # fmt: skip
        yield f"tiff-{name}-tile-of-2^60", grey_tiff(24, 18, *tiles)
        yield f"tiff-{name}-strip-of-4-GB", grey_tiff(
            24, 18, (259, SHORT, 1, packed), (278, LONG, 1, 2**32 - 1), (279, LONG, 1, 2**32 - 1))  # fmt: skip
    yield "tiff-of-65535-samples", grey_tiff(24, 18, (277, SHORT, 1, 65_535))
    gif = saved(small, "GIF")
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * (BIG // 256 - 50) + b"\0"
    yield "gif-comment-of-20-MB", gif[:781] + comment + gif[781:]
    yield "gif-of-1000000-extensions", gif[:781] + b"!\xf9\x04\0\0\0\0\0" * 1_000_000 + gif[781:]
    yield "gif-of-10000-frames", gif[:-1] + gif[781:-1] * 10_000 + b";"
    yield "png-of-100000-chunks", png(40, 30, 8, 2, *[chunk(b"teSt", b"")] * 100_000)
    yield "png-of-100000-texts", png(40, 30, 8, 2, *[chunk(b"tEXt", b"a%d\0b" % n) for n in range(100_000)])
    for name, fill in (("fill-bytes", b"\xff"), ("zeros", b"\xff" + b"\0")):
        yield f"jpeg-of-19000000-{name}", jpeg[:2] + fill.ljust(19_000_000, fill[-1:]) + jpeg[2:]
    yield "jpeg-of-1000000-segments", jpeg[:2] + b"\xff\xee\0\x02" * 1_000_000 + jpeg[2:]
    yield "jpeg-of-4000-scans", many_scans(4000, 2000)
    yield "jpeg-of-64-scans", many_scans(50, 2000)
    index = directory([(0xB000, 7, 4, 0x30303130), (0xB001, LONG, 1, 2**32 - 1), (0xB002, 7, 16, _place(3))], bytes(16))
    yield "mpo-of-4-billion-pictures", jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(index) + 6) + b"MPF\0" + index + (
        jpeg[2:])  # fmt: skip
    rle = saved(small.quantize(16), "BMP")
    yield "bmp-rle-that-skips-far", rle[:30] + struct.pack("<I", 1) + rle[34:1078] + b"\0\2\xff\xff" * 100_000
    yield "bmp-header-of-4-GB", rle[:14] + b"\xff" * 4 + rle[18:]


def _bombs() -> Iterator[Named]:
    """Pixels that pack well, in size below and above what is accepted; and what else can be packed in a PNG."""
    for depth, colour in ((1, 0), (16, 0), (8, 2), (16, 2), (8, 4), (8, 6), (16, 6)):
        yield f"png-2000x2000-{depth}-{colour}", png(2000, 2000, depth, colour)
    yield "png-2000x2000-transparent", png(2000, 2000, 8, 2, chunk(b"tRNS", bytes(6)))
    yield "png-20000x20000", png(20_000, 20_000, 1, 0)
    for width, height in ((4_000_000, 1), (1, 4_000_000)):
        yield f"png-{width}x{height}", png(width, height, 8, 2)
    packed = zlib.compress(bytes(1 << 28), 9)
    yield "png-text-of-256-MB", png(40, 30, 8, 2, chunk(b"zTXt", b"a\0\0" + packed))
    yield "png-profile-of-256-MB", png(40, 30, 8, 2, chunk(b"iCCP", b"a\0\0" + packed))
    yield "png-more-pixels-than-it-says", png(40, 30, 8, 2, chunk(b"IDAT", packed))
    empty: dict[str, Callable[[], bytes]] = {
        "gif": lambda: saved(Image.new("P", (2000, 2000)), "GIF"),
        "webp": lambda: saved(Image.new("RGBA", (2000, 2000)), "WEBP", lossless=True),
        "webp-animated": lambda: saved(Image.new("RGBA", (2000, 2000)), "WEBP", lossless=True, save_all=True,
                                       append_images=[Image.new("RGBA", (2000, 2000), "red")]),
        "tiff-lzw": lambda: saved(Image.new("CMYK", (2000, 2000)), "TIFF", compression="tiff_lzw"),
        "tiff-deflate": lambda: saved(Image.new("RGBA", (2000, 2000)), "TIFF", compression="tiff_adobe_deflate"),
        "tiff-fax": lambda: saved(Image.new("1", (2000, 2000)), "TIFF", compression="group4"),
        "jpeg": lambda: saved(Image.new("CMYK", (2000, 2000)), "JPEG", progressive=True),
    }  # fmt: skip
    for name, make in empty.items():
        yield f"{name}-2000x2000", make()
