"""The order of samples: every global batch as a pure function of the seed and of the samples consumed before it.

Sequence. In each epoch the data set's flat index is rotated and cut into blocks of `block` neighbours; the whole blocks are
permuted, a partial one keeps its place. The result is cut into `lanes` equal lanes; each shuffles inside windows of
`block * window` positions, whose edges are staggered from lane to lane so that the lanes do not all reach for new data at
once. A global batch takes equally many consecutive positions of every lane, lane by lane.

What follows from it: ranks and workers take contiguous slices of batch positions, so the batches do not depend on how many
there are; a position is reached without walking to it; memory does not grow with the data set; a block is one ranged read;
the global batch may change in mid-run, since the cursor counts samples. An epoch drops `num_samples % lanes` samples, others
in every epoch. With repeated augmentation each sample takes `repeats` consecutive positions of its lane, its views. The
permutation is a Feistel network with cycle walking (Black and Rogaway 2002) on splitmix64, so that no
library's generator is part of a run.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from vitscale.config import ConfigError, DataError
from vitscale.dist.seeding import U64_MASK, counter_key, mix, mix_array

Ids = npt.NDArray[np.int64]

_FEISTEL_ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class BatchIds:
    """The samples of consecutive batch positions: indices in the data set and the epoch of each."""

    sample_ids: Ids
    epochs: Ids


@dataclass(frozen=True, kw_only=True)
class Window:
    """Names one of the stretches of a lane that are shuffled as one; they are numbered from 0 in each epoch."""

    lane: int
    epoch: int
    index: int
    source: int = 0
    """Which data set of a mixture it belongs to."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """The views [start, stop) of a window: view v is number `v % repeats` of the sample at place `v // repeats` of its shuffled order."""

    window: Window
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class LaneRows:
    """The rows [first, stop) of a lane, counted over all epochs; a row is one sample of a batch."""

    lane: int
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a data set of `num_samples`. Raises `DataError` for an empty one, `ConfigError` for too many lanes."""

    num_samples: int
    seed: int
    lanes: int
    block: int
    window: int
    repeats: int = 1

    def __post_init__(self) -> None:
        assert min(self.lanes, self.block, self.window, self.repeats) >= 1, self
        if self.num_samples < 1:
            raise DataError("The data set holds no samples. Pack it again from a source that has some.")
        if self.lanes > self.num_samples:
            raise ConfigError(
                f"data.lanes: {self.lanes} lanes need at least as many samples, and the data set has {self.num_samples}."
                " Lower data.lanes, or train.global_batch where lanes is auto."
            )

    @property
    def lane_length(self) -> int:
        """Samples of each lane per epoch."""
        return self.num_samples // self.lanes

    @property
    def window_length(self) -> int:
        """Samples of a whole window; those at the ends of a lane may be shorter."""
        return self.block * self.window

    def identity(self) -> dict[str, int]:
        """What a checkpoint stores and a resume compares: with any other value the run would see other batches."""
        return asdict(self)

    def samples_per_lane(self, global_batch: int) -> int:
        """What a global batch takes of every lane. Raises `ConfigError` when the lanes do not divide it."""
        return samples_per_lane(global_batch, lanes=self.lanes)

    def batch_ids(self, consumed: int, *, global_batch: int, start: int = 0, stop: int | None = None) -> BatchIds:
        """The samples at positions [start, stop) of the global batch that follows `consumed` samples.

        Raises `ConfigError` when the lanes do not divide the global batch.
        """
        spans = self.batch_spans(consumed, global_batch=global_batch, start=start, stop=global_batch if stop is None else stop)
        return ids_of_spans(spans, window_ids=self.window_ids, repeats=self.repeats)

    def batch_spans(self, consumed: int, *, global_batch: int, start: int, stop: int) -> Iterator[Span]:
        """The same stretch of a global batch as `batch_ids`, as spans of windows in batch order."""
        for rows in batch_rows(consumed, global_batch=global_batch, lanes=self.lanes, start=start, stop=stop):
            yield from self.lane_spans(rows.lane, first=rows.first, stop=rows.stop)

    def window_at(self, consumed: int, *, global_batch: int, position: int) -> Window:
        """The window that the sample at a batch position comes from."""
        return next(self.batch_spans(consumed, global_batch=global_batch, start=position, stop=position + 1)).window

    def window_ids(self, window: Window) -> Ids:
        """The samples of a window in shuffled order, as indices in the data set."""
        start, stop = self._window_bounds(window.lane, window.index)
        key = np.uint64(counter_key(self.seed, window.epoch, "window", window.lane, window.index))
        # A stable sort of distinct keys: the same on every machine and version of numpy.
        shuffled = np.argsort(mix_array(np.arange(stop - start, dtype=np.uint64) ^ key), kind="stable")
        first = window.lane * self.lane_length + start
        return self._dataset_ids(epoch=window.epoch, first=first, stop=first + stop - start)[shuffled]

    def window_after(self, window: Window) -> Window:
        """The window that the same lane enters next, in the next epoch after the last one of this."""
        _, stop = self._window_bounds(window.lane, window.index)
        if stop == self.lane_length:
            return Window(lane=window.lane, epoch=window.epoch + 1, index=0)
        return Window(lane=window.lane, epoch=window.epoch, index=window.index + 1)

    def lane_spans(self, lane: int, *, first: int, stop: int) -> Iterator[Span]:
        """The views [first, stop) of a lane, counted over all epochs."""
        while first < stop:
            epoch, position = divmod(first, self.lane_length * self.repeats)
            index = (position // self.repeats + self._phase(lane)) // self.window_length
            window_start, window_stop = (bound * self.repeats for bound in self._window_bounds(lane, index))
            count = min(stop - first, window_stop - position)
            start = position - window_start
            yield Span(window=Window(lane=lane, epoch=epoch, index=index), start=start, stop=start + count)
            first += count

    def _phase(self, lane: int) -> int:
        return lane * self.window_length // self.lanes

    def _window_bounds(self, lane: int, index: int) -> tuple[int, int]:
        start = index * self.window_length - self._phase(lane)
        return max(0, start), min(self.lane_length, start + self.window_length)

    def _dataset_ids(self, *, epoch: int, first: int, stop: int) -> Ids:
        """The data set's indices at positions [first, stop) of the rotated, block-permuted sequence."""
        rotation = counter_key(self.seed, epoch, "rotation") % self.num_samples
        first_block, last_block = first // self.block, (stop - 1) // self.block
        blocks = np.arange(first_block, last_block + 1)
        num_whole = self.num_samples // self.block
        whole = blocks < num_whole
        blocks[whole] = _permute(blocks[whole], size=num_whole, key=counter_key(self.seed, epoch, "blocks"))
        positions = (blocks[:, None] * self.block + np.arange(self.block)).reshape(-1)
        skipped = first - first_block * self.block
        ids: Ids = (positions[skipped : skipped + stop - first] + rotation) % self.num_samples
        return ids


def samples_per_lane(global_batch: int, *, lanes: int) -> int:
    """What a global batch takes of every lane. Raises `ConfigError` when the lanes do not divide it."""
    if global_batch < 1 or global_batch % lanes:
        raise ConfigError(
            f"train.global_batch: {global_batch} is not a multiple of data.lanes {lanes};"
            " every batch takes equally many samples of each lane. Change one of them."
        )
    return global_batch // lanes


def batch_rows(consumed: int, *, global_batch: int, lanes: int, start: int, stop: int) -> Iterator[LaneRows]:
    """The rows at positions [start, stop) of the global batch that follows `consumed` samples, lane by lane.

    Raises `ConfigError` when the lanes do not divide the global batch.
    """
    assert 0 <= start <= stop <= global_batch, (start, stop, global_batch)
    per_lane = samples_per_lane(global_batch, lanes=lanes)
    assert consumed >= 0, consumed
    assert consumed % lanes == 0, f"{consumed} samples are not a whole number of global batches over {lanes} lanes"
    if start == stop:
        return
    cursor = consumed // lanes
    for lane in range(start // per_lane, -(-stop // per_lane)):
        first, last = max(start - lane * per_lane, 0), min(stop - lane * per_lane, per_lane)
        yield LaneRows(lane=lane, first=cursor + first, stop=cursor + last)


def ids_of_spans(spans: Iterable[Span], *, window_ids: Callable[[Window], Ids], repeats: int) -> BatchIds:
    """The samples of the spans, one after the other; `window_ids` is asked once per window, and one lane's are held at a time."""
    known: dict[Window, Ids] = {}
    ids, epochs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    lane = -1
    for span in spans:
        if span.window.lane != lane:
            known.clear()
            lane = span.window.lane
        if span.window not in known:
            known[span.window] = window_ids(span.window)
        ids.append(known[span.window][np.arange(span.start, span.stop) // repeats])
        epochs.append(np.full(span.stop - span.start, span.window.epoch, np.int64))
    return BatchIds(sample_ids=np.concatenate(ids), epochs=np.concatenate(epochs))


def _permute(indices: Ids, *, size: int, key: int) -> Ids:
    """The images of `indices` under the keyed permutation of [0, size).

    A balanced Feistel network permutes the next even power of two, at most 4 * size; walking on along its cycle until the
    value falls below `size` makes that a permutation of [0, size), in fewer than 4 steps on average.
    """
    half = np.uint64((max(2, (size - 1).bit_length()) + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = [np.uint64(mix((key + i) & U64_MASK)) for i in range(_FEISTEL_ROUNDS)]
    values = indices.astype(np.uint64)
    walking = np.ones(values.shape, np.bool_)
    while walking.any():
        left, right = values[walking] >> half, values[walking] & mask
        for round_key in round_keys:
            left, right = right, left ^ (mix_array(right ^ round_key) & mask)
        values[walking] = (left << half) | right
        walking = values >= np.uint64(size)
    return values.astype(np.int64)
