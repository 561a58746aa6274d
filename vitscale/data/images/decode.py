"""Image bytes to uint8 pixels: libjpeg-turbo for JPEG, Pillow for the rest, with the size checked before anything is decoded.

A JPEG is decoded whole by `simplejpeg`, or only where it is wanted by `turbojpeg`; the pixels are the same.

Conventions, those of torchvision's ImageFolder unless said: the EXIF orientation is not applied (pack upright images); alpha
is dropped, not composited; palettes are expanded; 16-bit grey keeps its high byte; grayscale is ITU-R 601 luma (for a JPEG
its own Y channel); of an animation the first frame counts. Colour profiles are ignored.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.MpoImagePlugin
import PIL.WebPImagePlugin
import simplejpeg

from vitscale.config import DataError
from vitscale.data.images import turbojpeg
from vitscale.data.images.crops import Box, shrink_for, shrunk
from vitscale.data.types import JpegDecoder, RawSample, UnreadableSampleError

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
"""Extensions of the members that hold an image. What is in one is told by its first bytes: ImageNet has a PNG named .JPEG."""

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused on their header alone: a file of a few kilobytes can claim gigabytes."""

ChooseBox = Callable[[int, int], Box]
"""Which part of an image of a given height and width is wanted. Called once per image, before anything is decoded."""

Image = npt.NDArray[np.uint8]
# Shape suffixes: H height, W width, C channels.

_JPEG_MAGIC = b"\xff\xd8\xff"
# Pillow imports what reads a format when it first meets one. Here and now instead: an import that fails there, for want of a descriptor,
# would pass for an image that cannot be decoded. (Not among what this imports: WebP; MPO and TIFF, which parse parts of JPEGs.)
PIL.Image.preinit()
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP")
_PILLOW_MODES = {1: "L", 3: "RGB"}
_TURBO_MODES = {1: "GRAY", 3: "RGB"}
# What libjpeg-turbo converts to RGB and grey by itself; CMYK and YCCK are left to Pillow.
_TURBO_COLORSPACES = frozenset({"RGB", "YCbCr", "Gray"})


