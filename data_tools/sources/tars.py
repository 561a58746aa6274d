"""The source `tars`: WebDataset tars of any origin, packed anew under the keys that they have."""

import functools
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from vitscale.config import DataError
from vitscale.data.manifest import MANIFEST_NAME, decode_manifest
from vitscale.data.ustar import BLOCK_BYTES, padded_bytes, split_name

from ..labels import NamedLabels, listed_labels, single_labels
from ..split import IntArray, Record, Split, UnusableImageError, some

_IMAGE_MEMBERS = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}
_KEPT_MEMBERS = ("json", "txt")
_CLASS_MEMBER = "cls"
_LARGEST_CLASS_MEMBER = 1 << 16
_OPEN_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Place:
    """A member's payload in its tar."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class TarSample:
    """One sample: its tar, its image (None where it has none) and the members that are packed beside it."""

    key: str
    file_number: int
    image: Place | None
    extension: str | None
    members: Mapping[str, Place]


@dataclass(frozen=True, kw_only=True)
class TarImages:
    """Images inside tars."""

    paths: tuple[str, ...]
    samples: tuple[TarSample, ...]
    file_identity: bytes

    def tar_bytes(self) -> IntArray:
        return np.array([_tar_bytes(sample) for sample in self.samples], np.int64)

    def origin(self, index: int) -> str:
        return self.samples[index].key

    def read(self, index: int) -> Record:
        sample = self.samples[index]
        if sample.image is None:
            raise UnusableImageError("no member jpg, jpeg, png or webp")
        path = self.paths[sample.file_number]
        members = {extension: _read(path, place) for extension, place in sample.members.items()}
        return Record(image=_read(path, sample.image), extension=sample.extension, members=members)

    def take(self, indices: IntArray) -> Self:
        return replace(self, samples=tuple(self.samples[index] for index in indices.tolist()))

    def identity(self) -> bytes:
        return self.file_identity


def open_tars(path: Path) -> list[Split]:
    """The one split of a tar, or of all `*.tar` below a folder in the order of their names.

    A member `cls` holds one class index, or several with spaces between them; names of classes come from a manifest of
    vitscale's in the folder. Raises `DataError` for a damaged tar, members that are not neighbours, a key in two places.
    """
    tars = _tars(path)
    read = [_read_tar(tar, file_number=number) for number, tar in enumerate(tars)]
    samples = tuple(found.sample for tar in read for found in tar.samples)
    if not samples:
        raise DataError(f"{path}: its tars hold no samples. Give a folder with WebDataset tars.")
    _check_keys(samples, tars=tars)
    texts = [found.class_text for tar in read for found in tar.samples]
    named = _labels(texts, samples=samples, path=path, classes=_manifest_classes(path))
    left_out = sorted({extension for tar in read for extension in tar.left_out})
    return [
        Split(
            images=TarImages(paths=tuple(str(tar) for tar in tars), samples=samples, file_identity=_identity(tars)),
            numbers=np.arange(len(samples), dtype=np.int64),
            keys=tuple(sample.key for sample in samples),
            labels=None if named is None else named.labels,
            classes=None if named is None else named.classes,
            has_class_names=named is None or named.has_names,
            description={"kind": "tars"},
            notes=(f"leaving out members that are not packed: {some(left_out)}",) if left_out else (),
        )
    ]


@dataclass(frozen=True, kw_only=True)
class _Found:
    sample: TarSample
    class_text: bytes | None


@dataclass(frozen=True, kw_only=True)
class _ReadTar:
    samples: list[_Found]
    left_out: set[str]


def _tars(path: Path) -> list[Path]:
    if path.is_file():
        return [Path(os.path.abspath(path))]
    tars = sorted(Path(os.path.abspath(path)).rglob("*.tar")) if path.is_dir() else []
    if not tars:
        raise DataError(f"{path}: no tars (*.tar) there. Give a tar or a folder of them; unpack compressed ones (.tar.gz) first.")
    return tars


def _read_tar(path: Path, *, file_number: int) -> _ReadTar:
    samples: list[_Found] = []
    left_out: set[str] = set()
    key, members = "", dict[str, Place]()
    seen: set[str] = set()
    for name, place in _members(path):
        member_key, extension = split_name(name.removeprefix("./"))
        if not extension:
            left_out.add(f"without extension ({name})")
            continue
        if member_key != key and members:
            samples.append(_sample(key, members=members, path=path, file_number=file_number, left_out=left_out))
            members = {}
        if member_key != key and member_key in seen:
            raise DataError(f"{path}: the members of sample {member_key!r} are not neighbours. Write the tar sorted by name.")
        if extension in members:
            raise DataError(f"{path}: sample {member_key!r} has two members .{extension}. Remove one of them.")
        key, members[extension] = member_key, place
        seen.add(key)
    if members:
        samples.append(_sample(key, members=members, path=path, file_number=file_number, left_out=left_out))
    return _ReadTar(samples=samples, left_out=left_out)


def _members(path: Path) -> Iterator[tuple[str, Place]]:
    """Name and place of every regular file. `tarfile` ends quietly at damage: the mark behind the last member is looked for."""
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.issparse() or not (member.isreg() or member.isdir()):
                    raise DataError(
                        f"{path}: entry {member.name!r} is a link, a special or a sparse file. Write the tar with regular files only."
                    )
                end = member.offset_data + (padded_bytes(member.size) if member.isreg() else 0)
                if member.isreg():
                    yield member.name, Place(offset=member.offset_data, size=member.size)
        with open(path, "rb") as file:
            file.seek(end)
            mark = file.read(BLOCK_BYTES)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise DataError(f"{path}: not a whole tar ({error}). Restore or write the tar again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path.") from None
    if mark != bytes(BLOCK_BYTES):
        raise DataError(f"{path}: cut short or damaged at byte {end}, no end-of-archive mark there. Restore or write the tar again.")


def _sample(key: str, *, members: Mapping[str, Place], path: Path, file_number: int, left_out: set[str]) -> _Found:
    image_name = next((extension for extension in _IMAGE_MEMBERS if extension in members), None)
    kept = {extension: members[extension] for extension in _KEPT_MEMBERS if extension in members}
    left_out.update(f".{extension}" for extension in members if extension not in (image_name, _CLASS_MEMBER, *kept))
    class_place = members.get(_CLASS_MEMBER)
    if class_place is not None and class_place.size > _LARGEST_CLASS_MEMBER:
        raise DataError(f"{path}: the member .cls of sample {key!r} has {class_place.size} bytes: no class index. Mend the sample.")
    return _Found(
        sample=TarSample(
            key=key,
            file_number=file_number,
            image=None if image_name is None else members[image_name],
            extension=None if image_name is None else _IMAGE_MEMBERS[image_name],
            members=kept,
        ),
        class_text=None if class_place is None else _read(str(path), class_place),
    )


def _check_keys(samples: tuple[TarSample, ...], *, tars: list[Path]) -> None:
    first: dict[str, int] = {}
    for sample in samples:
        other = first.setdefault(sample.key, sample.file_number)
        if other != sample.file_number:
            raise DataError(
                f"{tars[sample.file_number]}: the key {sample.key!r} is in {tars[other].name} too. Keys name samples in removal lists"
                " and ledgers and must be unique: rename the members, or pack the tars apart."
            )


def _labels(
    texts: list[bytes | None], *, samples: tuple[TarSample, ...], path: Path, classes: tuple[str, ...] | None
) -> NamedLabels | None:
    """One index in each: single-label. Several, or none, in some: multi-label. No member `cls` at all: no classes."""
    if all(text is None for text in texts):
        return None
    lists: list[list[int]] = []
    for text, sample in zip(texts, samples, strict=True):
        if text is None:
            raise DataError(f"{path}: sample {sample.key!r} has no member .cls, while others have one. Add it, or pack them apart.")
        try:
            lists.append([int(number) for number in text.decode("ascii").split()])
        except ValueError:
            raise DataError(
                f"{path}: the member .cls of sample {sample.key!r} is no class index: {text[:40]!r}. Mend the sample."
            ) from None
    where = f"{path}: members .cls"
    if all(len(numbers) == 1 for numbers in lists):
        named = single_labels([numbers[0] for numbers in lists], where=where)
    else:
        named = listed_labels(lists, where=where)
    if classes is None:
        return named
    if len(named.classes) > len(classes):
        raise DataError(f"{where}: class {len(named.classes) - 1} of the {len(classes)} in {MANIFEST_NAME}. Restore the data set.")
    return NamedLabels(labels=named.labels, classes=classes, has_names=True)


def _manifest_classes(path: Path) -> tuple[str, ...] | None:
    """The names of classes, where vitscale packed the folder."""
    manifest = path / MANIFEST_NAME
    if not manifest.is_file():
        return None
    return decode_manifest(manifest.read_bytes(), path=str(manifest)).classes


def _tar_bytes(sample: TarSample) -> int:
    places = ((sample.image,) if sample.image else ()) + tuple(sample.members.values())
    return sum(BLOCK_BYTES + padded_bytes(place.size) for place in places)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _open(path: str) -> "_File":
    return _File(path)


class _File:
    """An open file that is closed when the cache forgets it."""

    descriptor: int | None = None

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, place: Place) -> bytes:
        """The bytes at a place, fewer where the file ends. Reading by a method keeps the file open until it is done."""
        assert self.descriptor is not None
        return os.pread(self.descriptor, place.size, place.offset)

    def __del__(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


def _read(path: str, place: Place) -> bytes:
    try:
        data = _open(path).read(place)
    except OSError as error:
        raise UnusableImageError(f"{path}: {error.strerror}") from None
    if len(data) != place.size:
        raise UnusableImageError(f"{path}: {len(data)} of {place.size} bytes at {place.offset}")
    return data


def _identity(tars: list[Path]) -> bytes:
    states = [(str(tar), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in tars]
    return hashlib.sha256(json.dumps(states).encode(errors="surrogateescape")).digest()
