"""The sidecar index of a shard: where each sample lies in the tar and the crc32 of its bytes."""

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from vitscale.config import DataError
from vitscale.data.manifest import Shard
from vitscale.data.tar_dialects import NOTHING, REGULAR_TYPES, MalformedTarError
from vitscale.data.ustar import BLOCK_BYTES, header_name, name_problem, padded_bytes, split_name

INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u8"), ("crc32", "<u4")])
"""Per sample: its first header's offset, the bytes up to the end of its last padding, and their crc32."""

IndexTable = npt.NDArray[np.void]

# NumPy's format 1.0 (numpy/lib/format.py): magic, version, the header's length in two bytes, the header with its one newline last.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)(?P<text>"
    + re.escape(f"{{'descr': {INDEX_DTYPE.descr}, 'fortran_order': False, 'shape': (".encode())
    + rb"(?P<rows>\d{1,12}),\), \} *\n)",
    re.DOTALL,
)

MAX_MEMBER_BYTES = 1 << 30
_MAX_EXTENSION_BYTES = 1 << 20

_FOLDER = ord("5")


@dataclass(frozen=True, kw_only=True)
class ScannedSample:
    """One sample as it lies in a tar: its bytes from the first header to the last padding, for `parse_sample`."""

    key: str
    offset: int
    raw: bytes
    extensions: tuple[str, ...]

    @property
    def row(self) -> tuple[int, int, int]:
        """Its row of the index."""
        return self.offset, len(self.raw), isal_zlib.crc32(self.raw)


class ByteStream(Protocol):
    """What a tar is scanned from: a file, or anything else that is read from front to back."""

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        ...


def index_name(shard_name: str) -> str:
    """File name of a shard's index."""
    return f"{shard_name}.idx.npy"