def decode_image_member(sample: RawSample, *, num_channels: int, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode the sample's image member to uint8 (H, W, C), C = 1 (grayscale) or 3 (RGB), writable.

    Raises `DataError` naming shard and key when there is no image member, `UnreadableSampleError` when it is damaged, too large
    or of another format.
    """
    return _naming(sample, lambda data: decode_image(data, num_channels=num_channels, max_pixels=max_pixels))


def decode_crop_member(
    sample: RawSample,
    *,
    num_channels: int,
    choose_box: ChooseBox,
    size: int,
    jpeg_decoder: JpegDecoder = "simplejpeg",
    max_pixels: int = MAX_PIXELS,
) -> Image:
    """Decode a part of the sample's image member, as `decode_crop` does. Raises what `decode_image_member` raises."""

    def decode(data: memoryview) -> Image:
        return decode_crop(
            data, num_channels=num_channels, choose_box=choose_box, size=size, jpeg_decoder=jpeg_decoder, max_pixels=max_pixels
        )

    return _naming(sample, decode)


def decode_image(data: bytes | memoryview, *, num_channels: int, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode a JPEG, PNG or WebP to uint8 (H, W, C). Raises `ValueError` that says why it cannot be decoded."""
    frame = _read_frame(data, max_pixels=max_pixels)
    image_HWC = None if frame is None else _decode_whole(data, frame=frame, shrink=1, num_channels=num_channels)
    return _decode_with_pillow(data, num_channels=num_channels, max_pixels=max_pixels) if image_HWC is None else image_HWC


def decode_crop(
    data: bytes | memoryview,
    *,
    num_channels: int,
    choose_box: ChooseBox,
    size: int,
    jpeg_decoder: JpegDecoder = "simplejpeg",
    max_pixels: int = MAX_PIXELS,
) -> Image:
    """Decode the wanted part of a JPEG, PNG or WebP to uint8 (H, W, C), to be resized to `size` x `size` afterwards.

    Where both sides of the part are at least 2, 4 or 8 times `size`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size (a scaled
    inverse DCT) and the part's edges are rounded to the pixels there: the part that comes back is that much smaller.
    Raises `ValueError` that says why it cannot be decoded.
    """
    frame = _read_frame(data, max_pixels=max_pixels)
    if frame is None:
        image_HWC = _decode_with_pillow(data, num_channels=num_channels, max_pixels=max_pixels)
        return _cut(image_HWC, choose_box(*image_HWC.shape[:2]))
    box = choose_box(frame.height, frame.width)
    shrink = shrink_for(box, size=size)
    part_HWC = _DECODE_PART[jpeg_decoder](data, frame=frame, box=shrunk(box, shrink=shrink), shrink=shrink, num_channels=num_channels)
    if part_HWC is not None:
        return part_HWC
    return _cut(_decode_with_pillow(data, num_channels=num_channels, max_pixels=max_pixels), box)


def _naming(sample: RawSample, decode: Callable[[memoryview], Image]) -> Image:
    """Decode the sample's image member; errors name shard and key."""
    member = next((sample.members[name] for name in IMAGE_MEMBERS if name in sample.members), None)
    if member is None:
        raise DataError(
            f"{sample.shard}: sample {sample.key!r} has no image: expected a member {', '.join(IMAGE_MEMBERS)},"
            f" found {', '.join(sorted(sample.members))}. Pack the data set again with images."
        )
    try:
        return decode(member)
    except ValueError as error:
        raise UnreadableSampleError(
            f"{sample.shard}: the image of sample {sample.key!r} cannot be decoded: {error}."
            " Remove or replace it in the source and pack the data set again."
        ) from None


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """What the header of a JPEG says that libjpeg-turbo converts by itself."""

    height: int
    width: int


def _read_frame(data: bytes | memoryview, *, max_pixels: int) -> _Frame | None:
    """None for what Pillow is to decode: other formats, other colour spaces, and a header that libjpeg-turbo does not take."""
    if data[:3] != _JPEG_MAGIC:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(height=height, width=width, max_pixels=max_pixels)
    return _Frame(height=height, width=width) if colorspace in _TURBO_COLORSPACES else None


# The next three give None for what libjpeg-turbo warns about or refuses. Pillow then decides: it tolerates stray bytes between
# markers, as photo collections have, and refuses a truncated file.


def _decode_whole(data: bytes | memoryview, *, frame: _Frame, shrink: int, num_channels: int) -> Image | None:
    # Of the scales n/8 that the library has, these bounds leave exactly 1 / shrink.
    height, width = -(-frame.height // shrink), -(-frame.width // shrink)
    try:
        image_HWC: Image = simplejpeg.decode_jpeg(
            data, colorspace=_TURBO_MODES[num_channels], min_height=height, min_width=width, min_factor=shrink
        )
    except ValueError:
        return None
    return image_HWC


def _decode_and_cut(data: bytes | memoryview, *, frame: _Frame, box: Box, shrink: int, num_channels: int) -> Image | None:
    image_HWC = _decode_whole(data, frame=frame, shrink=shrink, num_channels=num_channels)
    return None if image_HWC is None else _cut(image_HWC, box)


def _decode_part(data: bytes | memoryview, *, frame: _Frame, box: Box, shrink: int, num_channels: int) -> Image | None:  # noqa: ARG001
    try:
        return turbojpeg.decode_part(data, box=box, shrink=shrink, num_channels=num_channels)
    except ValueError:
        return None


_DECODE_PART = {"simplejpeg": _decode_and_cut, "turbojpeg": _decode_part}


def _cut(image_HWC: Image, box: Box) -> Image:
    return image_HWC[box.top : box.top + box.height, box.left : box.left + box.width]


def _decode_with_pillow(data: bytes | memoryview, *, num_channels: int, max_pixels: int) -> Image:
    mode = _PILLOW_MODES[num_channels]
    try:
        image: PIL.Image.Image = PIL.Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
        _check_size(height=image.height, width=image.width, max_pixels=max_pixels)
        if image.mode.startswith("I;16"):
            # Pillow would clip 16-bit grey at 255.
            image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        # Alpha is dropped. Told of it, Pillow warns of what that loses, and refuses transparent colours that no pixel can have.
        image.info.pop("transparency", None)
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    except MemoryError:
        raise  # of the machine, not of the image
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
