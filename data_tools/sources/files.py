"""Images that lie in files of their own: what image folders and tables of paths have in common."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from ..images import EXTENSIONS
from ..split import IntArray, Record, UnusableImageError, member_tar_bytes


@dataclass(frozen=True, kw_only=True)
class FileImages:
    """Image files; a relative location counts from `root`."""

    root: Path
    origins: tuple[str, ...]
    """What each is called in the source."""
    locations: tuple[str, ...] | None = None
    """Where each lies; None: where its origin says."""
    sizes: IntArray
    mtimes_ns: IntArray

    def tar_bytes(self) -> IntArray:
        return member_tar_bytes(self.sizes)

    def origin(self, index: int) -> str:
        return self.origins[index]

    def read(self, index: int) -> Record:
        location = _locations(self)[index]
        try:
            with open(self.root / location, "rb") as file:
                image = file.read()
        except OSError as error:
            raise UnusableImageError(error.strerror) from None
        except ValueError as error:  # a null character in the path, say
            raise UnusableImageError(str(error)) from None
        return Record(image=image, extension=EXTENSIONS.get(suffix(location)))

    def take(self, indices: IntArray) -> Self:
        chosen = indices.tolist()
        return replace(
            self,
            origins=tuple(self.origins[index] for index in chosen),
            locations=None if self.locations is None else tuple(self.locations[index] for index in chosen),
            sizes=self.sizes[indices],
            mtimes_ns=self.mtimes_ns[indices],
        )

    def identity(self) -> bytes:
        digest = hashlib.sha256(os.fsencode(os.path.abspath(self.root)))
        for text in (*self.origins, *(self.locations or ())):
            digest.update(text.encode(errors="surrogateescape") + b"\0")
        digest.update(self.sizes.tobytes() + self.mtimes_ns.tobytes())
        return digest.digest()


def find_files(root: Path, *, origins: tuple[str, ...], locations: tuple[str, ...] | None = None) -> FileImages:
    """Look at the size and the age of every file; one that is missing counts as empty, and reading it gives the reason."""
    found = np.array([_size_and_mtime(root, location) for location in (locations or origins)], np.int64).reshape(-1, 2)
    return FileImages(root=root, origins=origins, locations=locations, sizes=found[:, 0], mtimes_ns=found[:, 1])


def suffix(path: str) -> str:
    """The lower-cased suffix of a path, with its dot."""
    stem, _, end = path.rpartition("/")[2].rpartition(".")
    return f".{end.lower()}" if stem else ""


def _locations(images: FileImages) -> tuple[str, ...]:
    return images.origins if images.locations is None else images.locations


def _size_and_mtime(root: Path, location: str) -> tuple[int, int]:
    try:
        status = os.stat(os.path.join(root, location))
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns
