import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.config import ConfigError, DataError, UserError
from vitscale.data.order import Order, _permute
from vitscale.dist.seeding import U64_MASK, counter_key, mix

GOLDEN_FIRST = [506, 33, 916, 918, 293, 286, 766, 770, 433, 428, 825, 827, 80, 84, 533, 531]
GOLDEN_LATE = [769, 85, 114, 716, 641, 835, 731, 47]
GOLDEN_LARGE = [2417077134, 1587782548, 1712169117, 2434329506]


def make_order(**changes: int) -> Order:
    return Order(**{"num_samples": 1000, "seed": 7, "lanes": 8, "block": 16, "window": 2, **changes})


@st.composite
def orders(draw: st.DrawFn) -> Order:
    num_samples = draw(st.integers(1, 300))
    return Order(
        num_samples=num_samples,
        seed=draw(st.integers(0, 2**40)),
        lanes=draw(st.integers(1, min(num_samples, 24))),
        block=draw(st.integers(1, 70)),
        window=draw(st.integers(1, 5)),
    )


def epoch_ids(order: Order, epoch: int) -> list[int]:
    """One whole epoch taken as a single global batch: lane after lane."""
    length = order.lane_length * order.lanes
    ids: list[int] = order.batch_ids(epoch * length, global_batch=length).sample_ids.tolist()
    return ids


