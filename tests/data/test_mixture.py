import math
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.packed import pack_images
from vitscale.config import ConfigError
from vitscale.data.mixture import MixedSet, MixtureOrder, MixtureReader
from vitscale.data.order import Order
from vitscale.data.reader import SampleReader
from vitscale.data.types import LostSample, RawSample
from vitscale.dist.seeding import counter_key, mix

GOLDEN = [(1, 11111, 799), (1, 11111, 797), (0, 8045, 300), (0, 8045, 188), (0, 8045, 266), (0, 8045, 116), (0, 8045, 600), (0, 8045, 633)]


def make_mixture(
    *, sizes: tuple[int, ...] = (700, 150, 60), slots: tuple[int, ...] = (70, 20, 10), lanes: int = 8, repeats: int = 1, seed: int = 5
) -> MixtureOrder:
    orders = tuple(Order(num_samples=size, seed=seed + i, lanes=lanes, block=4, window=2, repeats=repeats) for i, size in enumerate(sizes))
    return MixtureOrder(orders=orders, slots=slots, seed=seed)


@st.composite
def mixtures(draw: st.DrawFn) -> MixtureOrder:
    lanes = draw(st.integers(1, 12))
    num_sets = draw(st.integers(1, 4))
    return make_mixture(
        sizes=tuple(draw(st.lists(st.integers(lanes, 80), min_size=num_sets, max_size=num_sets))),
        slots=tuple(draw(st.lists(st.integers(1, 7), min_size=num_sets, max_size=num_sets))),
        lanes=lanes,
        repeats=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**40)),
    )


Drawn = tuple[int, int, int]  # set, epoch in it, sample id


def drawn(order: MixtureOrder, consumed: int, *, global_batch: int, start: int = 0, stop: int | None = None) -> list[Drawn]:
    spans = list(order.batch_spans(consumed, global_batch=global_batch, start=start, stop=global_batch if stop is None else stop))
    sources = [span.window.source for span in spans for _ in range(span.start, span.stop)]
    ids = order.batch_ids(consumed, global_batch=global_batch, start=start, stop=stop)
    return list(zip(sources, ids.epochs.tolist(), ids.sample_ids.tolist(), strict=True))


def rows_of_lanes(order: MixtureOrder, *, num_rows: int) -> list[list[Drawn]]:
    """The first rows of every lane."""
    batch = drawn(order, 0, global_batch=num_rows * order.lanes)
    return [batch[lane * num_rows : (lane + 1) * num_rows] for lane in range(order.lanes)]


