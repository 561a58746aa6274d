"""The source `fashion-mnist`: the four gzip files of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), stored as grayscale PNG."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from vitscale.config import DataError

from .png import encode_gray_png, gray_png_bytes
from .split import IntArray, LabelledImage

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGE_SIZE = 28

_FILE_PREFIX = {"train": "train", "test": "t10k"}
_IMAGES_MAGIC, _LABELS_MAGIC = 0x00000803, 0x00000801
_LARGEST_FILE_BYTES = 1 << 26  # the training images take 47,040,016; gzip files of a few kilobytes may hold gigabytes
_REMEDY = "Fetch the files again: `vitscale-data fetch FOLDER`."


@dataclass(frozen=True, kw_only=True)
class FashionMnistSplit:
    """The training or the test images, in the order of the files."""

    name: str
    images_NHW: npt.NDArray[np.uint8]
    labels_N: npt.NDArray[np.uint8]
    classes: tuple[str, ...] = CLASSES
    notes: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        return len(self.labels_N)

    @property
    def description(self) -> dict[str, str | int]:
        return {"kind": "fashion-mnist"}

    def image_bytes(self) -> IntArray:
        return np.full(self.num_samples, gray_png_bytes(height=IMAGE_SIZE, width=IMAGE_SIZE), np.int64)

    def origin(self, index: int) -> str:
        return f"{self.name} image {index}"

    def read(self, index: int) -> LabelledImage:
        return LabelledImage(label=int(self.labels_N[index]), extension="png", image=encode_gray_png(self.images_NHW[index]))

    def take(self, indices: IntArray) -> Self:
        return type(self)(name=self.name, images_NHW=self.images_NHW[indices], labels_N=self.labels_N[indices])


def open_fashion_mnist(folder: Path) -> list[FashionMnistSplit]:
    """The splits whose files lie in `folder`. Raises `DataError` when there is none or a file is damaged."""
    splits = [_open_split(folder, name=name) for name, prefix in _FILE_PREFIX.items() if any(folder.glob(f"{prefix}-*-ubyte.gz"))]
    if not splits:
        raise DataError(
            f"{folder}: holds no Fashion-MNIST (train-images-idx3-ubyte.gz and the like). "
            "Give the folder with the four files, or get them with `vitscale-data fetch FOLDER`."
        )
    return splits


def _open_split(folder: Path, *, name: str) -> FashionMnistSplit:
    prefix = _FILE_PREFIX[name]
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", magic=_IMAGES_MAGIC, item_shape=(IMAGE_SIZE, IMAGE_SIZE))
    labels_path = folder / f"{prefix}-labels-idx1-ubyte.gz"
    labels = _read_idx(labels_path, magic=_LABELS_MAGIC, item_shape=())
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels)} labels for {len(images)} images. {_REMEDY}")
    if labels.max(initial=0) >= len(CLASSES):
        raise DataError(f"{labels_path}: label {labels.max()} of {len(CLASSES)} classes. {_REMEDY}")
    return FashionMnistSplit(name=name, images_NHW=images, labels_N=labels)


def _read_idx(path: Path, *, magic: int, item_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes: magic number, one big-endian uint32 per dimension, the items."""
    try:
        with gzip.open(path) as file:
            raw = file.read(_LARGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: missing. {_REMEDY}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}). {_REMEDY}") from None
    if len(raw) > _LARGEST_FILE_BYTES:
        raise DataError(f"{path}: unpacks to more than {_LARGEST_FILE_BYTES} bytes, and is not a file of Fashion-MNIST. {_REMEDY}")
    head = 4 * (2 + len(item_shape))
    found_magic, num_items, *found_shape = np.frombuffer(raw[:head].ljust(head, b"\0"), ">u4").tolist()
    if found_magic != magic or tuple(found_shape) != item_shape:
        raise DataError(f"{path}: not the expected IDX file (magic {found_magic:#010x}, shape {found_shape}). {_REMEDY}")
    pixels = np.frombuffer(raw, np.uint8, offset=head)
    if num_items == 0 or len(pixels) != num_items * int(np.prod(item_shape)):
        raise DataError(f"{path}: announces {num_items} items, which do not fill its {len(pixels)} bytes. {_REMEDY}")
    return pixels.reshape(num_items, *item_shape)
