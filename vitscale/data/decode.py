"""Image bytes to uint8 pixels: libjpeg-turbo for JPEG, Pillow for the rest, with the size checked before anything is decoded.

Conventions, those of torchvision's ImageFolder unless said: the EXIF orientation is not applied (pack upright images); alpha
is dropped, not composited; palettes are expanded; 16-bit grey keeps its high byte; grayscale is ITU-R 601 luma (for a JPEG
its own Y channel); of an animation the first frame counts. Colour profiles are ignored.
"""

import io

import numpy as np
import numpy.typing as npt
import PIL.Image
import simplejpeg

from vitscale.config import DataError
from vitscale.data.types import RawSample

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
"""Extensions of the members that hold an image. What is in one is told by its first bytes: ImageNet has a PNG named .JPEG."""

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused on their header alone: a file of a few kilobytes can claim gigabytes."""

Image = npt.NDArray[np.uint8]
# Shape suffixes: H height, W width, C channels.

_JPEG_MAGIC = b"\xff\xd8\xff"
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP")
_PILLOW_MODES = {1: "L", 3: "RGB"}
_TURBO_MODES = {1: "GRAY", 3: "RGB"}
# What libjpeg-turbo converts to RGB and grey by itself; CMYK and YCCK are left to Pillow.
_TURBO_COLORSPACES = frozenset({"RGB", "YCbCr", "Gray"})


def decode_image_member(sample: RawSample, *, num_channels: int, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode the sample's image member to uint8 (H, W, C), C = 1 (grayscale) or 3 (RGB), writable.

    Raises `DataError` naming shard and key when there is no image member, or it is damaged, too large or of another format.
    """
    member = next((sample.members[name] for name in IMAGE_MEMBERS if name in sample.members), None)
    if member is None:
        raise DataError(
            f"{sample.shard}: sample {sample.key!r} has no image: expected a member {', '.join(IMAGE_MEMBERS)},"
            f" found {', '.join(sorted(sample.members))}. Pack the data set again with images."
        )
    try:
        return decode_image(member, num_channels=num_channels, max_pixels=max_pixels)
    except ValueError as error:
        raise DataError(
            f"{sample.shard}: the image of sample {sample.key!r} cannot be decoded: {error}."
            " Remove or replace it in the source and pack the data set again."
        ) from None


def decode_image(data: bytes | memoryview, *, num_channels: int, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode a JPEG, PNG or WebP to uint8 (H, W, C). Raises `ValueError` that says why it cannot be decoded."""
    if data[:3] == _JPEG_MAGIC:
        image_HWC = _decode_with_turbo(data, num_channels=num_channels, max_pixels=max_pixels)
        if image_HWC is not None:
            return image_HWC
    return _decode_with_pillow(data, num_channels=num_channels, max_pixels=max_pixels)


def _decode_with_turbo(data: bytes | memoryview, *, num_channels: int, max_pixels: int) -> Image | None:
    """The decoded JPEG, or None for what libjpeg-turbo does not convert or warns about.

    Pillow then decides: it tolerates stray bytes between markers, as photo collections have, and refuses a truncated file.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(height=height, width=width, max_pixels=max_pixels)
    if colorspace not in _TURBO_COLORSPACES:
        return None
    try:
        image_HWC: Image = simplejpeg.decode_jpeg(data, colorspace=_TURBO_MODES[num_channels])
    except ValueError:
        return None
    return image_HWC


def _decode_with_pillow(data: bytes | memoryview, *, num_channels: int, max_pixels: int) -> Image:
    mode = _PILLOW_MODES[num_channels]
    try:
        image: PIL.Image.Image = PIL.Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
        _check_size(height=image.height, width=image.width, max_pixels=max_pixels)
        if image.mode.startswith("I;16"):
            # Pillow would clip 16-bit grey at 255.
            image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    except Exception as error:
        # Pillow's plugins raise whatever a damaged file makes them stumble over: OSError, SyntaxError, struct.error, ...
        raise ValueError(_reason(error)) from None
    return pixels.reshape(*pixels.shape[:2], num_channels)


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "it is neither JPEG, PNG nor WebP"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _check_size(*, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ValueError(f"it has {width} x {height} pixels, more than the {max_pixels} that are accepted")
