"""Finds sample keys that occur twice in a data set: by 64-bit hashes first, since the keys themselves do not fit in memory."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

KEY_DTYPE = np.dtype([("hash", "<u8"), ("row", "<u4")])
"""Per sample of a shard: the hash of its key and its place in the shard; sorted by hash."""

KeyTable = npt.NDArray[np.void]

_HASHES_AT_ONCE = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Place:
    """A sample by the number of its shard and its row there."""

    shard: int
    row: int


@dataclass(frozen=True, kw_only=True)
class DuplicateKey:
    """A key and all places where it occurs."""

    key: str
    places: tuple[Place, ...]


def key_hash(key: str) -> int:
    """64 bits of a key, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def key_table(keys: Iterable[str]) -> KeyTable:
    """The table of one shard, from its keys in order."""
    hashes = np.fromiter((key_hash(key) for key in keys), np.uint64)
    table = np.empty(len(hashes), KEY_DTYPE)
    table["hash"], table["row"] = hashes, np.arange(len(hashes))
    return table[np.argsort(hashes, kind="stable")]


def duplicate_keys(
    tables: Sequence[KeyTable], *, read_key: Callable[[Place], str], hashes_at_once: int = _HASHES_AT_ONCE
) -> Iterator[DuplicateKey]:
    """Keys that occur more than once over all shards. `read_key` is asked only where hashes agree, and tells for sure.

    Tables may be memory maps: about `hashes_at_once` hashes are looked at together, a slice of the hashes' range at a time.
    """
    num_slices = max(1, -(-sum(len(table) for table in tables) // hashes_at_once))
    edges = [(1 << 64) * number // num_slices for number in range(num_slices + 1)]
    for low, high in pairwise(edges):
        yield from _duplicates_between(tables, low=low, high=high, read_key=read_key)


def _duplicates_between(tables: Sequence[KeyTable], *, low: int, high: int, read_key: Callable[[Place], str]) -> Iterator[DuplicateKey]:
    parts, shards = [], []
    for number, table in enumerate(tables):
        first = np.searchsorted(table["hash"], np.uint64(low))
        stop = len(table) if high >> 64 else np.searchsorted(table["hash"], np.uint64(high))
        parts.append(np.asarray(table[first:stop]))
        shards.append(np.full(stop - first, number, np.uint32))
    entries, shard_numbers = np.concatenate(parts), np.concatenate(shards)
    order = np.argsort(entries["hash"], kind="stable")
    hashes = entries["hash"][order]
    starts = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]) != 0)
    lengths = np.diff(starts, append=len(hashes))
    for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
        group = order[start : start + length]
        places = [Place(shard=int(shard_numbers[i]), row=int(entries["row"][i])) for i in group]
        by_key: dict[str, list[Place]] = {}
        for place in places:
            by_key.setdefault(read_key(place), []).append(place)
        yield from (DuplicateKey(key=key, places=tuple(found)) for key, found in by_key.items() if len(found) > 1)
