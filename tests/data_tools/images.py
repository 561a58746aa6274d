"""Small images and folders of them for the tests."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image


def image_bytes(seed: int, *, file_format: str = "JPEG", size: tuple[int, int] = (24, 17), **options: Any) -> bytes:
    """A random colour image of (width, height) `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(PIL.Image.fromarray(pixels), file_format=file_format, **options)


def encoded(image: PIL.Image.Image, *, file_format: str, **options: Any) -> bytes:
    """An image as a file."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header only claims its size."""
    data = image_bytes(0)
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def rotated_jpeg(seed: int, *, orientation: int) -> bytes:
    """A JPEG with an EXIF orientation."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return image_bytes(seed, exif=exif)


def animated_webp() -> bytes:
    """Two frames."""
    frames = [PIL.Image.new("RGB", (16, 12), colour) for colour in ("red", "blue")]
    return encoded(frames[0], file_format="WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)


def write_image_folder(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Three classes in every supported format, nested and oddly named; returns (label, bytes) by path."""
    files = {
        "ant/1.jpg": (0, image_bytes(0)),
        "ant/deep er/2.JPEG": (0, image_bytes(1)),
        "bee (wild)/ü 3.png": (1, image_bytes(2, file_format="PNG")),
        "bee (wild)/4.PNG": (1, image_bytes(3, file_format="PNG", size=(700, 400))),
        "cat/5.webp": (2, image_bytes(4, file_format="WEBP")),
        "cat/png inside.jpg": (2, image_bytes(5, file_format="PNG")),
    }
    for path, (_, data) in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return files
