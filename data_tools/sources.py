"""The table of sources that can be packed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .fashion_mnist import open_fashion_mnist
from .image_folder import open_image_folder
from .split import Split

SOURCES: dict[str, Callable[[Path], Sequence[Split]]] = {
    "fashion-mnist": open_fashion_mnist,
    "image-folder": open_image_folder,
}
"""Name of the source and how its input folder is opened."""
