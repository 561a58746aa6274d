import io
import math
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.facilities import needs_turbojpeg
from vitscale.config import DataError
from vitscale.data.images.crops import Box
from vitscale.data.images.decode import decode_crop, decode_crop_member, decode_image, decode_image_member
from vitscale.data.types import JpegDecoder, RawSample, UnreadableSampleError


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


def with_transparency(data: bytes, value: bytes) -> bytes:
    """A PNG with a chunk that says which colours are transparent."""
    chunk = struct.pack(">I", len(value)) + b"tRNS" + value + struct.pack(">I", zlib.crc32(b"tRNS" + value))
    start = data.index(b"IDAT") - 4
    return data[:start] + chunk + data[start:]


@pytest.mark.parametrize(
    ("name", "value"),
    [("png", b"\0\x0a\0\x0b\0\x0c"), ("png grey", b"\xff\xff"), ("png palette", bytes(range(200))), ("png palette", b"\xff\0")],
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_transparent_colours_change_nothing_and_warn_of_nothing(name: str, value: bytes, num_channels: int) -> None:
    data = with_transparency(FILES[name], value)
    assert "transparency" in PIL.Image.open(io.BytesIO(data)).info
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_HWC = decode_image(data, num_channels=num_channels)
    np.testing.assert_array_equal(image_HWC, decode_image(FILES[name], num_channels=num_channels))


def test_sixteen_bit_grey_keeps_the_high_byte() -> None:
    pixels = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    image_HWC = decode_image(encoded(PIL.Image.fromarray(pixels), "PNG"), num_channels=1)
    np.testing.assert_array_equal(image_HWC[:, :, 0], pixels >> 8)


def test_exif_orientation_is_not_applied() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    assert decode_image(encoded(picture(), "JPEG", exif=exif), num_channels=3).shape == (48, 64, 3)


def test_sixteen_bit_colour_keeps_the_high_byte() -> None:
    pixels = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    np.testing.assert_array_equal(decode_image(b"\x89PNG\r\n\x1a\n" + body, num_channels=3), pixels >> 8)


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format_name: str) -> None:
    frames = [picture(), picture().transpose(PIL.Image.Transpose.ROTATE_180)]
    lossless = {"lossless": True} if format_name == "WEBP" else {}
    data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:], duration=100, **lossless)
    assert PIL.Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(decode_image(data, num_channels=3), np.array(frames[0]))


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


BAD_INPUT = pytest.mark.parametrize(
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
        (encoded(picture(), "GIF"), "neither JPEG, PNG nor WebP"),
        (FILES["jpeg"][:3], "cannot be decoded"),
        (FILES["jpeg"][:200], "cannot be decoded"),
        (png_header(20_000, 6_000), "20000 x 6000 pixels"),
        (png_header(60_000, 60_000), "cannot be decoded"),
        (jpeg_of_claimed_size(30_000, 30_000), "30000 x 30000 pixels, more than the 100000000"),
    ],
)


@BAD_INPUT
def test_an_undecodable_image_is_one_paragraph_with_shard_and_key(data: bytes, problem: str) -> None:
    with pytest.raises(UnreadableSampleError, match=problem) as caught:
        decode_image_member(sample(png=data), num_channels=3)
    assert str(caught.value).startswith("train-00003.tar: the image of sample 'n01/cat' cannot be decoded: ")
    assert "\n" not in str(caught.value)


def test_a_sample_without_an_image_says_what_it_has() -> None:
    with pytest.raises(DataError, match=r"sample 'n01/cat' has no image: expected a member jpg, .*, found cls, txt"):
        decode_image_member(sample(txt=b"a cat", cls=b"1"), num_channels=3)


DECODERS = pytest.mark.parametrize("jpeg_decoder", ["simplejpeg", pytest.param("turbojpeg", marks=needs_turbojpeg)])
BOX = Box(top=7, left=11, height=30, width=41)


def crop(data: bytes, *, box: Box = BOX, size: int = 24, num_channels: int = 3, jpeg_decoder: JpegDecoder = "simplejpeg") -> np.ndarray:
    seen = []

    def choose(height: int, width: int) -> Box:
        seen.append((height, width))
        return box

    part_HWC = decode_crop(data, num_channels=num_channels, choose_box=choose, size=size, jpeg_decoder=jpeg_decoder)
    assert len(seen) == 1
    return part_HWC


