from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.packed import pack_images
from vitscale.data.dataset import Dataset
from vitscale.data.lanes import BatchSlice, LaneReader, rank_slice, worker_slice
from vitscale.data.order import Order, Span
from vitscale.data.reader import SampleReader
from vitscale.data.storage.storage import Storage
from vitscale.data.types import LostSample

GLOBAL_BATCH = 32
WHOLE = BatchSlice(start=0, stop=GLOBAL_BATCH)


@dataclass(frozen=True)
class CountingStorage:
    """Counts ranged reads and their bytes."""

    inner: Storage
    reads: list[int] = field(default_factory=list)

    @property
    def root(self) -> str:
        return self.inner.root

    def size(self, name: str) -> int:
        return self.inner.size(name)

    def read_file(self, name: str) -> bytes:
        return self.inner.read_file(name)

    def read_range(self, name: str, *, offset: int, length: int) -> bytes:
        self.reads.append(length)
        return self.inner.read_range(name, offset=offset, length=length)

    def io_counters(self) -> dict[str, int]:
        return self.inner.io_counters()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_images(tmp_path_factory.mktemp("packed"), num_samples=480, samples_per_shard=120)


ORDER = Order(num_samples=480, seed=3, lanes=8, block=12, window=2)
"""Lanes of 60 samples, windows of 24: each epoch's 40 blocks, two lane edges of three inside a block."""


def read_steps(dataset: Dataset, *, slices: list[BatchSlice], num_steps: int, consumed: int = 0) -> list[list[tuple[int, int]]]:
    """(epoch, sample id) of each global batch, put together from one reader per slice."""
    readers = [LaneReader(SampleReader(dataset), order=ORDER) for _ in slices]
    batches = []
    for step in range(num_steps):
        batch = []
        for reader, batch_slice in zip(readers, slices, strict=True):
            read = reader.read(consumed + step * GLOBAL_BATCH, global_batch=GLOBAL_BATCH, batch_slice=batch_slice)
            batch += [(sample.epoch, sample.sample_id) for sample in read]
        batches.append(batch)
    for reader in readers:
        reader.close()
    return batches


def all_slices(world_size: int, num_workers: int) -> list[BatchSlice]:
    ranks = [rank_slice(GLOBAL_BATCH, rank=rank, world_size=world_size) for rank in range(world_size)]
    per_lane = GLOBAL_BATCH // ORDER.lanes
    return [
        worker_slice(whole, samples_per_lane=per_lane, worker=worker, num_workers=num_workers)
        for whole in ranks
        for worker in range(num_workers)
    ]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (1, 3), (2, 2), (3, 1), (4, 2), (5, 3), (32, 2)])
@pytest.mark.parametrize("consumed", [0, 7 * GLOBAL_BATCH])
def test_readers_of_any_topology_read_the_order(dataset: Dataset, world_size: int, num_workers: int, consumed: int) -> None:
    read = read_steps(dataset, slices=all_slices(world_size, num_workers), num_steps=25, consumed=consumed)
    for step, batch in enumerate(read):
        expected = ORDER.batch_ids(consumed + step * GLOBAL_BATCH, global_batch=GLOBAL_BATCH)
        assert batch == list(zip(expected.epochs.tolist(), expected.sample_ids.tolist(), strict=True))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 2), (8, 1)])
def test_every_byte_is_read_once_while_readers_do_not_share_a_lane(dataset: Dataset, world_size: int, num_workers: int) -> None:
    reads = reads_of_an_epoch(dataset, all_slices(world_size, num_workers))
    assert sum(reads) == payload_bytes(dataset)
    # 40 blocks and one more read per edge inside a block: window edges (up to 3 per lane), shards, the rotation's wrap.
    assert 40 <= len(reads) <= 40 + 3 * ORDER.lanes + 3 + 1


def test_readers_that_share_a_lane_both_read_it(dataset: Dataset) -> None:
    reads = reads_of_an_epoch(dataset, all_slices(16, 1))
    assert sum(reads) == 2 * payload_bytes(dataset)


def payload_bytes(dataset: Dataset) -> int:
    tables = [dataset.read_index(shard) for shard in dataset.shards]
    return sum(int(table["length"].sum()) for table in tables)


