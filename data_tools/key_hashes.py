"""Finds sample keys that occur twice in a data set: by 64-bit hashes first, since the keys themselves do not fit in memory."""

import bisect
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

KEY_DTYPE = np.dtype([("hash", "<u8"), ("row", "<u4")])
"""Per sample of a shard or another part: the hash of its key and its place there; sorted by hash."""

KeyTable = npt.NDArray[np.void]

_HASHES_AT_ONCE = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Place:
    """A sample by the number of its table and what that gives as its row."""

    table: int
    row: int


@dataclass(frozen=True, kw_only=True)
class DuplicateKey:
    """A key and all places where it occurs."""

    key: str
    places: tuple[Place, ...]


def key_hash(key: str) -> int:
    """64 bits of a key, equal on every machine. A foreign key need not be Unicode: bytes that are not stand in it as surrogates."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """How many keys occur more than once, and a sentence for each of the first few."""

    count: int
    sentences: tuple[str, ...]


def key_table(keys: Iterable[str]) -> KeyTable:
    """The table of one part, from its keys in order."""
    hashes = np.fromiter((key_hash(key) for key in keys), np.uint64)
    table = np.empty(len(hashes), KEY_DTYPE)
    table["hash"], table["row"] = hashes, np.arange(len(hashes))
    return table[np.argsort(hashes, kind="stable")]


class StoredTables(Sequence[KeyTable]):
    """Tables in .npy files, opened when they are asked for: a process may not have thousands of files open at once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, number: int) -> KeyTable: ...

    @overload
    def __getitem__(self, number: slice) -> "StoredTables": ...

    def __getitem__(self, number: int | slice) -> "KeyTable | StoredTables":
        if isinstance(number, slice):
            return StoredTables(self._paths[number])
        table: KeyTable = np.load(self._paths[number], mmap_mode="r", allow_pickle=False)
        return table


def find_duplicates(
    tables: Sequence[KeyTable], *, read_key: Callable[[Place], str], name_place: Callable[[Place], str], num_named: int
) -> Duplicates:
    """The first `num_named` keys that occur more than once, with the names of some of their places, and how many there are.

    Where there are no more than these the number is exact. Otherwise keys with equal hashes count as equal, which among
    3e9 keys two different ones are with a chance of one in four: reading millions of keys to be sure would take hours.
    """
    named = list(islice(duplicate_keys(tables, read_key=read_key), num_named))
    sentences = tuple(f"{key.key!r} in {' and '.join(name_place(place) for place in key.places[:3])}" for key in named)
    count = len(named) if len(named) < num_named else sum(1 for _ in _equal_hashes(tables, hashes_at_once=_HASHES_AT_ONCE))
    return Duplicates(count=count, sentences=sentences)


def duplicate_keys(
    tables: Sequence[KeyTable], *, read_key: Callable[[Place], str], hashes_at_once: int = _HASHES_AT_ONCE
) -> Iterator[DuplicateKey]:
    """Keys that occur more than once over all tables. `read_key` is asked only where hashes agree, and tells for sure."""
    for places in _equal_hashes(tables, hashes_at_once=hashes_at_once):
        by_key: dict[str, list[Place]] = {}
        for place in places:
            by_key.setdefault(read_key(place), []).append(place)
        yield from (DuplicateKey(key=key, places=tuple(found)) for key, found in by_key.items() if len(found) > 1)


def _equal_hashes(tables: Sequence[KeyTable], *, hashes_at_once: int) -> Iterator[list[Place]]:
    """The places of every hash that occurs more than once.

    Tables may be memory maps: about `hashes_at_once` hashes are looked at together, a slice of the hashes' range at a time.
    """
    num_slices = max(1, -(-sum(len(table) for table in tables) // hashes_at_once))
    edges = [(1 << 64) * number // num_slices for number in range(num_slices + 1)]
    for low, high in pairwise(edges):
        yield from _equal_hashes_between(tables, low=low, high=high)


def _equal_hashes_between(tables: Sequence[KeyTable], *, low: int, high: int) -> Iterator[list[Place]]:
    parts, numbers = [], []
    for number, table in enumerate(tables):
        # Not numpy's search, which would copy the whole column of every table for every slice.
        hashes = table["hash"]
        first = bisect.bisect_left(hashes, np.uint64(low))
        stop = len(table) if high >> 64 else bisect.bisect_left(hashes, np.uint64(high))
        parts.append(np.array(table[first:stop]))
        numbers.append(np.full(stop - first, number, np.uint32))
    entries, table_numbers = np.concatenate(parts), np.concatenate(numbers)
    order = np.argsort(entries["hash"], kind="stable")
    hashes = entries["hash"][order]
    starts = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]) != 0)
    lengths = np.diff(starts, append=len(hashes))
    for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
        yield [Place(table=int(table_numbers[i]), row=int(entries["row"][i])) for i in order[start : start + length]]
