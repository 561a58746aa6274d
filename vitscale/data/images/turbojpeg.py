"""libturbojpeg 3 by ctypes: decodes the wanted part of a JPEG at 1/1, 1/2, 1/4 or 1/8 of its size, and no more than that.

The pixels are those of decoding the whole image at that size and cutting the part out, to the bit. What lies below the part is not
even looked at, so damage there goes unnoticed.
"""

import ctypes
import ctypes.util
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscale.config import ConfigError
from vitscale.data.images.crops import Box

LIBRARY_VARIABLE = "VITSCALE_TURBOJPEG"
"""Environment variable with the path of the library, where it is not in one of the usual places."""

Image = npt.NDArray[np.uint8]
# Shape suffixes: H height, W width, C channels.

# Values of turbojpeg.h, fixed by its ABI.
_INIT_DECOMPRESS = 1
_STOP_ON_WARNING, _SUBSAMPLING, _WIDTH, _HEIGHT = 0, 4, 5, 6
_PIXEL_FORMATS = {1: 6, 3: 0}  # TJPF_GRAY, TJPF_RGB by channels
_BLOCK_WIDTHS = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}
"""Width in pixels of a JPEG's smallest unit by TJSAMP_*; a region starts at a multiple of it."""

# Upsampled chroma looks one sample to each side: with this many columns more the wanted ones do not touch the region's edge.
_EDGE = 2


class _Scale(ctypes.Structure):
    _fields_ = [("num", ctypes.c_int), ("denom", ctypes.c_int)]


class _Region(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int)]


def require_turbojpeg() -> None:
    """Raise `ConfigError`, one paragraph with where it was looked for and how to get it, unless libturbojpeg 3 can be loaded."""
    _library()


def decode_part(data: bytes | memoryview, *, box: Box, shrink: int, num_channels: int) -> Image:
    """The pixels (H, W, C) of `box`, given in pixels of the image shrunk to `1 / shrink` (1, 2, 4 or 8).

    Raises `ValueError` with the library's reason, also for what it would only warn about, and `ConfigError` without the library.
    """
    library = _library()
    handle = library.tj3Init(_INIT_DECOMPRESS)
    if not handle:
        raise MemoryError("libturbojpeg")
    try:
        return _Decoder(library, handle).decode(data, box=box, shrink=shrink, num_channels=num_channels)
    finally:
        library.tj3Destroy(handle)


class _Decoder:
    """One decompression with its own handle: they are cheap, and none is shared between threads."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library = library
        self._handle = handle

    def decode(self, data: bytes | memoryview, *, box: Box, shrink: int, num_channels: int) -> Image:
        source = np.frombuffer(data, np.uint8)
        self._call("tj3Set", _STOP_ON_WARNING, 1)
        self._call("tj3DecompressHeader", source.ctypes.data, source.nbytes)
        self._call("tj3SetScalingFactor", _Scale(1, shrink))
        region = self._region(box, shrink=shrink)
        if region is None:
            height, width = (-(-self._get(side) // shrink) for side in (_HEIGHT, _WIDTH))
            pixels_HWC = self._pixels(source, height=height, width=width, num_channels=num_channels)
            return pixels_HWC[box.top : box.top + box.height, box.left : box.left + box.width]
        self._call("tj3SetCroppingRegion", region)
        pixels_HWC = self._pixels(source, height=region.h, width=region.w, num_channels=num_channels)
        return pixels_HWC[:, box.left - region.x : box.left - region.x + box.width]

    def _region(self, box: Box, *, shrink: int) -> _Region | None:
        """The box widened to where a region may start; None for a subsampling that cannot be decoded in part."""
        block_width = _BLOCK_WIDTHS.get(self._get(_SUBSAMPLING))
        if block_width is None:
            return None
        step = -(-block_width // shrink)
        left = max(0, box.left - _EDGE) // step * step
        right = min(-(-self._get(_WIDTH) // shrink), box.left + box.width + _EDGE)
        return _Region(left, box.top, right - left, box.height)

    def _pixels(self, source: Image, *, height: int, width: int, num_channels: int) -> Image:
        pixels_HWC = np.empty((height, width, num_channels), np.uint8)
        pitch = width * num_channels
        self._call("tj3Decompress8", source.ctypes.data, source.nbytes, pixels_HWC.ctypes.data, pitch, _PIXEL_FORMATS[num_channels])
        return pixels_HWC

    def _get(self, parameter: int) -> int:
        value: int = self._library.tj3Get(self._handle, parameter)
        return value

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(self._handle, *arguments) != 0:
            raise ValueError(" ".join(self._library.tj3GetErrorStr(self._handle).decode(errors="replace").split()))


@functools.cache
def _library() -> ctypes.CDLL:
    tried: list[str] = []
    for place in _places():
        try:
            return _declared(ctypes.CDLL(place))
        except OSError as error:
            tried.append(f"{place} ({' '.join(str(error).split())})")
        except AttributeError:
            tried.append(f"{place} (older than version 3)")
    raise ConfigError(
        "jpeg_decoder is 'turbojpeg', but no libturbojpeg of version 3 or later can be loaded here. Looked at: "
        + ("; ".join(tried) or f"{LIBRARY_VARIABLE} (not set), {sys.prefix}/lib and the system's libraries (none there)")
        + f". Install it (conda install -c conda-forge libjpeg-turbo, or the package of https://libjpeg-turbo.org), set {LIBRARY_VARIABLE}"
        " to the path of libturbojpeg.so, or set jpeg_decoder to 'simplejpeg', which needs nothing installed and gives the same"
        " pixels more slowly."
    )


def _places() -> Iterator[str]:
    """Where the library may be, best first. A place that was named is the only one: another version there would be a surprise."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        yield named
        return
    for prefix in dict.fromkeys((os.environ.get("CONDA_PREFIX"), sys.prefix, "/opt/libjpeg-turbo")):
        for folder in ("lib", "lib64"):
            path = Path(prefix or "/nonexistent", folder, "libturbojpeg.dylib" if sys.platform == "darwin" else "libturbojpeg.so")
            if path.exists():
                yield str(path)
    found = ctypes.util.find_library("turbojpeg")
    if found:
        yield found


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of what is called. Raises `AttributeError` for one without the functions of version 3."""
    handle, integer, address, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "tj3Init": (handle, [integer]),
        "tj3Destroy": (None, [handle]),
        "tj3Set": (integer, [handle, integer, integer]),
        "tj3Get": (integer, [handle, integer]),
        "tj3GetErrorStr": (ctypes.c_char_p, [handle]),
        "tj3DecompressHeader": (integer, [handle, address, size]),
        "tj3SetScalingFactor": (integer, [handle, _Scale]),
        "tj3SetCroppingRegion": (integer, [handle, _Region]),
        "tj3Decompress8": (integer, [handle, address, size, address, integer, integer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
