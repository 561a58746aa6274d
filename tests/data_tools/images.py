"""Small image folders for the tests."""

import io
from pathlib import Path

import numpy as np
import PIL.Image


def image_bytes(seed: int, *, file_format: str = "JPEG", size: tuple[int, int] = (24, 17)) -> bytes:
    """A random colour image of (width, height) `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, file_format)
    return stream.getvalue()


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
