"""Every kind of image file becomes upright RGB, or a reason."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lookalike.images import decode as images
from lookalike.images.decode import ImageError, decode, fit
from tests.helpers.pictures import picture

LIMIT = 10_000


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = decode(content, LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_every_format_gives_the_picture_back(kind: str) -> None:
    original = picture(1)
    tolerance = {"PNG": 0, "BMP": 0, "TIFF": 0}.get(kind, 12)  # mean error of what a lossy format may lose
    error = np.abs(pixels(encoded(original, kind)) - np.asarray(original).astype(int)).mean()
    assert error <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    """The file is stored as a camera would, turned or mirrored; what comes out is the upright original."""
    original = picture(2)
    turned = {
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
    }[orientation]  # fmt: skip
    stored = original
    for step in turned:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encoded(stored, "PNG", exif=exif)), np.asarray(original))


@pytest.mark.parametrize("exif", [b"MM\0*\xff\xff\xff\xff", b"II*", b"no TIFF at all"])
def test_broken_exif_does_not_lose_the_picture(exif: bytes) -> None:
    content = encoded(picture(3), "PNG", exif=b"Exif\0\0" + exif)
    assert np.array_equal(pixels(content), np.asarray(picture(3)))


def test_grey_palette_and_bilevel() -> None:
    grey = picture(4).convert("L")
    assert np.array_equal(pixels(encoded(grey, "PNG")), np.repeat(np.asarray(grey)[:, :, None], 3, axis=2))
    palette = picture(4).quantize(16)
    assert np.array_equal(pixels(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    assert set(np.unique(pixels(encoded(picture(4).convert("1"), "PNG")))) <= {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    grey = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    assert pixels(encoded(grey, kind))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_values_without_a_range_are_rejected() -> None:
    with pytest.raises(ImageError, match="no defined range"):
        decode(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), LIMIT)
    with pytest.raises(ImageError, match="beyond 16 bits"):
        decode(encoded(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"), LIMIT)


def test_transparency_is_laid_on_white() -> None:
    layer = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    layer.putpixel((1, 0), (255, 0, 0, 0))
    assert pixels(encoded(layer, "PNG"))[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    grey = Image.fromarray(np.array([[[0, 255], [0, 0]]], dtype=np.uint8), "LA")
    assert pixels(encoded(grey, "PNG"))[0, :, 0].tolist() == [0, 255]
    indexed = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    assert pixels(encoded(indexed, "PNG", transparency=1))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk_jpeg() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(encoded(red, "JPEG", quality=95))[4, 4] - [255, 0, 0]).max() < 12


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(content)[0, 0].tolist() == [255, 0, 0]


def test_too_many_pixels_are_refused_before_decoding() -> None:
    """The header claims 60,000 x 60,000 pixels and none follow: only reading the header can give this reason."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"^3600000000 pixels, more than max_pixels = 10000$"):
        decode(bomb, LIMIT)


def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused_before_there_is_room_for_it() -> None:
    """Found by fuzzing: of 549 bytes Pillow made 2.6 GB as it opened them. Width and height would say that it did."""
    content = encoded(Image.new("P", (9, 6)), "GIF")
    frame = content.rindex(b",")
    extents = b"," + struct.pack("<4H", 0, 0, 60_000, 60_000)
    for disposal in (2, 3):
        control = b"!\xf9\x04" + bytes([disposal << 2 | 1]) + bytes(4)
        with pytest.raises(ImageError, match=r"^3600000000 pixels, more than max_pixels = 10000$"):
            decode(content[:frame] + control + extents + content[frame + 9 :], LIMIT)


def test_a_limit_is_that_of_one_picture_not_of_the_process() -> None:
    small, large = (encoded(Image.new("RGB", (side, side)), "PNG") for side in (10, 1000))
    decode(small, 100)
    assert Image.open(io.BytesIO(large)).size == (1000, 1000)
    with ThreadPoolExecutor(4) as pool:
        sizes = list(
            pool.map(lambda number: decode(*((small, 100) if number % 2 else (large, 10**6))).size, range(200))
        )
    assert sizes == [(1000, 1000), (10, 10)] * 100


def test_exactly_max_pixels_is_allowed() -> None:
    assert decode(encoded(Image.new("RGB", (100, 100)), "PNG"), LIMIT).size == (100, 100)
    with pytest.raises(ImageError, match="100 x 101"):
        decode(encoded(Image.new("RGB", (100, 101)), "PNG"), LIMIT)


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"<svg/>", encoded(picture(5), "PPM"), encoded(picture(5), "PNG")[:200]]
)
def test_what_is_no_image_is_rejected_with_the_same_reason_each_time(content: bytes) -> None:
    reasons = set()
    for _ in range(3):
        with pytest.raises(ImageError) as caught:
            decode(content, LIMIT)
        reasons.add(str(caught.value))
    assert len(reasons) == 1
    assert "0x" not in reasons.pop()  # no memory address: rejected.csv must be the same in every run


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_jpeg_is_rejected(share: float) -> None:
    content = encoded(picture(6, 200, 150), "JPEG")
    with pytest.raises(ImageError, match=r"cannot be decoded|not an image"):
        decode(content[: int(len(content) * share)], 100_000)


def test_fit_crop_keeps_the_centre() -> None:
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    assert (fit(image, 32, "crop")[:, 4:-4] == [0, 0, 255]).all()


def test_fit_pad_keeps_everything_on_white() -> None:
    out = fit(Image.new("RGB", (60, 30), "red"), 40, "pad")
    assert (out[20] == [255, 0, 0]).all()
    assert (out[0] == 255).all()


def test_fit_stretch_keeps_everything() -> None:
    image = Image.new("RGB", (80, 20), "red")
    image.paste("blue", (40, 0, 80, 20))
    out = fit(image, 32, "stretch")
    assert (out[:, :14] == [255, 0, 0]).all()
    assert (out[:, 18:] == [0, 0, 255]).all()


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (33, 47)])
def test_fit_gives_the_square_for_any_shape(how: str, size: tuple[int, int]) -> None:
    out = fit(Image.new("RGB", size, "green"), 32, how)
    assert (out.shape, out.dtype) == ((32, 32, 3), np.uint8)


def test_shrinking_is_antialiased() -> None:
    """One-pixel stripes become even grey; without antialiasing they would come out as stripes or one colour."""
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    out = fit(Image.fromarray(stripes), 32, "stretch").astype(int)
    assert np.abs(out - 127.5).max() < 12


def test_fill_bytes_of_a_jpeg_are_skipped() -> None:
    """Legal before any marker. The pixels are the same, and all that stands between segments is dropped, up to SOS."""
    content = encoded(picture(7), "JPEG", progressive=True, comment=b"\xff\xff\xd8 no marker")
    filled, position = content[:2], 2
    while content[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4])
        filled += b"\xff" * position + content[position:end]
        position = end
    filled += b"junk\xff\xff" + content[position:]
    assert images.without_fill_bytes(filled) == content == images.without_fill_bytes(content)
    assert np.array_equal(pixels(filled), pixels(content))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"GIF89a\xff\xff\xff", b"BM\xff\xd8\xff\xff\xff"])
def test_content_without_fill_bytes_is_as_it_was(content: bytes) -> None:
    assert images.without_fill_bytes(content) == content


def test_a_jpeg_of_very_many_segments_is_refused() -> None:
    content = encoded(picture(8), "JPEG")
    for segment in (b"\xff\xee\0\x02", b"\xff\xd0", b"\xff\0"):
        with pytest.raises(ImageError, match="a JPEG with more than 10000 segments"):
            decode(content[:2] + segment * 10_000 + content[2:], LIMIT)
