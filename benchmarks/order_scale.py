"""What the order of samples costs one rank of a very large run: time and memory per window and per global batch.

    PYTHONPATH=. python benchmarks/order_scale.py

1,024 lanes, blocks of 256, windows of 4 blocks, 4,096 ranks, a global batch of 16,384; data sets of 3e6 to 3e9 samples, by themselves
and as three sets mixed 0.7/0.2/0.1, at the start of a run and after 1e9 and 1e12 samples. Nothing may grow with either.
"""

import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vitscale.data.lanes import BatchSlice, SampleOrder, rank_slice
from vitscale.data.mixture import MixtureOrder
from vitscale.data.order import Order, ids_of_spans

LANES, BLOCK, WINDOW, RANKS, GLOBAL_BATCH = 1024, 256, 4, 4096, 16384
SIZES = (3_000_000, 30_000_000, 300_000_000, 3_000_000_000)
POSITIONS = (0, 10**9, 10**12)
SHARES = (70, 20, 10)
REPETITIONS = 15


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU milliseconds (median) and the most bytes held in between."""

    milliseconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.milliseconds:9.3f} ms {self.peak_bytes / 1024:8.1f} KiB"


def main() -> None:
    """Print the table."""
    print(f"{LANES} lanes, block {BLOCK}, window {WINDOW}, global batch {GLOBAL_BATCH}, one of {RANKS} ranks (4 samples each)")
    heads = ("one window", "the batch's spans", "resume: first batch's ids")
    print(f"{'order':8} {'samples':>13} {'consumed':>17}" + "".join(f" {head:>25}" for head in heads))
    for name, make in (("one set", one_set), ("mixture", mixture)):
        for num_samples in SIZES:
            for consumed in POSITIONS:
                costs = measure(make, num_samples=num_samples, consumed=consumed // GLOBAL_BATCH * GLOBAL_BATCH)
                print(f"{name:8} {num_samples:13,} {consumed:17,}" + "".join(f" {cost!s:>25}" for cost in costs), flush=True)


def one_set(num_samples: int) -> SampleOrder:
    """The order of one data set."""
    return Order(num_samples=num_samples, seed=1, lanes=LANES, block=BLOCK, window=WINDOW)


def mixture(num_samples: int) -> SampleOrder:
    """Three sets of different sizes, `num_samples` together."""
    sizes = [num_samples * tenths // 10 for tenths in (6, 3, 1)]
    orders = tuple(Order(num_samples=size, seed=i, lanes=LANES, block=BLOCK, window=WINDOW) for i, size in enumerate(sizes))
    return MixtureOrder(orders=orders, slots=SHARES, seed=1)


def measure(make: Callable[[int], SampleOrder], *, num_samples: int, consumed: int) -> Iterator[Cost]:
    """One window's ids; the spans of a rank's slice; all that a rank needs for its first batch after a resume, from nothing."""
    rank = iter(range(7, RANKS, RANKS // 64))  # another rank each time: no window is computed twice
    order = make(num_samples)

    def slice_of_next_rank() -> BatchSlice:
        return rank_slice(GLOBAL_BATCH, rank=next(rank), world_size=RANKS)

    def window() -> object:
        here = order.window_at(consumed, global_batch=GLOBAL_BATCH, position=slice_of_next_rank().start)
        return order.window_ids(here)

    def spans() -> object:
        here = slice_of_next_rank()
        return list(order.batch_spans(consumed, global_batch=GLOBAL_BATCH, start=here.start, stop=here.stop))

    def resume() -> object:
        fresh, here = make(num_samples), slice_of_next_rank()
        found = fresh.batch_spans(consumed, global_batch=GLOBAL_BATCH, start=here.start, stop=here.stop)
        return ids_of_spans(found, window_ids=fresh.window_ids, repeats=fresh.repeats)

    for action in (window, spans, resume):
        yield cost_of(action)


def cost_of(action: Callable[[], object]) -> Cost:
    """Time without, then memory with the tracing of allocations."""
    seconds = []
    for _ in range(REPETITIONS):
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Cost(milliseconds=1000 * statistics.median(seconds), peak_bytes=peak)


if __name__ == "__main__":
    main()
