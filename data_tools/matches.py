"""Decides which samples of a set are duplicates of which: of an evaluation set's images first, then of earlier ones of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from .fingerprints import Fingerprints
from .perceptual_hash import distances, near_pairs, near_pairs_within

Kind = Literal["bytes", "pixels", "near"]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

OWN_SET = -1


@dataclass(frozen=True, kw_only=True)
class Match:
    """A sample that is to go, and the one that it repeats: by the file's bytes, by its pixels, or nearly."""

    sample_id: int
    kind: Kind
    distance: int
    """Bits in which the perceptual hashes differ; 0 for exact duplicates."""
    other_set: int
    """Number of the evaluation set, or `OWN_SET`."""
    other_id: int


def find_matches(own: Fingerprints, *, against: Sequence[Fingerprints], max_distance: int, compares_own: bool) -> list[Match]:
    """Every sample of `own` that is to be removed, in order.

    What an evaluation set has goes first. Of duplicates within `own` (unless `compares_own` is false) the first stays; a
    near duplicate goes only if the one it resembles stays, so that chains of resemblance do not wipe out a series of photos.
    """
    matches: dict[int, Match] = {}
    is_open = np.ones(len(own), bool)
    for number, other in enumerate(against):
        for match in _matches_between(own, other, is_open=is_open, max_distance=max_distance, number=number):
            matches[match.sample_id] = match
            is_open[match.sample_id] = False
    if compares_own:
        for match in _matches_within(own, is_open=is_open, max_distance=max_distance):
            matches[match.sample_id] = match
    return [matches[sample_id] for sample_id in sorted(matches)]


def _matches_between(own: Fingerprints, other: Fingerprints, *, is_open: BoolArray, max_distance: int, number: int) -> Iterator[Match]:
    is_left = is_open.copy()
    for kind in _EXACT:
        mine, theirs = np.flatnonzero(is_left & _has(own, kind)), np.flatnonzero(_has(other, kind))
        first = _first_equal(*(np.concatenate([_digest(other, kind, half)[theirs], _digest(own, kind, half)[mine]]) for half in _HALVES))
        found = first[len(theirs) :] < len(theirs)
        for sample_id, place in zip(mine[found].tolist(), first[len(theirs) :][found].tolist(), strict=True):
            yield Match(sample_id=sample_id, kind=kind, distance=0, other_set=number, other_id=int(theirs[place]))
        is_left[mine[found]] = False
    mine, theirs = np.flatnonzero(is_left & own["has_contrast"]), np.flatnonzero(other["has_contrast"])
    hashes, node = np.unique(own["perceptual"][mine], return_inverse=True)
    their_hashes, their_first = np.unique(other["perceptual"][theirs], return_index=True)
    pairs = near_pairs(hashes, their_hashes, max_distance=max_distance)
    apart = distances(hashes[pairs[:, 0]], their_hashes[pairs[:, 1]])
    # The nearest of each: sorted by distance, the first pair of a node counts.
    order = np.lexsort((apart, pairs[:, 0]))
    nodes, first = np.unique(pairs[order, 0], return_index=True)
    best = np.full(len(hashes), -1)
    best[nodes] = order[first]
    for sample_id, pair in zip(mine.tolist(), best[node].tolist(), strict=True):
        if pair >= 0:
            other_id = int(theirs[their_first[pairs[pair, 1]]])
            yield Match(sample_id=sample_id, kind="near", distance=int(apart[pair]), other_set=number, other_id=other_id)


def _matches_within(own: Fingerprints, *, is_open: BoolArray, max_distance: int) -> Iterator[Match]:
    is_left = is_open.copy()
    for kind in _EXACT:
        mine = np.flatnonzero(is_left & _has(own, kind))
        first = _first_equal(*(_digest(own, kind, half)[mine] for half in _HALVES))
        found = first != np.arange(len(mine))
        for sample_id, other_id in zip(mine[found].tolist(), mine[first[found]].tolist(), strict=True):
            yield Match(sample_id=sample_id, kind=kind, distance=0, other_set=OWN_SET, other_id=other_id)
        is_left[mine[found]] = False
    mine = np.flatnonzero(is_left & own["has_contrast"])
    perceptual = own["perceptual"][mine]
    first = _first_equal(perceptual, np.zeros_like(perceptual))
    nodes = np.flatnonzero(first == np.arange(len(mine)))  # one for each hash, in their order
    stays = np.empty(len(mine), np.int64)
    stays[nodes] = nodes[_kept_nodes(perceptual[nodes], max_distance=max_distance)]
    stays = stays[first]
    goes = np.flatnonzero(stays != np.arange(len(mine)))
    apart = distances(perceptual[goes], perceptual[stays[goes]])
    for place, distance in zip(goes.tolist(), apart.tolist(), strict=True):
        yield Match(sample_id=int(mine[place]), kind="near", distance=distance, other_set=OWN_SET, other_id=int(mine[stays[place]]))


def _kept_nodes(hashes: npt.NDArray[np.uint64], *, max_distance: int) -> IntArray:
    """For each hash the one that stays in its place: itself, or an earlier one near it that stays."""
    pairs = near_pairs_within(hashes, max_distance=max_distance)
    kept = np.arange(len(hashes))
    nodes, starts = np.unique(pairs[:, 0], return_index=True)
    # In order: when a hash is reached, whether it stays has been settled.
    for node, (start, stop) in zip(nodes.tolist(), pairwise([*starts.tolist(), len(pairs)]), strict=True):
        if kept[node] == node:
            near = pairs[start:stop, 1]
            kept[near[kept[near] == near]] = node
    return kept


_EXACT: tuple[Kind, ...] = ("bytes", "pixels")
_HALVES = ("high", "low")


def _has(table: Fingerprints, kind: Kind) -> BoolArray:
    has: BoolArray = np.ones(len(table), bool) if kind == "bytes" else table["is_readable"]
    return has


def _digest(table: Fingerprints, kind: Kind, half: str) -> npt.NDArray[np.uint64]:
    digest: npt.NDArray[np.uint64] = table[f"{kind}_{half}"]
    return digest


def _first_equal(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> IntArray:
    """For each digest the place of its first occurrence."""
    order = np.lexsort((low, high))  # stable: equal ones stay in order
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    first = np.empty(len(order), np.int64)
    first[order] = order[is_new][np.cumsum(is_new) - 1]
    return first