def encode_index(table: IndexTable) -> bytes:
    """The index file's bytes (.npy, no pickle)."""
    assert table.dtype == INDEX_DTYPE, table.dtype
    assert table.ndim == 1, table.shape
    stream = io.BytesIO()
    np.lib.format.write_array(stream, table, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def decode_index(raw: bytes, *, shard: Shard, path: str) -> IndexTable:
    """Read the index of `shard` that lies at `path`. Raises `DataError` unless it is the one that the manifest names."""
    remedy = "Restore the file from a copy or pack the data set again."
    if hashlib.sha256(raw).hexdigest() != shard.index_sha256:
        raise DataError(f"{path}: changed since the data set was packed (its sha256 is not the one in the manifest). {remedy}")
    # Not by np.load: it parses the header as Python, for which CPython 3.11 takes one thread at a time (cpython issue 106905).
    header = _NPY_HEADER.match(raw)
    table = np.frombuffer(raw, INDEX_DTYPE, offset=header.end()) if header and _is_whole(raw, header=header) else None
    if table is None or table.shape != (shard.num_samples,):
        raise DataError(f"{path}: not the index of the {shard.num_samples} samples of {shard.name}. {remedy}")
    # Each number by itself first: a sum of two near 2**64 would wrap around to a small one.
    too_large = np.any(table["offset"] > shard.bytes) or np.any(table["length"] > shard.bytes)
    ends = table["offset"] + table["length"]
    if too_large or np.any(ends > shard.bytes) or np.any(table["offset"][1:] < ends[:-1]):
        raise DataError(f"{path}: its samples overlap or lie outside the {shard.bytes} bytes of {shard.name}. {remedy}")
    return table


def _is_whole(raw: bytes, *, header: re.Match[bytes]) -> bool:
    """Whether the header has the length, and the array behind it the rows, that it says."""
    num_rows = int(header["rows"])
    return int.from_bytes(header["length"], "little") == len(header["text"]) and len(raw) == header.end() + num_rows * INDEX_DTYPE.itemsize


def scan_samples(stream: ByteStream, *, path: str, passed_over: Callable[[str], None] = lambda _: None) -> Iterator[ScannedSample]:
    """The samples of a tar, runs of neighbouring members with one key, in their order.

    Members that belong to no sample by WebDataset's rule are named to `passed_over`. Raises `DataError` for whatever the
    reader cannot or should not read, with place and name: damage, a cut, links, special and sparse files, names that climb
    out or do not print, a key in two places, an extension twice in a sample, a tar without samples. `path` is for messages.
    """
    keys: set[str] = set()
    current: list[_Member] = []
    for member in _members(stream, path=path, passed_over=passed_over):
        if current and member.key == current[0].key:
            if any(member.extension == other.extension for other in current):
                raise _refusal(path, member, f"sample {member.key} has two members .{member.extension}. Remove one of them")
            current.append(member)
            continue
        if member.key in keys:
            raise _refusal(path, member, f"the members of sample {member.key} are not neighbours. Write the tar sorted by name")
        keys.add(member.key)
        if current:
            yield _sample(current)
        current = [member]
    if not current:
        raise DataError(f"{path}: a tar without samples (members whose names have a key and an extension). Remove it from the data set.")
    yield _sample(current)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One archive entry: header, payload and padding as they lie in the file."""

    offset: int
    raw: bytes
    kind: int
    name: str


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A member of a sample with the extension headers before it; `before` is what else lies between it and the last one."""

    offset: int
    raw: bytes
    before: bytes
    name: str
    key: str
    extension: str


def _sample(members: list[_Member]) -> ScannedSample:
    first, *others = members
    raw = b"".join([first.raw, *(part for member in others for part in (member.before, member.raw))])
    return ScannedSample(key=first.key, offset=first.offset, raw=raw, extensions=tuple(member.extension for member in members))


def _members(stream: ByteStream, *, path: str, passed_over: Callable[[str], None]) -> Iterator[_Member]:
    before: list[bytes] = []
    extensions: list[_Entry] = []
    for entry in _entries(stream, path=path):
        if entry.kind in REGULAR_TYPES:
            problem = name_problem(entry.name.removeprefix("./"))
            if problem is not None:
                raise _refusal(path, entry, f"{problem}. Rename the file")
            key, extension = split_name(entry.name)
            if extension:
                raw = b"".join([header.raw for header in extensions] + [entry.raw])
                offset = extensions[0].offset if extensions else entry.offset
                yield _Member(offset=offset, raw=raw, before=b"".join(before), name=entry.name, key=key, extension=extension)
                before, extensions = [], []
                continue
            passed_over(entry.name)
        extensions.append(entry)
        if entry.kind in REGULAR_TYPES or entry.kind == _FOLDER:
            before += [header.raw for header in extensions]
            extensions = []


def _entries(stream: ByteStream, *, path: str) -> Iterator[_Entry]:
    """Every entry up to the end-of-archive mark, with headers and lengths checked."""
    offset, announced = 0, NOTHING
    while True:
        header = stream.read(BLOCK_BYTES)
        if len(header) < BLOCK_BYTES:
            raise DataError(f"{path}: cut short at byte {offset + len(header)}, no end-of-archive mark. Restore or write the tar again.")
        if not any(header):
            break
        kind, name = header[156], ""
        size = _checked_size(header, announced=announced.size if kind in REGULAR_TYPES else None, offset=offset, path=path)
        body = stream.read(padded_bytes(size))
        if len(body) != padded_bytes(size):
            raise DataError(f"{path}: cut short inside the member at byte {offset}. Restore or write the tar again.")
        try:
            name = header_name(header) if announced.name is None else announced.name
            announced = NOTHING if kind in REGULAR_TYPES else announced.after(kind, body[:size])
        except UnicodeDecodeError:
            raise DataError(f"{path}: the name of the entry at byte {offset} is not UTF-8: {header[:100]!r}. Rename the file.") from None
        except MalformedTarError as error:
            raise DataError(f"{path}: entry {name!r} at byte {offset}: {error}. Write the tar with regular files only.") from None
        yield _Entry(offset=offset, raw=header + body, kind=kind, name=name)
        offset += len(header) + len(body)
    while block := stream.read(1 << 20):
        if any(block):
            raise DataError(f"{path}: data after the end-of-archive mark at byte {offset}. Restore the tar, or split joined tars.")


def _checked_size(header: bytes, *, announced: int | None, offset: int, path: str) -> int:
    checksum = re.fullmatch(rb"[ \0]*([0-7]+)[ \0]*", header[148:156])
    if checksum is None or int(checksum[1], 8) != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise DataError(f"{path}: no valid tar header at byte {offset}. Restore or write the tar again.")
    octal = re.fullmatch(rb"[ \0]*([0-7]+)[ \0]*", header[124:136])
    size = announced if announced is not None else int(octal[1], 8) if octal else MAX_MEMBER_BYTES + 1
    limit = MAX_MEMBER_BYTES if header[156] in REGULAR_TYPES else _MAX_EXTENSION_BYTES
    if size > limit:
        raise DataError(f"{path}: the member at byte {offset} is larger than {limit} bytes. Leave it out.")
    return size


def _refusal(path: str, entry: _Entry | _Member, problem: str) -> DataError:
    return DataError(f"{path}: entry {entry.name!r} at byte {entry.offset}: {problem}.")