def reads_of_an_epoch(dataset: Dataset, slices: list[BatchSlice]) -> list[int]:
    """The bytes of each read of the windows of epoch 0, without those read ahead for epoch 1."""
    storage = CountingStorage(dataset.storage)
    for batch_slice in slices:
        reader = LaneReader(SampleReader(replace(dataset, storage=storage)), order=ORDER)
        reader._request = only_first_epoch(reader._request)  # type: ignore[method-assign]
        for step in range(ORDER.num_samples // GLOBAL_BATCH):
            reader.read(step * GLOBAL_BATCH, global_batch=GLOBAL_BATCH, batch_slice=batch_slice)
        reader._thread.shutdown(wait=True)
    return storage.reads


def only_first_epoch(request: Callable[..., None]) -> Callable[..., None]:
    return lambda window: request(window) if window.epoch == 0 else None


def test_the_next_window_is_read_before_it_is_needed(dataset: Dataset) -> None:
    order = replace(ORDER, block=16)  # no window is shorter than what a batch takes of its lane
    reader = LaneReader(SampleReader(dataset), order=order)
    for step in range(30):
        reader.read(step * GLOBAL_BATCH, global_batch=GLOBAL_BATCH, batch_slice=WHOLE)
        under_way = {loading.window for queue in reader._lanes.values() for loading in queue}
        assert {span.window for span in spans_of(step + 1, order=order)} <= under_way
    reader.close()


def test_samples_are_let_go_as_they_are_handed_out(dataset: Dataset) -> None:
    reader = LaneReader(SampleReader(dataset), order=ORDER)
    for step in range(45):
        reader.read(step * GLOBAL_BATCH, global_batch=GLOBAL_BATCH, batch_slice=WHOLE)
        held = [len(loading.samples.result()) for queue in reader._lanes.values() for loading in queue]
        assert len(reader._lanes) == ORDER.lanes
        assert sum(held) <= 2 * ORDER.lanes * ORDER.window_length
    reader.close()


def test_damage_loses_one_sample_and_a_missing_shard_all_of_its_own(tmp_path: Path) -> None:
    dataset = pack_images(tmp_path, num_samples=480, samples_per_shard=120)
    shard = tmp_path / "train-00001.tar"
    raw = bytearray(shard.read_bytes())
    raw[int(dataset.read_index(dataset.shards[1])["offset"][60]) + 600] ^= 1  # a payload byte of sample 180
    shard.write_bytes(raw)
    (tmp_path / "train-00002.tar").unlink()
    reader = LaneReader(SampleReader(dataset), order=ORDER)
    read = [sample for step in range(15) for sample in reader.read(step * GLOBAL_BATCH, global_batch=GLOBAL_BATCH, batch_slice=WHOLE)]
    reader.close()
    lost = {sample.sample_id: sample for sample in read if isinstance(sample, LostSample)}
    assert sorted(lost) == [180, *range(240, 360)]
    assert "train-00001.tar: sample 180 " in lost[180].reason
    assert "damaged" in lost[180].reason
    assert "train-00002.tar: cannot be read" in lost[300].reason
    assert sorted(sample.sample_id for sample in read) == list(range(480)), "each in its place, readable or not"


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (2, 3), (16, 2)])
def test_repeats_are_views_of_their_own_for_any_topology(dataset: Dataset, world_size: int, num_workers: int) -> None:
    order = replace(ORDER, repeats=3)
    batches = []
    readers = [LaneReader(SampleReader(dataset), order=order) for _ in all_slices(world_size, num_workers)]
    for step in range(50):
        batch: list[tuple[int, int]] = []
        for reader, batch_slice in zip(readers, all_slices(world_size, num_workers), strict=True):
            read = reader.read(step * GLOBAL_BATCH, global_batch=GLOBAL_BATCH, batch_slice=batch_slice)
            batch += [(sample.sample_id, sample.view) for sample in read]
        batches.append(batch)
        assert [sample_id for sample_id, _ in batch] == order.batch_ids(step * GLOBAL_BATCH, global_batch=GLOBAL_BATCH).sample_ids.tolist()
    for reader in readers:
        reader.close()
    seen = sorted(pair for batch in batches[:45] for pair in batch)  # 45 * 32 = 480 * 3 views, the whole of epoch 0
    assert seen == [(sample_id, view) for sample_id in range(480) for view in range(3)]
    assert {view for batch in batches[45:] for _, view in batch} <= {3, 4, 5}


def spans_of(step: int, *, order: Order = ORDER) -> list[Span]:
    return list(order.batch_spans(step * GLOBAL_BATCH, global_batch=GLOBAL_BATCH, start=0, stop=GLOBAL_BATCH))


@given(
    lanes=st.integers(1, 12),
    per_lane=st.integers(1, 6),
    world_size=st.integers(1, 9),
    num_workers=st.integers(1, 5),
)
def test_slices_are_contiguous_and_even(lanes: int, per_lane: int, world_size: int, num_workers: int) -> None:
    global_batch = lanes * per_lane
    position = 0
    for rank in range(world_size):
        whole = rank_slice(global_batch, rank=rank, world_size=world_size)
        assert whole.stop - whole.start in (global_batch // world_size, -(-global_batch // world_size))
        parts = [worker_slice(whole, samples_per_lane=per_lane, worker=worker, num_workers=num_workers) for worker in range(num_workers)]
        lengths = [part.stop - part.start for part in parts]
        assert max(lengths) - min(lengths) <= per_lane
        for part in parts:
            assert part.start == position
            position = part.stop
    assert position == global_batch


def test_workers_are_cut_between_lanes() -> None:
    parts = [worker_slice(BatchSlice(start=32, stop=64), samples_per_lane=4, worker=worker, num_workers=3) for worker in range(3)]
    assert [(part.start, part.stop) for part in parts] == [(32, 40), (40, 52), (52, 64)]
