"""The sidecar index of a shard: where each sample lies in the tar and the crc32 of its bytes."""

import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vitscale.config import DataError
from vitscale.data.manifest import Shard
from vitscale.data.ustar import BLOCK_BYTES, REGULAR_TYPES, header_name, is_safe_name, padded_bytes, split_name

INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u8"), ("crc32", "<u4")])
"""Per sample: its first header's offset, the bytes up to the end of its last padding, and their crc32."""

IndexTable = npt.NDArray[np.void]

MAX_MEMBER_BYTES = 1 << 30

_FOLDER, _PAX, _PAX_GLOBAL = b"5", b"x", b"g"
# Searched for anywhere in the header: a key that only looks like one of these is refused as well, none is missed.
_OVERRIDING_PAX_KEYS = (b"path=", b"size=", b"hdrcharset=", b"GNU.sparse")


@dataclass(frozen=True, kw_only=True)
class ScannedShard:
    """What a pass over a tar finds: the index and what the manifest says about the shard."""

    table: IndexTable
    keys: tuple[str, ...]
    members: frozenset[str]


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
    try:
        table = np.load(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a .npy array ({error}). {remedy}") from None
    if not isinstance(table, np.ndarray) or table.dtype != INDEX_DTYPE or table.shape != (shard.num_samples,):
        raise DataError(f"{path}: not the index of the {shard.num_samples} samples of {shard.name}. {remedy}")
    # Each number by itself first: a sum of two near 2**64 would wrap around to a small one.
    too_large = np.any(table["offset"] > shard.bytes) or np.any(table["length"] > shard.bytes)
    ends = table["offset"] + table["length"]
    if too_large or np.any(ends > shard.bytes) or np.any(table["offset"][1:] < ends[:-1]):
        raise DataError(f"{path}: its samples overlap or lie outside the {shard.bytes} bytes of {shard.name}. {remedy}")
    return table


def build_index(path: Path) -> ScannedShard:
    """Scan the tar at `path` and index its samples, runs of neighbouring members with one key.

    Raises `DataError` for whatever the reader cannot or should not read: damage, a cut, links, long-name and sparse
    dialects, unsafe names, members without extension, a key in two places, an extension twice in a sample.
    """
    rows: list[tuple[int, int, int]] = []
    keys: dict[str, int] = {}
    extensions: set[str] = set()
    in_sample: set[str] = set()
    last_key = None
    pending = _Pending()
    for entry in _entries(path):
        if entry.kind not in REGULAR_TYPES:
            _refuse_unless_harmless(entry, path=path)
            pending = pending.followed_by(entry)
            continue
        key, extension = _member(entry, path=path)
        pending = pending.followed_by(entry)
        if key == last_key:
            offset, length, crc = rows[-1]
            rows[-1] = (offset, length + len(pending.raw), zlib.crc32(pending.raw, crc))
        else:
            if key in keys:
                raise _refusal(path, entry, f"the members of sample {key} are not neighbours. Write the tar sorted by name")
            keys[key] = len(rows)
            rows.append((pending.offset, len(pending.raw), zlib.crc32(pending.raw)))
            in_sample = set()
        if extension in in_sample:
            raise _refusal(path, entry, f"sample {key} has two members .{extension}. Remove one of them")
        in_sample.add(extension)
        last_key, pending = key, _Pending()
        extensions.add(extension)
    if not rows:
        raise DataError(f"{path}: a tar without samples. Remove it from the data set.")
    return ScannedShard(table=np.array(rows, dtype=INDEX_DTYPE), keys=tuple(keys), members=frozenset(extensions))


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One archive entry: header, payload and padding as they lie in the file."""

    offset: int
    raw: bytes
    kind: bytes
    name: str
    size: int


@dataclass(frozen=True)
class _Pending:
    """Bytes since the end of the last member: extension headers belong to the member they precede."""

    offset: int = 0
    raw: bytes = b""

    def followed_by(self, entry: _Entry) -> "_Pending":
        return _Pending(self.offset if self.raw else entry.offset, self.raw + entry.raw)


def _entries(path: Path) -> Iterator[_Entry]:
    """Every entry up to the end-of-archive mark, with headers and lengths checked."""
    try:
        with open(path, "rb") as file:
            yield from _entries_of(file, path=path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path.") from None


def _entries_of(file: BinaryIO, *, path: Path) -> Iterator[_Entry]:
    offset = 0
    while True:
        header = file.read(BLOCK_BYTES)
        if len(header) < BLOCK_BYTES:
            raise DataError(f"{path}: cut short at byte {offset + len(header)}, no end-of-archive mark. Restore or write the tar again.")
        if not any(header):
            break
        size = _checked_size(header, offset=offset, path=path)
        body = file.read(padded_bytes(size))
        if len(body) != padded_bytes(size):
            raise DataError(f"{path}: cut short inside the member at byte {offset}. Restore or write the tar again.")
        try:
            name = header_name(header)
        except UnicodeDecodeError:
            name = ""  # refused below as unsafe, with its place
        yield _Entry(offset=offset, raw=header + body, kind=header[156:157], name=name, size=size)
        offset += len(header) + len(body)
    while block := file.read(1 << 20):
        if any(block):
            raise DataError(f"{path}: data after the end-of-archive mark at byte {offset}. Restore the tar, or split joined tars.")


def _checked_size(header: bytes, *, offset: int, path: Path) -> int:
    checksum = re.fullmatch(rb"[ \0]*([0-7]+)[ \0]*", header[148:156])
    if checksum is None or int(checksum[1], 8) != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise DataError(f"{path}: no valid tar header at byte {offset}. Restore or write the tar again.")
    octal = re.fullmatch(rb"[ \0]*([0-7]+)[ \0]*", header[124:136])
    if octal is None or int(octal[1], 8) > MAX_MEMBER_BYTES:
        raise DataError(f"{path}: the member at byte {offset} is larger than {MAX_MEMBER_BYTES} bytes. Leave it out.")
    return int(octal[1], 8)


def _refuse_unless_harmless(entry: _Entry, *, path: Path) -> None:
    """Let through folders and pax headers that carry only attributes such as times, which the reader may pass over."""
    if entry.kind == _FOLDER:
        return
    if entry.kind not in (_PAX, _PAX_GLOBAL):
        problem = "a link, a special file or a long name of the GNU dialect"
        raise _refusal(path, entry, f"{problem}. Write the tar with regular files in ustar format")
    overriding = [key.decode() for key in _OVERRIDING_PAX_KEYS if key in entry.raw[BLOCK_BYTES:]]
    if overriding:
        raise _refusal(path, entry, f"a pax header with {overriding[0]}. Write the tar in ustar format with names up to 100 characters")


def _member(entry: _Entry, *, path: Path) -> tuple[str, str]:
    if not is_safe_name(entry.name.removeprefix("./")):
        problem = "a name with other characters than letters, digits and ._-/ or with a part that starts with a dot"
        raise _refusal(path, entry, f"{problem}. Rename the file")
    key, extension = split_name(entry.name)
    if not extension:
        raise _refusal(path, entry, "a member without extension. Rename or remove the file")
    return key, extension


def _refusal(path: Path, entry: _Entry, problem: str) -> DataError:
    return DataError(f"{path}: entry {entry.name!r} at byte {entry.offset}: {problem}.")
