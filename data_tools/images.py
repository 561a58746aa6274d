"""What becomes of one image when it is packed: its check, and its transcoding to an upright baseline JPEG."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL
import PIL.Image
import simplejpeg

from .split import UnusableImageError

EXTENSIONS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""File suffixes of images that can be packed (any case) and the member extension each promises."""

MAX_PIXELS = 100_000_000
"""The decoder's limit: what it would refuse in a run is refused here."""

Check = Literal["decode", "header"]
"""decode: the whole image is decoded, so that a cut or damaged one is found; header: its format and size, and a PNG's checksums."""

Trait = Literal["rotated", "animated", "misnamed"]
"""What the user may want to know of an image that is packed: an EXIF orientation, several frames, another format than its name says."""

# A legend for array names: H height, W width, C channels.
_Pixels = npt.NDArray[np.uint8]

_JPEG_MAGIC = b"\xff\xd8\xff"
_FORMATS = ("JPEG", "PNG", "WEBP")
_EXTENSION_OF_FORMAT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a JPEG with more pictures behind it
_TURBO_MODES = {"RGB": "RGB", "YCbCr": "RGB", "Gray": "GRAY"}  # the colour spaces that libjpeg-turbo converts by itself
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_LONGEST_JPEG_SIDE = 65_500


@dataclass(frozen=True, kw_only=True)
class Transcode:
    """Every image is encoded anew as a baseline JPEG: gray ones gray, all others RGB with 4:2:0 chroma, no metadata."""

    quality: int = 90
    max_short_side: int | None = None
    """Images whose shorter side is longer are shrunk to it (Lanczos). None: sizes stay."""
    max_side: int | None = None
    """The same by the longer side."""

    def shrunk(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of an image of this size when it is stored."""
        limits = ((min(size), self.max_short_side), (max(size), self.max_side))
        scale = min([1.0, *(limit / side for side, limit in limits if limit is not None)])
        width, height = (max(1, round(side * scale)) for side in size)
        return width, height


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """What is done to every image."""

    check: Check = "decode"
    transcode: Transcode | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image as it is stored."""

    data: bytes
    extension: str
    traits: frozenset[Trait]


def prepare_image(data: bytes, *, policy: ImagePolicy, claimed: str | None = None) -> PreparedImage:
    """Check an image and transcode it if asked to; `claimed` is the extension that its name promises.

    Kept bytes stay as they are: animated, 16-bit, CMYK and EXIF-rotated images too. A transcoded image is the first frame, in
    8-bit gray or RGB, composited on white where it is transparent, turned upright. Raises `UnusableImageError` for what is not
    a JPEG, PNG or WebP, has too many pixels, or is damaged as far as `policy` looks.
    """
    if not data:
        raise UnusableImageError("the file is empty")
    return _guarded(lambda: _prepare(data, policy=policy, claimed=claimed))


def encoder_name() -> str:
    """The libraries that decide the bytes of a transcoded image."""
    return f"simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__}"


def _guarded(step: Callable[[], PreparedImage]) -> PreparedImage:
    try:
        with warnings.catch_warnings():
            # The limit on pixels is ours; and what a decoder only warns about, it decodes.
            warnings.simplefilter("ignore")
            return step()
    except UnusableImageError:
        raise
    except PIL.Image.DecompressionBombError:  # Pillow's own limit, which is beyond ours
        raise UnusableImageError(f"more pixels than the limit, which is {MAX_PIXELS} in all") from None
    except PIL.UnidentifiedImageError:
        raise UnusableImageError("not a JPEG, PNG or WebP image") from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's plugins raise whatever a damaged file makes them stumble over: OSError, SyntaxError, struct.error, ...
        raise UnusableImageError(" ".join(str(error).split()).rstrip(".") or type(error).__name__) from None


def _prepare(data: bytes, *, policy: ImagePolicy, claimed: str | None) -> PreparedImage:
    with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        extension = _EXTENSION_OF_FORMAT[image.format or ""]
        if image.width * image.height > MAX_PIXELS:
            raise UnusableImageError(f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS} in all")
        if extension == "png":
            _verify(data)
        traits: set[Trait] = {"misnamed"} if claimed not in (None, extension) else set()
        if extension != "jpg" and getattr(image, "is_animated", False):
            traits.add("animated")
        if policy.transcode is None:
            if policy.check == "decode":
                _decode(data, image=image)
            orientation = _orientation(image)
        else:
            pixels = _decode(data, image=image, min_short_side=2 * min(policy.transcode.shrunk(image.size)))
            orientation = _orientation(image)
            data, extension = _encode(pixels, orientation=orientation, transcode=policy.transcode), "jpg"
    if orientation in _UPRIGHT:
        traits.add("rotated")
    return PreparedImage(data=data, extension=extension, traits=frozenset(traits))


def _verify(png: bytes) -> None:
    """Every chunk's checksum, and that none is missing: decoding alone does not see damage behind the last pixel."""
    with PIL.Image.open(io.BytesIO(png), formats=("PNG",)) as image:  # an image that was verified cannot be decoded any more
        image.verify()


def _orientation(image: PIL.Image.Image) -> int:
    """The EXIF orientation, 1 where there is none, or none that can be read."""
    if "exif" not in image.info:  # asking Pillow then would decode a whole PNG, in search of one behind the pixels
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is full of nonsense, over which Pillow stumbles in many ways; the image itself is fine
        return 1


def _decode(data: bytes, *, image: PIL.Image.Image, min_short_side: int = 0) -> _Pixels:
    """Decode to (H, W, 1) or (H, W, 3); a JPEG may come scaled by a power of two, its shorter side at least `min_short_side`."""
    if data[:3] == _JPEG_MAGIC:
        pixels = _decode_with_turbo(data, short_side=min(image.size), min_short_side=min_short_side)
        if pixels is not None:
            return pixels
    return _pillow_pixels(image)


def _decode_with_turbo(data: bytes, *, short_side: int, min_short_side: int) -> _Pixels | None:
    """The decoded JPEG, or None for what libjpeg-turbo does not convert or warns about: Pillow then decides."""
    try:
        _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in _TURBO_MODES:
            return None
        # Scaling inside the decoder blurs a little: the resampling afterwards is left at least half of the way.
        limit = min_short_side if 0 < 2 * min_short_side <= short_side else 0
        pixels: _Pixels = simplejpeg.decode_jpeg(data, colorspace=_TURBO_MODES[colorspace], min_height=limit, min_width=limit)
    except ValueError:
        return None
    return pixels


def _pillow_pixels(image: PIL.Image.Image) -> _Pixels:
    if image.mode.startswith("I;16"):
        pixels_HW = (np.asarray(image) >> 8).astype(np.uint8)  # Pillow would clip 16-bit gray at 255
        return pixels_HW[:, :, None]
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        white = PIL.Image.new("RGBA", colour.size, "white")
        return np.asarray(PIL.Image.alpha_composite(white, colour).convert("RGB"))
    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _encode(pixels_HWC: _Pixels, *, orientation: int, transcode: Transcode) -> bytes:
    num_channels = pixels_HWC.shape[2]
    image = PIL.Image.fromarray(pixels_HWC[:, :, 0] if num_channels == 1 else pixels_HWC)
    size = transcode.shrunk(image.size)
    if size != image.size:
        image = image.resize(size, PIL.Image.Resampling.LANCZOS)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if max(image.size) > _LONGEST_JPEG_SIDE:
        raise UnusableImageError(f"{image.width} x {image.height} pixels, a JPEG has at most {_LONGEST_JPEG_SIDE} on a side")
    pixels_HWC = np.ascontiguousarray(np.asarray(image)).reshape(image.height, image.width, num_channels)
    colours, chroma = ("GRAY", "Gray") if num_channels == 1 else ("RGB", "420")
    encoded: bytes = simplejpeg.encode_jpeg(pixels_HWC, quality=transcode.quality, colorspace=colours, colorsubsampling=chroma)
    return encoded