@DECODERS
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_crop_is_cut_out_of_the_whole_to_the_bit(name: str, num_channels: int, jpeg_decoder: JpegDecoder) -> None:
    whole_HWC = decode_image(FILES[name], num_channels=num_channels)
    part_HWC = crop(FILES[name], num_channels=num_channels, jpeg_decoder=jpeg_decoder)
    np.testing.assert_array_equal(part_HWC, whole_HWC[7:37, 11:52])


@DECODERS
def test_the_box_is_chosen_for_the_size_in_the_header(jpeg_decoder: JpegDecoder) -> None:
    for data in (FILES["jpeg"], FILES["jpeg CMYK"], FILES["png"]):
        sizes = []

        def choose(height: int, width: int, sizes: list[tuple[int, int]] = sizes) -> Box:
            sizes.append((height, width))
            return BOX

        decode_crop(data, num_channels=3, choose_box=choose, size=24, jpeg_decoder=jpeg_decoder)
        assert sizes == [(48, 64)]


@DECODERS
@pytest.mark.parametrize(("size", "shrink"), [(80, 1), (79, 2), (40, 2), (39, 4), (20, 4), (19, 8), (3, 8)])
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_covers_the_target(size: int, shrink: int, jpeg_decoder: JpegDecoder) -> None:
    large = picture(201, 303)
    box = Box(top=17, left=23, height=159, width=250)
    part_HWC = crop(encoded(large, "JPEG", quality=98, subsampling=0), box=box, size=size, jpeg_decoder=jpeg_decoder)
    edges = [math.floor(edge / shrink + 0.5) for edge in (17, 17 + 159, 23, 23 + 250)]
    assert part_HWC.shape[:2] == (edges[1] - edges[0], edges[3] - edges[2])
    corners = (23, 17, 23 + 250, 17 + 159)
    expected = large.resize((part_HWC.shape[1], part_HWC.shape[0]), PIL.Image.Resampling.BOX, box=corners)
    assert np.abs(part_HWC.astype(int) - np.asarray(expected)).mean() < 3.5  # half a pixel there is up to 4 here


@needs_turbojpeg
def test_both_decoders_give_the_same_pixels() -> None:
    random = np.random.default_rng(0)
    for options in ({}, {"subsampling": 0}, {"progressive": True}):
        data = encoded(picture(240, 320), "JPEG", **options)
        for _ in range(10):
            top, left = int(random.integers(0, 200)), int(random.integers(0, 280))
            box = Box(top=top, left=left, height=int(random.integers(8, 241 - top)), width=int(random.integers(8, 321 - left)))
            parts = [crop(data, box=box, size=20, jpeg_decoder=decoder) for decoder in ("simplejpeg", "turbojpeg")]
            np.testing.assert_array_equal(parts[0], parts[1])


def test_other_formats_are_never_decoded_at_a_smaller_scale() -> None:
    assert crop(FILES["png"], size=2).shape == (30, 41, 3)
    assert crop(FILES["jpeg CMYK"], size=2).shape == (30, 41, 3)


@DECODERS
def test_a_jpeg_that_only_pillow_reads_is_cropped_all_the_same(jpeg_decoder: JpegDecoder) -> None:
    data = FILES["jpeg"]
    tables = data.index(b"\xff\xdb")
    strayed = data[:tables] + bytes(7) + data[tables:]
    np.testing.assert_array_equal(crop(strayed, jpeg_decoder=jpeg_decoder), crop(data))


@DECODERS
@BAD_INPUT
def test_an_undecodable_crop_is_the_same_paragraph(data: bytes, problem: str, jpeg_decoder: JpegDecoder) -> None:
    lowest = Box(top=40, left=0, height=8, width=8)
    with pytest.raises(UnreadableSampleError, match=problem) as caught:
        decode_crop_member(sample(jpg=data), num_channels=3, choose_box=lambda *_: lowest, size=8, jpeg_decoder=jpeg_decoder)
    assert str(caught.value).startswith("train-00003.tar: the image of sample 'n01/cat' cannot be decoded: ")
    assert "\n" not in str(caught.value)


_DECODES_EACH = """
import sys
from vitscale.data.images.decode import decode_image
before = set(sys.modules)
for data in sys.argv[1:]:
    decode_image(bytes.fromhex(data), num_channels=3)
print(sorted(name for name in set(sys.modules) - before if name.startswith("PIL.")))
"""


@pytest.mark.dist
def test_nothing_of_pillow_is_imported_when_an_image_is_decoded() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    files = [FILES["jpeg CMYK"], FILES["png"], FILES["webp"], encoded(picture().convert("CMYK"), "JPEG", exif=exif)]
    command = [sys.executable, "-c", _DECODES_EACH, *(file.hex() for file in files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[3])
    assert done.stdout == "[]\n"