def reference_epoch(order: Order, epoch: int) -> list[int]:
    """The definition once more, with plain integers, lists and a whole epoch in memory."""
    seed, length = order.seed, order.num_samples // order.lanes
    num_whole = order.num_samples // order.block
    rotation = counter_key(seed, epoch, "rotation") % order.num_samples
    blocks = [reference_feistel(i, num_whole, counter_key(seed, epoch, "blocks")) for i in range(num_whole)] + [num_whole]
    sequence = [block * order.block + offset for block in blocks for offset in range(order.block)]
    sequence = [(position + rotation) % order.num_samples for position in sequence if position < order.num_samples]
    result: list[int] = []
    for lane in range(order.lanes):
        positions = sequence[lane * length : (lane + 1) * length]
        whole = order.block * order.window
        phase = lane * whole // order.lanes
        windows: dict[int, list[int]] = {}
        for place, sample_id in enumerate(positions):
            windows.setdefault((place + phase) // whole, []).append(sample_id)
        for index, members in windows.items():
            key = counter_key(seed, epoch, "window", lane, index)
            result += [members[i] for i in sorted(range(len(members)), key=lambda i, key=key: mix(i ^ key))]
    return result


def reference_feistel(value: int, size: int, key: int) -> int:
    half = 1
    while 4**half < size:
        half += 1
    while True:
        left, right = divmod(value, 2**half)
        for i in range(6):
            left, right = right, left ^ (mix(right ^ mix((key + i) & U64_MASK)) % 2**half)
        value = left * 2**half + right
        if value < size:
            return value


@given(order=orders(), epoch=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_equals_the_definition(order: Order, epoch: int) -> None:
    assert epoch_ids(order, epoch) == reference_epoch(order, epoch)


def test_golden_values_never_change() -> None:
    # A change here changes every run that was ever started: do not mend the numbers, mend the code.
    order = make_order()
    first = order.batch_ids(0, global_batch=16)
    assert first.sample_ids.tolist() == GOLDEN_FIRST
    late = order.batch_ids(8_000_000, global_batch=8)
    assert late.sample_ids.tolist() == GOLDEN_LATE
    assert late.epochs.tolist() == [8000] * 8
    large = Order(num_samples=3_000_000_000, seed=1, lanes=1024, block=256, window=4)
    assert large.batch_ids(10**12 // 1024 * 1024, global_batch=1024, start=500, stop=504).sample_ids.tolist() == GOLDEN_LARGE


@given(size=st.integers(1, 3000), key=st.integers(0, U64_MASK))
@settings(max_examples=40, deadline=None)
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(_permute(np.arange(size), size=size, key=key).tolist()) == list(range(size))


@given(order=orders(), epoch=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_an_epoch_visits_each_of_its_samples_once(order: Order, epoch: int) -> None:
    ids = epoch_ids(order, epoch)
    assert len(ids) == len(set(ids)) == order.num_samples // order.lanes * order.lanes
    assert min(ids) >= 0
    assert max(ids) < order.num_samples


def test_the_dropped_samples_rotate() -> None:
    order = make_order(num_samples=1003)
    dropped = [frozenset(range(1003)) - frozenset(epoch_ids(order, epoch)) for epoch in range(20)]
    assert {len(samples) for samples in dropped} == {3}
    assert len(frozenset().union(*dropped)) > 30


@given(order=orders(), batch=st.integers(0, 200), per_lane=st.integers(1, 9), cuts=st.lists(st.floats(0, 1), max_size=6))
@settings(max_examples=40, deadline=None)
def test_slices_of_any_topology_make_the_same_batch(order: Order, batch: int, per_lane: int, cuts: list[float]) -> None:
    global_batch = per_lane * order.lanes
    consumed = batch * global_batch
    whole = order.batch_ids(consumed, global_batch=global_batch)
    bounds = [0, *sorted(int(cut * global_batch) for cut in cuts), global_batch]
    parts = [order.batch_ids(consumed, global_batch=global_batch, start=a, stop=b) for a, b in pairwise(bounds)]
    np.testing.assert_array_equal(np.concatenate([part.sample_ids for part in parts]), whole.sample_ids)
    np.testing.assert_array_equal(np.concatenate([part.epochs for part in parts]), whole.epochs)


def test_the_global_batch_may_change_in_mid_run() -> None:
    order = make_order()

    def span(sizes: list[int]) -> list[tuple[int, int]]:
        consumed, seen = 960, []  # the last batches of epoch 0 and the first of epoch 1
        for size in sizes:
            batch = order.batch_ids(consumed, global_batch=size)
            seen += list(zip(batch.epochs.tolist(), batch.sample_ids.tolist(), strict=True))
            consumed += size
        return seen

    small, mixed = span([16] * 10), span([16] * 2 + [32] * 2 + [64])
    assert sorted(small) == sorted(mixed)
    assert len(set(small)) == 160
    assert {epoch for epoch, _ in small} == {0, 1}


def test_lanes_cross_the_epoch_together_and_epochs_differ() -> None:
    order = make_order()
    batch = order.batch_ids(1000 - 8, global_batch=16)
    assert batch.epochs.reshape(8, 2).tolist() == [[0, 1]] * 8
    assert sum(a == b for a, b in zip(epoch_ids(order, 0), epoch_ids(order, 1), strict=True)) < 20


def test_a_different_seed_or_parameter_is_a_different_order() -> None:
    base = epoch_ids(make_order(), 0)
    for change in ({"seed": 8}, {"lanes": 4}, {"block": 8}, {"window": 3}, {"num_samples": 1001}):
        assert epoch_ids(make_order(**change), 0) != base, change


def test_windows_follow_each_other_and_their_edges_are_staggered() -> None:
    order = make_order()
    edges = []
    for lane in range(order.lanes):
        spans = list(order.lane_spans(lane, first=0, stop=order.lane_length + 1))
        for span, following in pairwise(spans):
            assert order.window_after(span.window) == following.window
        assert spans[-1].window.epoch == 1
        edges.append(spans[0].stop)
    assert edges == [32 - lane * 4 for lane in range(8)]


def test_a_set_of_three_billion_samples_is_reached_anywhere_in_little_time_and_memory() -> None:
    order = Order(num_samples=3_000_000_000, seed=1, lanes=1024, block=256, window=4)
    tracemalloc.start()
    start = time.process_time()
    batches = [order.batch_ids(consumed // 1024 * 1024, global_batch=1024, stop=64).sample_ids for consumed in (0, 10**9, 10**12)]
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(np.concatenate(batches).tolist())) == 3 * 64
    assert peak < 4 << 20
    assert seconds < 5.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_samples": 0}, DataError, "no samples"),
        ({"lanes": 1001}, ConfigError, "data.lanes: 1001 lanes need at least as many samples, and the data set has 1000"),
    ],
)
def test_refuses_what_cannot_be_ordered(changes: dict[str, int], error: type[UserError], message: str) -> None:
    with pytest.raises(error, match=message):
        make_order(**changes)


@pytest.mark.parametrize("global_batch", [0, 4, 12])
def test_refuses_a_batch_that_the_lanes_do_not_divide(global_batch: int) -> None:
    with pytest.raises(ConfigError, match=f"train.global_batch: {global_batch} is not a multiple of data.lanes 8"):
        make_order().batch_ids(0, global_batch=global_batch)


def test_identity_names_all_that_decides_the_order() -> None:
    assert make_order().identity() == {"num_samples": 1000, "seed": 7, "lanes": 8, "block": 16, "window": 2, "repeats": 1}
