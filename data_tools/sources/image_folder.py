"""The source `image-folder`: one subfolder of image files per class."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitscale.config import DataError

from ..images import EXTENSIONS
from ..split import Labels, Split, some
from .files import find_files, suffix

_OTHER_IMAGES = frozenset({".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".tif", ".tiff"})


def open_image_folder(folder: Path) -> list[Split]:
    """The one split of an image folder, ordered by class and path. Raises `DataError` when it has no class folders or a class no image."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give a folder with one subfolder of images per class.")
    entries = sorted(entry.name for entry in _listing(folder))
    classes = tuple(name for name in entries if (folder / name).is_dir())
    loose = [name for name in entries if name not in set(classes) and suffix(name) in EXTENSIONS]
    if loose:
        raise DataError(f"{folder}: images without a class folder: {some(loose)}. Move each image into the subfolder of its class.")
    if not classes:
        raise DataError(f"{folder}: no class folders in it. Give a folder with one subfolder of images per class.")
    files = [(label, path) for label, name in enumerate(classes) for path in _files_below(folder, name)]
    images = [(label, path) for label, path in files if suffix(path) in EXTENSIONS]
    _check_files(folder, classes=classes, files=files, images=images)
    passed_over = [path for _, path in files if suffix(path) not in EXTENSIONS]
    return [
        Split(
            images=find_files(folder, origins=tuple(path for _, path in images)),
            numbers=np.arange(len(images), dtype=np.int64),
            labels=Labels(values=np.array([label for label, _ in images], np.int64)),
            classes=classes,
            description={"kind": "image-folder"},
            notes=(f"passing over files that are no images: {some(passed_over)}",) if passed_over else (),
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


def _check_files(folder: Path, *, classes: tuple[str, ...], files: list[tuple[int, str]], images: list[tuple[int, str]]) -> None:
    foreign = [path for _, path in files if suffix(path) in _OTHER_IMAGES]
    if foreign:
        raise DataError(f"{folder}: image formats that cannot be packed: {some(foreign)}. Convert them to JPEG, PNG or WebP.")
    unnameable = [name for name in classes if not name.isprintable()]
    if unnameable:
        raise DataError(
            f"{folder}: class folders whose names are not UTF-8 text: {some([ascii(name) for name in unnameable])}. Rename them."
        )
    filled = {label for label, _ in images}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise DataError(f"{folder}: class folders without an image (.jpg, .jpeg, .png, .webp): {some(empty)}. Fill or remove them.")
