"""The source `image-folder`: one subfolder per class, image files stored as they are."""

import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import PIL.Image

from vitscale.config import DataError

from .split import IntArray, LabelledImage, UnusableImageError

EXTENSIONS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""File suffixes that are packed (any case) and the member extension each gets."""

MAX_PIXELS = 100_000_000
"""The decoder's limit: what it would refuse in a run is refused here."""

_OTHER_IMAGES = frozenset({".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".tif", ".tiff"})
_FORMATS = ("JPEG", "PNG", "WEBP")
_NUM_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ImageFolderSplit:
    """The images below a folder, ordered by class and path."""

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    """Relative to the folder, with forward slashes."""
    labels: IntArray
    sizes: IntArray
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> None:
        return None

    @property
    def num_samples(self) -> int:
        return len(self.paths)

    @property
    def description(self) -> dict[str, str | int]:
        return {"kind": "image-folder"}

    def image_bytes(self) -> IntArray:
        return self.sizes

    def origin(self, index: int) -> str:
        return self.paths[index]

    def read(self, index: int) -> LabelledImage:
        path = self.paths[index]
        try:
            image = (self.folder / path).read_bytes()
        except OSError as error:
            raise UnusableImageError(error.strerror) from None
        _check_image(image)
        return LabelledImage(label=int(self.labels[index]), extension=EXTENSIONS[_suffix(path)], image=image)

    def take(self, indices: IntArray) -> Self:
        paths = tuple(self.paths[index] for index in indices)
        return replace(self, paths=paths, labels=self.labels[indices], sizes=self.sizes[indices])


def open_image_folder(folder: Path) -> list[ImageFolderSplit]:
    """The one split of an image folder. Raises `DataError` when the folder has no class folders or a class has no image."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give a folder with one subfolder of images per class.")
    entries = sorted(entry.name for entry in _listing(folder))
    classes = tuple(name for name in entries if (folder / name).is_dir())
    loose = [name for name in entries if name not in set(classes) and _suffix(name) in EXTENSIONS]
    if loose:
        raise DataError(f"{folder}: images without a class folder: {_some(loose)}. Move each image into the subfolder of its class.")
    if not classes:
        raise DataError(f"{folder}: no class folders in it. Give a folder with one subfolder of images per class.")
    files = [(label, path) for label, name in enumerate(classes) for path in _files_below(folder, name)]
    images = [(label, path) for label, path in files if _suffix(path) in EXTENSIONS]
    _check_files(folder, classes=classes, files=files, images=images)
    passed_over = [path for _, path in files if _suffix(path) not in EXTENSIONS]
    return [
        ImageFolderSplit(
            folder=folder,
            classes=classes,
            paths=tuple(path for _, path in images),
            labels=np.array([label for label, _ in images], np.int64),
            sizes=np.array([_size(folder / path) for _, path in images], np.int64),
            notes=(f"passing over files that are no images: {_some(passed_over)}",) if passed_over else (),
        )
    ]


def _files_below(folder: Path, name: str) -> list[str]:
    """Paths of the class's files, sorted, hidden ones left out."""
    return sorted(_walk(folder / name, prefix=name))


def _walk(folder: Path, *, prefix: str) -> Iterator[str]:
    for entry in _listing(folder):
        path = f"{prefix}/{entry.name}"
        # A link to a folder may lead back up: it counts as a file that is no image. Links to files are fine.
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), prefix=path)
        else:
            yield path


def _listing(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}. Mend its permissions or remove it.") from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a dangling link, say: reading it gives the reason, and it is counted with all the others


def _check_files(folder: Path, *, classes: tuple[str, ...], files: list[tuple[int, str]], images: list[tuple[int, str]]) -> None:
    foreign = [path for _, path in files if _suffix(path) in _OTHER_IMAGES]
    if foreign:
        raise DataError(f"{folder}: image formats that cannot be packed: {_some(foreign)}. Convert them to JPEG, PNG or WebP.")
    unnameable = [name for name in classes if not name.isprintable()]
    if unnameable:
        raise DataError(
            f"{folder}: class folders whose names are not UTF-8 text: {_some([ascii(name) for name in unnameable])}. Rename them."
        )
    filled = {label for label, _ in images}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise DataError(f"{folder}: class folders without an image (.jpg, .jpeg, .png, .webp): {_some(empty)}. Fill or remove them.")


def _check_image(image: bytes) -> None:
    """Read the header, and for a PNG the checksums of all its chunks."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(image), formats=_FORMATS) as opened:
                width, height = opened.size
                opened.verify()
    except PIL.UnidentifiedImageError:
        raise UnusableImageError("not a JPEG, PNG or WebP image") from None
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UnusableImageError(str(error)) from None
    if width * height > MAX_PIXELS:
        raise UnusableImageError(f"{width} x {height} pixels, the limit is {MAX_PIXELS} in all")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NUM_SHOWN])
    return shown if len(names) <= _NUM_SHOWN else f"{shown} and {len(names) - _NUM_SHOWN} more"
