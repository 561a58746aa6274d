"""The order of a mixture of data sets: exact shares of every batch and of every lane, as a pure function of the samples consumed.

All sets have the same lanes. Row p of lane l of the mixture has the number g = p * lanes + l, so that the samples g < consumed
have been consumed after `consumed` samples, whatever the global batch was. Rows are dealt to the sets in cycles of M slots, of
which each set owns as many as its weight says; which ones is shuffled anew for every M rows by a key. With
d = gcd(lanes, M), sample g takes slot (g + g // lcm(lanes, M) % d) % M. From that follow both: each M samples [kM, (k+1)M) take
every slot once, and so does each lane in its rows [kM, (k+1)M). The first makes the shares of the batches exact, the second lets
all lanes of a set cross its epochs within M rows of each other, and tells in O(M) how far a lane of a set has been consumed.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vitscale.data.lanes import SampleScanner
from vitscale.data.order import BatchIds, Ids, Order, Span, Window, batch_rows, ids_of_spans, samples_per_lane
from vitscale.data.types import LostSample, RawSample
from vitscale.dist.seeding import counter_key, mix_array

_CACHED_CYCLES = 8
_CACHED_LANES = 2048

SetNumbers = npt.NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class MixtureOrder:
    """Several orders with equal lanes and repeats as one; set i has `slots[i]` slots of each cycle, and its samples are
    numbered on after those of the sets before it. `Window.source` is the number of the set."""

    orders: tuple[Order, ...]
    slots: tuple[int, ...]
    seed: int

    def __post_init__(self) -> None:
        assert len(self.orders) == len(self.slots) >= 1, self
        assert min(self.slots) >= 1, self
        assert len({(order.lanes, order.repeats) for order in self.orders}) == 1, self

    @property
    def lanes(self) -> int:
        """Lanes of the mixture and of each set."""
        return self.orders[0].lanes

    @property
    def repeats(self) -> int:
        """Consecutive views of each sample in its set's lane."""
        return self.orders[0].repeats

    @property
    def num_samples(self) -> int:
        """Of all sets together."""
        return sum(order.num_samples for order in self.orders)

    @property
    def cycle(self) -> int:
        """M, the slots of a cycle."""
        return sum(self.slots)

    @property
    def starts(self) -> tuple[int, ...]:
        """The flat index of each set's first sample."""
        return tuple(itertools.accumulate((order.num_samples for order in self.orders[:-1]), initial=0))

    def samples_per_lane(self, global_batch: int) -> int:
        """As `Order.samples_per_lane`."""
        return samples_per_lane(global_batch, lanes=self.lanes)

    def batch_ids(self, consumed: int, *, global_batch: int, start: int = 0, stop: int | None = None) -> BatchIds:
        """As `Order.batch_ids`; the epochs are those of each sample's own set."""
        spans = self.batch_spans(consumed, global_batch=global_batch, start=start, stop=global_batch if stop is None else stop)
        return ids_of_spans(spans, window_ids=self.window_ids, repeats=self.repeats)

    def batch_spans(self, consumed: int, *, global_batch: int, start: int, stop: int) -> Iterator[Span]:
        """The stretch [start, stop) of the global batch that follows `consumed` samples, as spans of windows in batch order."""
        for rows in batch_rows(consumed, global_batch=global_batch, lanes=self.lanes, start=start, stop=stop):
            yield from self._lane_spans(rows.lane, first=rows.first, stop=rows.stop)

    def window_at(self, consumed: int, *, global_batch: int, position: int) -> Window:
        """The window that the sample at a batch position comes from."""
        return next(self.batch_spans(consumed, global_batch=global_batch, start=position, stop=position + 1)).window

    def window_ids(self, window: Window) -> Ids:
        """The samples of a window in shuffled order, as flat indices over all sets."""
        return self.orders[window.source].window_ids(window) + self.starts[window.source]

    def window_after(self, window: Window) -> Window:
        """The window that the same lane of the same set enters next."""
        return replace(self.orders[window.source].window_after(window), source=window.source)

    def _lane_spans(self, lane: int, *, first: int, stop: int) -> Iterator[Span]:
        """The rows [first, stop) of a lane, cut where the set or its window changes."""
        for cycle in range(first // self.cycle, -(-stop // self.cycle)):
            start, end = (min(max(row - cycle * self.cycle, 0), self.cycle) for row in (first, stop))
            rows = _lane_cycle(self.seed, self.slots, self.lanes, lane, cycle)
            sets, earlier = rows.sets[start:end].tolist(), rows.earlier[start:end].tolist()
            run_start = 0
            for source, run in itertools.groupby(sets):
                length = sum(1 for _ in run)
                position = cycle * self.slots[source] + earlier[run_start]
                run_start += length
                for span in self.orders[source].lane_spans(lane, first=position, stop=position + length):
                    window = Window(lane=lane, epoch=span.window.epoch, index=span.window.index, source=source)
                    yield Span(window=window, start=span.start, stop=span.stop)


@dataclass(frozen=True, kw_only=True)
class _LaneCycle:
    """The rows of a lane in a cycle: the set of each, and how many rows it has earlier in the cycle."""

    sets: SetNumbers
    earlier: SetNumbers


@functools.lru_cache(maxsize=_CACHED_LANES)
def _lane_cycle(seed: int, slots: tuple[int, ...], lanes: int, lane: int, cycle: int) -> _LaneCycle:
    length = sum(slots)
    numbers = (cycle * length + np.arange(length)) * lanes + lane
    turn = numbers // math.lcm(lanes, length) % math.gcd(lanes, length)
    sets = _dealt_slots(seed, slots, cycle)[(numbers + turn) % length]
    earlier = np.empty_like(sets)
    for source, count in enumerate(slots):
        earlier[sets == source] = np.arange(count)
    return _LaneCycle(sets=sets, earlier=earlier)


@functools.lru_cache(maxsize=_CACHED_CYCLES)
def _dealt_slots(seed: int, slots: tuple[int, ...], cycle: int) -> SetNumbers:
    """Which set owns each slot in the rows of this cycle."""
    owners = np.repeat(np.arange(len(slots), dtype=np.int16), slots)
    key = np.uint64(counter_key(seed, "slots", cycle))
    return owners[np.argsort(mix_array(np.arange(len(owners), dtype=np.uint64) ^ key), kind="stable")]


@dataclass(frozen=True, kw_only=True)
class MixedSet:
    """A set's name, its reader and how many samples it has."""

    name: str
    reader: SampleScanner
    num_samples: int


class MixtureReader:
    """Reads the samples of several sets by flat index over all of them; shards are named `<set>/<shard>`."""

    def __init__(self, sets: Sequence[MixedSet]) -> None:
        self._sets = tuple(sets)

    def scan(self, first: int, stop: int, *, epoch: int) -> Iterator[RawSample | LostSample]:
        """The samples of the flat range [first, stop), readable or lost, in order."""
        start = 0
        for mixed in self._sets:
            end = start + mixed.num_samples
            if first < end and stop > start:
                for sample in mixed.reader.scan(max(first, start) - start, min(stop, end) - start, epoch=epoch):
                    yield replace(sample, sample_id=sample.sample_id + start, shard=f"{mixed.name}/{sample.shard}")
            start = end

    def io_counters(self) -> Mapping[str, int]:
        """Summed over the sets."""
        return sum((Counter(mixed.reader.io_counters()) for mixed in self._sets), Counter[str]())