def reference_rows(order: MixtureOrder, lane: int, num_rows: int) -> list[tuple[int, int]]:
    """The set of each row and how many rows of the lane it had before: the definition with plain integers and loops."""
    cycle, lanes = sum(order.slots), order.lanes
    owners = [number for number, count in enumerate(order.slots) for _ in range(count)]
    counts, rows = Counter[int](), []
    for row in range(num_rows):
        number = row * lanes + lane
        slot = (number + number // math.lcm(lanes, cycle) % math.gcd(lanes, cycle)) % cycle
        key = counter_key(order.seed, "slots", row // cycle)
        place = sorted(range(cycle), key=lambda i, key=key: mix(i ^ key))[slot]
        rows.append((owners[place], counts[owners[place]]))
        counts[owners[place]] += 1
    return rows


@given(order=mixtures())
@settings(max_examples=15, deadline=None)
def test_equals_the_definition(order: MixtureOrder) -> None:
    num_rows = 2 * order.cycle + 3
    for lane, rows in enumerate(rows_of_lanes(order, num_rows=num_rows)):
        views = {number: _lane_ids(component, lane, num_rows) for number, component in enumerate(order.orders)}
        expected = []
        for number, position in reference_rows(order, lane, num_rows):
            epoch, sample_id = views[number][position]
            expected.append((number, epoch, sample_id + order.starts[number]))
        assert rows == expected


def _lane_ids(order: Order, lane: int, num_rows: int) -> list[tuple[int, int]]:
    """(epoch, sample id) of the first rows of a lane of one set by itself."""
    batch = order.batch_ids(0, global_batch=num_rows * order.lanes, start=lane * num_rows, stop=(lane + 1) * num_rows)
    return list(zip(batch.epochs.tolist(), batch.sample_ids.tolist(), strict=True))


@given(order=mixtures())
@settings(max_examples=30, deadline=None)
def test_shares_are_exact_in_every_cycle_of_the_whole_and_of_each_lane(order: MixtureOrder) -> None:
    cycle = order.cycle
    lanes = [[number for number, _, _ in rows] for rows in rows_of_lanes(order, num_rows=3 * cycle)]
    exact = dict(enumerate(order.slots))
    in_sequence = [number for row in zip(*lanes, strict=True) for number in row]
    for first in range(0, len(in_sequence), cycle):
        assert Counter(in_sequence[first : first + cycle]) == exact
    for lane in lanes:
        for first in range(0, 3 * cycle, cycle):
            assert Counter(lane[first : first + cycle]) == exact


@pytest.mark.parametrize(("lanes", "global_batch"), [(8, 1000), (8, 200), (8, 64), (250, 1000), (100, 500), (7, 140)])
def test_three_sets_have_exact_shares_of_every_thousand_samples(lanes: int, global_batch: int) -> None:
    order = make_mixture(sizes=(3000, 900, 400), lanes=lanes)
    num_samples = math.lcm(global_batch, 1000)
    num_samples *= max(1, 3000 // num_samples)
    batches = [drawn(order, consumed, global_batch=global_batch) for consumed in range(0, num_samples, global_batch)]
    if 1000 % global_batch == 0:
        per_thousand = 1000 // global_batch
        for first in range(0, len(batches), per_thousand):
            counts = Counter(number for batch in batches[first : first + per_thousand] for number, _, _ in batch)
            assert counts == {0: 700, 1: 200, 2: 100}
    counts = Counter(number for batch in batches for number, _, _ in batch)
    assert counts == {0: num_samples * 7 // 10, 1: num_samples // 5, 2: num_samples // 10}


@given(order=mixtures())
@settings(max_examples=20, deadline=None)
def test_an_epoch_of_a_set_shows_each_sample_once_per_repeat(order: MixtureOrder) -> None:
    seen = Counter(row for rows in rows_of_lanes(order, num_rows=4 * order.cycle) for row in rows)
    assert max(seen.values()) <= order.repeats


def test_all_lanes_of_a_set_cross_its_epochs_within_a_cycle() -> None:
    order = make_mixture()
    lanes = rows_of_lanes(order, num_rows=200)
    for number in range(3):
        crossings = [next(row for row, drawn in enumerate(rows) if drawn[:2] == (number, 1)) for rows in lanes]
        assert max(crossings) - min(crossings) < order.cycle


def _rows(order: MixtureOrder, lane: int, num_rows: int) -> list[Drawn]:
    return drawn(order, 0, global_batch=num_rows * order.lanes, start=lane * num_rows, stop=(lane + 1) * num_rows)


@given(order=mixtures(), batch=st.integers(0, 300), per_lane=st.integers(1, 9), cuts=st.lists(st.floats(0, 1), max_size=6))
@settings(max_examples=25, deadline=None)
def test_slices_of_any_topology_make_the_same_batch(order: MixtureOrder, batch: int, per_lane: int, cuts: list[float]) -> None:
    global_batch = per_lane * order.lanes
    consumed = batch * global_batch
    bounds = [0, *sorted(int(cut * global_batch) for cut in cuts), global_batch]
    parts = [row for a, b in pairwise(bounds) for row in drawn(order, consumed, global_batch=global_batch, start=a, stop=b)]
    assert parts == drawn(order, consumed, global_batch=global_batch)


@given(order=mixtures(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_the_global_batch_may_change_in_mid_run(order: MixtureOrder, sizes: list[int]) -> None:
    consumed, seen = 0, list[Drawn]()
    for size in sizes:
        seen += drawn(order, consumed, global_batch=size * order.lanes)
        consumed += size * order.lanes
    assert sorted(seen) == sorted(drawn(order, 0, global_batch=consumed))


def test_neighbours_in_a_batch_come_from_the_same_set_as_often_as_in_a_random_draw() -> None:
    # Mixup pairs neighbours: with a short regular pattern two sets at one half would always be mixed with each other.
    order = make_mixture(sizes=(2000, 2000), slots=(50, 50))
    rows = [number for lane in rows_of_lanes(order, num_rows=400) for number, _, _ in lane]
    same = np.mean([a == b for a, b in zip(rows[::2], rows[1::2], strict=True)])
    assert 0.44 < same < 0.55


def test_a_set_added_at_the_end_leaves_the_sequences_of_the_others_alone() -> None:
    two, three = make_mixture(sizes=(700, 150), slots=(70, 30)), make_mixture()
    for number in (0, 1):
        ids = [[row for row in _rows(order, 3, 300) if row[0] == number] for order in (two, three)]
        length = min(map(len, ids))
        assert length > 50
        assert ids[0][:length] == ids[1][:length]


def test_windows_follow_each_other_within_a_set() -> None:
    order = make_mixture(repeats=2)
    spans = list(order.batch_spans(0, global_batch=8 * 900, start=900, stop=1800))  # the rows of lane 1
    for number in range(3):
        windows = [span.window for span in spans if span.window.source == number]
        changes = [(a, b) for a, b in pairwise(windows) if a != b]
        assert len(changes) > 5
        assert all(order.window_after(a) == b for a, b in changes)
        ids = order.window_ids(windows[0])
        assert order.starts[number] <= ids.min() <= ids.max() < order.starts[number] + order.orders[number].num_samples
    assert order.window_at(0, global_batch=7200, position=900) == spans[0].window


def test_golden_values_never_change() -> None:
    # A change here changes every run that was ever started: do not mend the numbers, mend the code.
    order = make_mixture()
    assert drawn(order, 8_000_000, global_batch=8) == GOLDEN


def test_a_position_far_on_costs_no_more_than_the_first() -> None:
    orders = tuple(Order(num_samples=size, seed=size, lanes=1024, block=256, window=4) for size in (3_000_000_000, 20_000_000))
    order = MixtureOrder(orders=orders, slots=(900, 100), seed=1)
    start = time.process_time()
    for consumed in (0, 10**12 // 1024 * 1024):
        assert len(drawn(order, consumed, global_batch=4096, start=96, stop=128)) == 32
    assert time.process_time() - start < 2.0


def test_refuses_a_batch_that_the_lanes_do_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"train\.global_batch: 12 is not a multiple of data\.lanes 8"):
        make_mixture().samples_per_lane(12)


def test_reads_several_sets_as_one(tmp_path: Path) -> None:
    datasets = []
    for number, size in enumerate((30, 20)):
        (tmp_path / str(number)).mkdir()
        datasets.append(pack_images(tmp_path / str(number), num_samples=size, samples_per_shard=10))
    (tmp_path / "1" / "train-00001.tar").unlink()
    sets = [MixedSet(name=name, reader=SampleReader(d), num_samples=d.num_samples) for name, d in zip("ab", datasets, strict=True)]
    reader = MixtureReader(sets)
    samples = list(reader.scan(25, 50, epoch=3))
    assert [sample.sample_id for sample in samples] == list(range(25, 50))
    assert {sample.epoch for sample in samples} == {3}
    assert [sample.sample_id for sample in samples if isinstance(sample, LostSample)] == list(range(40, 50))
    assert {sample.shard for sample in samples if isinstance(sample, LostSample)} == {"b/train-00001.tar"}
    for sample in samples:
        if isinstance(sample, RawSample):
            local = sample.sample_id - (30 if sample.sample_id >= 30 else 0)
            assert bytes(sample.members["cls"]) == str(local % 10).encode()
    assert next(reader.scan(0, 5, epoch=0)).shard == "a/train-00000.tar"
    assert reader.io_counters()["reads"] == sum(d.storage.io_counters()["reads"] for d in datasets) > 2
