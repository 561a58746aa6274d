import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vitscale.config import DataError
from vitscale.data.decode import decode_image, decode_image_member
from vitscale.data.types import RawSample


def picture(height: int = 48, width: int = 64) -> PIL.Image.Image:
    """Smooth, with a different gradient in each channel."""
    y_H1, x_1W = np.mgrid[0:height, 0:width]
    planes = [255 * x_1W / width, 255 * y_H1 / height, 255 * (x_1W + y_H1) / (height + width)]
    return PIL.Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def encoded(image: PIL.Image.Image, format_name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def by_pillow(data: bytes, mode: str) -> np.ndarray:
    pixels = np.array(PIL.Image.open(io.BytesIO(data)).convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_of_claimed_size(width: int, height: int) -> bytes:
    data = bytearray(encoded(picture(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


FILES = {
    "jpeg": encoded(picture(), "JPEG", quality=95),
    "jpeg 4:4:4": encoded(picture(), "JPEG", subsampling=0),
    "jpeg progressive": encoded(picture(), "JPEG", progressive=True),
    "jpeg grey": encoded(picture().convert("L"), "JPEG"),
    "jpeg stored as RGB": encoded(picture(), "JPEG", keep_rgb=True),
    "jpeg CMYK": encoded(picture().convert("CMYK"), "JPEG"),
    "png": encoded(picture(), "PNG"),
    "png grey": encoded(picture().convert("L"), "PNG"),
    "png 1 bit": encoded(picture().convert("1"), "PNG"),
    "png palette": encoded(picture().convert("P", palette=PIL.Image.Palette.ADAPTIVE), "PNG"),
    "webp lossless": encoded(picture(), "WEBP", lossless=True),
    "webp": encoded(picture(), "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB")])
def test_agrees_with_pillow(name: str, num_channels: int, mode: str) -> None:
    image_HWC = decode_image(memoryview(FILES[name]), num_channels=num_channels)
    assert image_HWC.shape == (48, 64, num_channels)
    assert image_HWC.dtype == np.uint8
    assert image_HWC.flags.writeable
    # A colour JPEG's own Y channel differs from the luma of its rounded RGB.
    tolerance = 2 if name.startswith("jpeg") else 0
    assert np.abs(image_HWC.astype(int) - by_pillow(FILES[name], mode)).max() <= tolerance


def test_alpha_is_dropped_and_not_composited() -> None:
    image = picture()
    image.putalpha(0)
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), num_channels=3), np.array(picture()))


def test_sixteen_bit_grey_keeps_the_high_byte() -> None:
    pixels = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    image_HWC = decode_image(encoded(PIL.Image.fromarray(pixels), "PNG"), num_channels=1)
    np.testing.assert_array_equal(image_HWC[:, :, 0], pixels >> 8)


def test_exif_orientation_is_not_applied() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    assert decode_image(encoded(picture(), "JPEG", exif=exif), num_channels=3).shape == (48, 64, 3)


def test_stray_bytes_between_the_markers_of_a_jpeg_are_tolerated() -> None:
    data = FILES["jpeg"]
    tables = data.index(b"\xff\xdb")
    image_HWC = decode_image(data[:tables] + bytes(7) + data[tables:], num_channels=3)
    np.testing.assert_array_equal(image_HWC, decode_image(data, num_channels=3))


def sample(**members: bytes) -> RawSample:
    views = {extension: memoryview(data) for extension, data in members.items()}
    return RawSample(sample_id=0, epoch=0, view=0, key="n01/cat", shard="train-00003.tar", members=views)


def test_the_content_tells_the_format_not_the_extension() -> None:
    np.testing.assert_array_equal(decode_image_member(sample(jpeg=FILES["png"]), num_channels=3), np.array(picture()))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (FILES["jpeg"][: len(FILES["jpeg"]) // 2], "(?i)truncated"),
        (FILES["png"][: len(FILES["png"]) // 2], "truncated"),
        (FILES["png"][:60] + b"\0\0\0\0" + FILES["png"][64:], "cannot be decoded"),
        (FILES["webp"][: len(FILES["webp"]) // 2], "cannot be decoded"),
        (b"", "neither JPEG, PNG nor WebP"),
        (b"not an image", "neither JPEG, PNG nor WebP"),
        (encoded(picture(), "BMP"), "neither JPEG, PNG nor WebP"),
        (encoded(picture(), "TIFF"), "neither JPEG, PNG nor WebP"),
        (png_header(20_000, 6_000), "20000 x 6000 pixels"),
        (png_header(60_000, 60_000), "cannot be decoded"),
        (jpeg_of_claimed_size(30_000, 30_000), "30000 x 30000 pixels, more than the 100000000"),
    ],
)
def test_an_undecodable_image_is_one_paragraph_with_shard_and_key(data: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        decode_image_member(sample(png=data), num_channels=3)
    assert str(caught.value).startswith("train-00003.tar: the image of sample 'n01/cat' cannot be decoded: ")
    assert "\n" not in str(caught.value)


def test_a_sample_without_an_image_says_what_it_has() -> None:
    with pytest.raises(DataError, match=r"sample 'n01/cat' has no image: expected a member jpg, .*, found cls, txt"):
        decode_image_member(sample(txt=b"a cat", cls=b"1"), num_channels=3)
