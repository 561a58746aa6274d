"""The source `idx`: pairs of IDX files as MNIST and its relatives come in, images of bytes and one label each, packed as PNG."""

import gzip
import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from vitscale.config import DataError

from ..png import encode_png, png_bytes
from ..split import IntArray, Labels, Record, Split, member_tar_bytes, some

_IMAGES_NAME = re.compile(r"(?P<stem>[A-Za-z0-9][A-Za-z0-9_-]*?)-images[-.]idx(?P<rank>[34])-ubyte(?P<gz>\.gz)?")
_LABELS_NAME = re.compile(r"(?P<stem>[A-Za-z0-9][A-Za-z0-9_-]*?)-labels[-.]idx1-ubyte(?P<gz>\.gz)?")
_SPLIT_NAMES = {"t10k": "test"}
_UNSIGNED_BYTES = 0x08
_LARGEST_FILE_BYTES = 1 << 34


@dataclass(frozen=True, kw_only=True)
class PixelImages:
    """Images in memory. N images, H height, W width, C channels."""

    split_name: str
    pixels_NHWC: npt.NDArray[np.uint8]
    numbers: IntArray

    def tar_bytes(self) -> IntArray:
        _, height, width, num_channels = self.pixels_NHWC.shape
        size = png_bytes(height=height, width=width, num_channels=num_channels)
        return member_tar_bytes(np.full(len(self.numbers), size, np.int64))

    def origin(self, index: int) -> str:
        return f"{self.split_name} image {self.numbers[index]}"

    def read(self, index: int) -> Record:
        return Record(image=encode_png(self.pixels_NHWC[index]), extension="png")

    def take(self, indices: IntArray) -> Self:
        return replace(self, pixels_NHWC=self.pixels_NHWC[indices], numbers=self.numbers[indices])

    def identity(self) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(self.pixels_NHWC).data).digest()


@dataclass(frozen=True, kw_only=True)
class IdxFormat:
    """What the files must be, and what to say otherwise. `image_shape` and `classes` are None where any will do."""

    kind: str
    image_shape: tuple[int, ...] | None
    classes: tuple[str, ...] | None
    remedy: str
    nothing_found: str


ANY_IDX = IdxFormat(
    kind="idx",
    image_shape=None,
    classes=None,
    remedy="Fetch or copy the files again.",
    nothing_found="holds no IDX images (NAME-images-idx3-ubyte or -idx4-ubyte, with or without .gz). Give the folder that has them.",
)


def open_idx(folder: Path) -> list[Split]:
    """The splits whose files lie in `folder`: NAME-images-idx3-ubyte[.gz] with NAME-labels-idx1-ubyte[.gz]; t10k is called test.

    Raises `DataError` when there is none or a file is damaged.
    """
    return open_idx_format(folder, idx_format=ANY_IDX)


def open_idx_format(folder: Path, *, idx_format: IdxFormat) -> list[Split]:
    """The splits in `folder`, training first. Raises `DataError` for anything but `idx_format`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give the folder with the IDX files.")
    names = sorted(path.name for path in folder.iterdir())
    found = [match for name in names if (match := _IMAGES_NAME.fullmatch(name))]
    labels = [match for name in names if (match := _LABELS_NAME.fullmatch(name))]
    alone = next((match for match in labels if match["stem"] not in {images["stem"] for images in found}), None)
    if alone is not None:
        raise DataError(f"{folder / alone['stem']}-images-idx3-ubyte{alone['gz'] or ''}: missing. {idx_format.remedy}")
    if not found:
        raise DataError(f"{folder}: {idx_format.nothing_found}")
    stems = [match["stem"] for match in found]
    if len(set(stems)) != len(stems):
        raise DataError(
            f"{folder}: the images of a split are there twice ({some(sorted(match.string for match in found))}). Remove one copy."
        )
    splits = [_open_split(folder, images_name=match, labels=labels, idx_format=idx_format) for match in found]
    return sorted(splits, key=lambda split: (split.name != "train", split.name))


def _open_split(folder: Path, *, images_name: re.Match[str], labels: Sequence[re.Match[str]], idx_format: IdxFormat) -> Split:
    stem = images_name["stem"]
    images = _read_idx(folder / images_name.string, rank=int(images_name["rank"]), idx_format=idx_format)
    expected = f"{stem}-labels-idx1-ubyte{images_name['gz'] or ''}"
    labels_path = folder / next((match.string for match in labels if match["stem"] == stem), expected)
    labels_N = _read_idx(labels_path, rank=1, idx_format=idx_format)
    if len(images) != len(labels_N):
        raise DataError(f"{labels_path}: {len(labels_N)} labels for {len(images)} images. {idx_format.remedy}")
    classes = idx_format.classes or tuple(str(number) for number in range(int(labels_N.max()) + 1))
    if labels_N.max() >= len(classes):
        raise DataError(f"{labels_path}: label {labels_N.max()} of {len(classes)} classes. {idx_format.remedy}")
    name = _SPLIT_NAMES.get(stem, stem)
    numbers = np.arange(len(labels_N), dtype=np.int64)
    pixels = images if images.ndim == 4 else images[..., None]
    return Split(
        name=name,
        images=PixelImages(split_name=name, pixels_NHWC=pixels, numbers=numbers),
        numbers=numbers,
        labels=Labels(values=labels_N.astype(np.int64)),
        classes=classes,
        has_class_names=idx_format.classes is not None,
        key_prefix=f"{name}-",
        is_sound=True,
        description={"kind": idx_format.kind},
    )


def _read_idx(path: Path, *, rank: int, idx_format: IdxFormat) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes: magic number, one big-endian uint32 per dimension, the items."""
    try:
        with _opened(path) as file:
            header = file.read(4 * (1 + rank)).ljust(4 * (1 + rank), b"\0")
            magic, *shape = struct.unpack(f">{1 + rank}I", header)
            _check_header(path, magic=magic, shape=shape, rank=rank, idx_format=idx_format)
            # What a small gzip file unpacks to is not read further than its header allows.
            raw = file.read(int(np.prod(shape, dtype=object)) + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: missing. {idx_format.remedy}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}). {idx_format.remedy}") from None
    if len(raw) != int(np.prod(shape)):
        raise DataError(f"{path}: announces {shape[0]} items, which do not fill its {len(raw)} bytes or more. {idx_format.remedy}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _check_header(path: Path, *, magic: int, shape: Sequence[int], rank: int, idx_format: IdxFormat) -> None:
    expected = idx_format.image_shape
    fits = expected is None or rank == 1 or tuple(shape[1:]) == expected
    if magic != _UNSIGNED_BYTES << 8 | rank or not fits:
        raise DataError(f"{path}: not the expected IDX file (magic {magic:#010x}, shape {list(shape[1:])}). {idx_format.remedy}")
    num_bytes = int(np.prod(shape, dtype=object))
    if num_bytes == 0 or (rank == 4 and shape[3] not in (1, 3)):
        raise DataError(f"{path}: announces {shape[0]} items of shape {list(shape[1:])}: no images of 1 or 3 channels. {idx_format.remedy}")
    if num_bytes > _LARGEST_FILE_BYTES:
        raise DataError(f"{path}: announces {num_bytes} bytes, the limit is {_LARGEST_FILE_BYTES}. Pack it in parts, as another source.")
