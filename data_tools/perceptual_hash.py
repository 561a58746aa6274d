"""A 64-bit hash that similar pictures share (pHash), and all pairs of hashes that differ in few bits, found without trying all."""

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
"""The search looks at every band within a quarter of the distance: beyond this one its buckets hold most of the data."""

_SIDE = 32
_NUM_FREQUENCIES = 8
_LEAST_CONTRAST = 2.0
_NUM_BANDS = 4
_BAND_BITS = NUM_BITS // _NUM_BANDS
_CANDIDATES_AT_ONCE = 1 << 22
# DCT-II, frequencies 1 to 8: the mean says nothing, and what is finer does not survive a new compression.
_DCT = np.cos(np.pi / _SIDE * np.outer(np.arange(1, _NUM_FREQUENCIES + 1), np.arange(_SIDE) + 0.5))
_ONES = np.array([value.bit_count() for value in range(1 << _BAND_BITS)], np.uint8)


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
    # Sums of neighbouring fields of 1, 2 and 4 bits; the product adds up the 8 bytes in its highest.
    sums = a_P ^ b_P
    sums -= (sums >> np.uint64(1)) & np.uint64(0x5555555555555555)
    sums = (sums & np.uint64(0x3333333333333333)) + ((sums >> np.uint64(2)) & np.uint64(0x3333333333333333))
    sums = (sums + (sums >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    with np.errstate(over="ignore"):
        total: npt.NDArray[np.uint8] = ((sums * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)
    return total


def near_pairs(queries_N: Hashes, base_N: Hashes, *, max_distance: int) -> IntArray:
    """All (query, base) index pairs whose hashes differ in at most `max_distance` bits, (P, 2), sorted, each once.

    Multi-index hashing (Norouzi, Punjani, Fleet 2012): of four bands of 16 bits one differs in at most a quarter of the
    bits, so only hashes are compared that share a band but for these. Both arrays hold each hash once.
    """
    assert 0 <= max_distance <= MAX_DISTANCE, max_distance
    if not len(queries_N) or not len(base_N):
        return np.empty((0, 2), np.int64)
    bands = [_pairs_of_band(queries_N, base_N, band=band, max_distance=max_distance) for band in range(_NUM_BANDS)]
    numbers_P = np.unique(np.concatenate(bands))
    return np.stack(np.divmod(numbers_P, len(base_N)), axis=1)


def _pairs_of_band(queries_N: Hashes, base_N: Hashes, *, band: int, max_distance: int) -> IntArray:
    """The pairs as one number each, query * len(base) + base."""
    query_order, base_order = (np.argsort(_band(hashes, band), kind="stable") for hashes in (queries_N, base_N))
    # In the order of the band's value, so that what is compared lies together in memory.
    queries, base = queries_N[query_order], base_N[base_order]
    ends = np.cumsum(np.bincount(_band(base, band), minlength=1 << _BAND_BITS))
    found = [np.empty(0, np.int64)]
    for mask in _masks(max_distance // _NUM_BANDS):
        wanted = _band(queries, band) ^ mask
        starts = np.where(wanted > 0, ends[wanted - 1], 0)
        for query_places, base_places in _expanded(starts, ends[wanted]):
            is_near = distances(queries[query_places], base[base_places]) <= max_distance
            found.append(query_order[query_places[is_near]] * len(base_N) + base_order[base_places[is_near]])
    return np.concatenate(found)


def _band(hashes_N: Hashes, band: int) -> IntArray:
    return ((hashes_N >> np.uint64(band * _BAND_BITS)) & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)


def _masks(radius: int) -> list[int]:
    """All values of a band with at most `radius` ones."""
    return np.flatnonzero(radius >= _ONES).tolist()


def _expanded(starts: IntArray, stops: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """(query, place) for every place in [start, stop) of every query, in chunks that fit in memory."""
    totals = np.cumsum(stops - starts)
    first = 0
    while first < len(starts):
        done = int(totals[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(totals, done + _CANDIDATES_AT_ONCE, side="right")))
        lengths = (stops - starts)[first:stop]
        queries = np.repeat(np.arange(first, stop), lengths)
        offsets = np.arange(len(queries)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield queries, np.repeat(starts[first:stop], lengths) + offsets
        first = stop
