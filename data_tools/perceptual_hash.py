"""A 64-bit hash that similar pictures share (pHash), and all pairs of hashes that differ in few bits, found without trying all."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import PIL.Image

# Shape suffixes: H height, W width, C channels, N hashes, P pairs.
Pixels = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]

NUM_BITS = 64
MAX_DISTANCE = 11
"""The search sorts by every choice of so many blocks: beyond this distance there are too many choices."""

_SIDE = 32
_NUM_FREQUENCIES = 8
_LEAST_CONTRAST = 2.0
_CANDIDATES_AT_ONCE = 1 << 22
_SORT_COST = 3.0
"""Of sorting one hash, in comparisons of two: measured, and it need not be more than about right."""
# DCT-II, frequencies 1 to 8: the mean says nothing, and what is finer does not survive a new compression.
_DCT = np.cos(np.pi / _SIDE * np.outer(np.arange(1, _NUM_FREQUENCIES + 1), np.arange(_SIDE) + 0.5))


def perceptual_hash(image_HWC: Pixels) -> int | None:
    """pHash of an image (uint8, 1 or 3 channels): 8 x 8 low DCT frequencies of a 32 x 32 grey thumbnail, each above the median or not.

    None for an image without contrast, whose hash would be noise. After Zauner, "Implementation and benchmarking of
    perceptual image hash functions" (2010).
    """
    picture = PIL.Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC).convert("L")
    # The box filter first: most of the accuracy of a direct resize at a fraction of its cost.
    small_HW = np.asarray(picture.resize((_SIDE, _SIDE), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0), np.float64)
    if small_HW.std() < _LEAST_CONTRAST:
        return None
    frequencies = (_DCT @ small_HW @ _DCT.T).ravel()
    bits = np.packbits(frequencies > np.median(frequencies), bitorder="little")
    return int.from_bytes(bits.tobytes(), "little")


def distances(a_P: Hashes, b_P: Hashes) -> npt.NDArray[np.uint8]:
    """In how many bits the hashes differ, pair by pair."""
    return _num_ones(a_P ^ b_P)


def near_pairs(queries_N: Hashes, base_N: Hashes, *, max_distance: int) -> IntArray:
    """All (query, base) index pairs whose hashes differ in at most `max_distance` bits, (P, 2), sorted, each once.

    Cut into more blocks than bits may differ, two such hashes agree in all blocks but `max_distance`. So by every choice of
    so many blocks both sides are sorted and what agrees is compared (Manku, Jain, Das Sarma, "Detecting near-duplicates for
    web crawling", 2007). More hashes are cut into more blocks, of which more have to agree: the work stays far from quadratic.
    """
    return _near(queries_N, base_N, max_distance=max_distance)


def near_pairs_within(hashes_N: Hashes, *, max_distance: int) -> IntArray:
    """`near_pairs` of hashes with each other: all (first, second), first < second, (P, 2), sorted, each once."""
    return _near(hashes_N, None, max_distance=max_distance)


def _near(queries_N: Hashes, base_N: Hashes | None, *, max_distance: int) -> IntArray:
    """`base_N` None: the queries themselves, each pair one way round."""
    assert 0 <= max_distance <= MAX_DISTANCE, max_distance
    others_N = queries_N if base_N is None else base_N
    blocks = _blocks(_num_blocks(len(queries_N), len(others_N), max_distance=max_distance))
    found = [np.empty((0, 2), np.int64)]
    for choice in itertools.combinations(range(len(blocks)), len(blocks) - max_distance):
        mask = np.bitwise_or.reduce(blocks[list(choice)])
        # Blocks before the last chosen one: where one of them agrees too, an earlier choice has found the pair.
        passed_over = [block for number, block in enumerate(blocks[: choice[-1]]) if number not in choice]
        for queries, others in _agreeing(queries_N, base_N, mask=mask):
            differing = queries_N[queries] ^ others_N[others]
            is_new = np.flatnonzero(_num_ones(differing) <= max_distance)
            for block in passed_over:
                is_new = is_new[differing[is_new] & block != 0]
            found.append(np.stack([queries[is_new], others[is_new]], axis=1))
    pairs = np.concatenate(found)
    if base_N is None:
        pairs.sort(axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _num_ones(values: Hashes) -> npt.NDArray[np.uint8]:
    # Sums of neighbouring fields of 1, 2 and 4 bits; the product adds up the 8 bytes in its highest.
    sums = values - ((values >> np.uint64(1)) & np.uint64(0x5555555555555555))
    sums = (sums & np.uint64(0x3333333333333333)) + ((sums >> np.uint64(2)) & np.uint64(0x3333333333333333))
    sums = (sums + (sums >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    with np.errstate(over="ignore"):
        ones: npt.NDArray[np.uint8] = ((sums * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)
    return ones


def _num_blocks(num_queries: int, num_others: int, *, max_distance: int) -> int:
    """The cheapest number for hashes that are spread evenly."""
    return min(
        range(max_distance + 1, 2 * max_distance + 2),
        key=lambda num_blocks: _cost(num_blocks, num_queries=num_queries, num_others=num_others, max_distance=max_distance),
    )


def _cost(num_blocks: int, *, num_queries: int, num_others: int, max_distance: int) -> float:
    """Of all sorts and comparisons, in comparisons."""
    chance = math.exp2(-NUM_BITS * (num_blocks - max_distance) / num_blocks)
    return math.comb(num_blocks, max_distance) * (_SORT_COST * (num_queries + num_others) + num_queries * num_others * chance)


def _blocks(num_blocks: int) -> Hashes:
    """The masks of neighbouring blocks of about equal width."""
    edges = [NUM_BITS * number // num_blocks for number in range(num_blocks + 1)]
    return np.array([(1 << stop) - (1 << first) for first, stop in itertools.pairwise(edges)], np.uint64)


def _agreeing(queries_N: Hashes, base_N: Hashes | None, *, mask: np.uint64) -> Iterator[tuple[IntArray, IntArray]]:
    """(query, other) indices of all hashes that are equal under the mask, in chunks that fit in memory."""
    order = np.argsort(queries_N & mask)
    keys = queries_N[order] & mask
    if base_N is None:
        other_order, starts = order, np.arange(1, len(keys) + 1)
        ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)) + 1
        stops = np.repeat(ends, np.diff(ends, prepend=0))
    else:
        other_order = np.argsort(base_N & mask)
        other_keys = base_N[other_order] & mask
        starts, stops = (np.searchsorted(other_keys, keys, side=side) for side in ("left", "right"))
    for places, other_places in _expanded(starts, stops):
        yield order[places], other_order[other_places]


def _expanded(starts: IntArray, stops: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """(query, place) for every place in [start, stop) of every query, in chunks that fit in memory."""
    totals = np.cumsum(stops - starts)
    first = 0
    while first < len(starts):
        done = int(totals[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(totals, done + _CANDIDATES_AT_ONCE, side="right")))
        lengths = stops[first:stop] - starts[first:stop]
        queries = np.repeat(np.arange(first, stop), lengths)
        offsets = np.arange(len(queries)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield queries, np.repeat(starts[first:stop], lengths) + offsets
        first = stop
