from pathlib import Path

import pytest
import torch

from tests.data.packed import pack_images
from vitscale.config import ConfigError
from vitscale.data.dataset import Dataset
from vitscale.data.demand import Demand
from vitscale.data.images.transforms import AugmentConfig, EvalTransform, TrainTransform
from vitscale.data.lanes import rank_slice
from vitscale.data.loader import EvalLoader, Share, TrainLoader, eval_loader, train_loader
from vitscale.data.order import Order
from vitscale.data.source import ShardData
from vitscale.data.types import Batch, StagedTransform

ORDER = Order(num_samples=103, seed=3, lanes=8, block=4, window=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_images(tmp_path_factory.mktemp("packed"), num_samples=103, samples_per_shard=40)


def share(*, rank: int = 0, world_size: int = 1, num_workers: int = 0) -> Share:
    return Share(rank=rank, world_size=world_size, num_workers=num_workers, prefetch=2)


def train(dataset: Dataset, *, share: Share, global_batch: int = 16, keys: frozenset[str] = frozenset({"image"})) -> TrainLoader:
    demand = Demand(
        transform=StagedTransform(
            transforms=(TrainTransform(image_size=8, num_channels=1, augment=AugmentConfig(crop="pad", padding=2, flip=True)),)
        ),
        seed=9,
        global_batch=global_batch,
        start_samples=0,
        rank_slice=rank_slice(global_batch, rank=share.rank, world_size=share.world_size),
        replaced_before={},
    )
    return train_loader(ShardData(dataset=dataset, order=ORDER).parts(demand), share=share, batch_keys=keys)


def evaluate(dataset: Dataset, *, share: Share, batch_size: int = 16) -> EvalLoader:
    return eval_loader(dataset=dataset, transform=EvalTransform(image_size=8, num_channels=1), share=share, batch_size=batch_size)


def global_batches(loaders: list[TrainLoader], *, num_steps: int) -> list[Batch]:
    batches = []
    for _ in range(num_steps):
        parts = [next(loader) for loader in loaders]
        batches.append({key: torch.cat([part[key] for part in parts]) for key in parts[0]})
    for loader in loaders:
        loader.close()
    return batches


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (4, 0), (1, 2), (2, 1)])
def test_thirty_global_batches_are_the_same_bytes_for_every_topology(dataset: Dataset, world_size: int, num_workers: int) -> None:
    reference = global_batches([train(dataset, share=share())], num_steps=30)
    shares = [share(rank=rank, world_size=world_size, num_workers=num_workers) for rank in range(world_size)]
    batches = global_batches([train(dataset, share=share) for share in shares], num_steps=30)
    for batch, expected in zip(batches, reference, strict=True):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in batch)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_rank_gets_its_contiguous_slice_of_the_order(dataset: Dataset, world_size: int) -> None:
    expected = ORDER.batch_ids(0, global_batch=16).sample_ids
    for rank in range(world_size):
        loader = train(dataset, share=share(rank=rank, world_size=world_size))
        size = 16 // world_size
        assert next(loader)["sample_id"].tolist() == expected[rank * size : (rank + 1) * size].tolist()
        loader.close()


def test_more_workers_than_samples_leave_some_without_work(dataset: Dataset) -> None:
    expected = ORDER.batch_ids(0, global_batch=8, start=4, stop=6).sample_ids.tolist()
    loader = train(dataset, share=share(rank=2, world_size=4, num_workers=3), global_batch=8)
    assert next(loader)["sample_id"].tolist() == expected
    loader.close()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [16, 50])
def test_evaluation_sees_every_sample_once_in_equally_many_equal_batches(dataset: Dataset, world_size: int, batch_size: int) -> None:
    ranks = [list(evaluate(dataset, share=share(rank=rank, world_size=world_size), batch_size=batch_size)) for rank in range(world_size)]
    check_evaluation(ranks, batch_size=batch_size)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 1)])
def test_evaluation_by_worker_processes(dataset: Dataset, world_size: int, num_workers: int) -> None:
    shares = [share(rank=rank, world_size=world_size, num_workers=num_workers) for rank in range(world_size)]
    check_evaluation([list(evaluate(dataset, share=share)) for share in shares], batch_size=16)


def check_evaluation(ranks: list[list[Batch]], *, batch_size: int) -> None:
    assert len({len(batches) for batches in ranks}) == 1
    assert {tuple(batch["image"].shape) for batches in ranks for batch in batches} == {(batch_size, 1, 8, 8)}
    rows = [
        (sample_id, label)
        for batches in ranks
        for batch in batches
        for sample_id, label in zip(batch["sample_id"].tolist(), batch["label"].tolist(), strict=True)
    ]
    assert [row for row in rows if row[0] >= 0] == [(sample_id, sample_id % 10) for sample_id in range(103)]
    assert {row for row in rows if row[0] < 0} <= {(-1, -1)}


def test_fewer_samples_than_ranks(tmp_path: Path) -> None:
    dataset = pack_images(tmp_path, num_samples=3)
    ranks = [list(evaluate(dataset, share=share(rank=rank, world_size=5), batch_size=2)) for rank in range(5)]
    assert [len(batches) for batches in ranks] == [1] * 5
    assert sorted(i for batches in ranks for i in batches[0]["sample_id"].tolist() if i >= 0) == [0, 1, 2]
    assert {tuple(batches[0]["image"].shape) for batches in ranks} == {(2, 1, 8, 8)}


def test_the_global_generator_of_torch_is_left_alone(dataset: Dataset) -> None:
    before = torch.get_rng_state()
    loader = train(dataset, share=share(num_workers=1))
    next(loader)
    loader.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_that_the_lanes_do_not_divide_is_refused_at_once(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"train\.global_batch: 12 is not a multiple of data\.lanes 8"):
        train(dataset, share=share(num_workers=1), global_batch=12)


def test_an_objective_that_reads_what_its_transform_does_not_make_is_our_mistake(dataset: Dataset) -> None:
    loader = train(dataset, share=share(), keys=frozenset({"image", "mask"}))
    with pytest.raises(AssertionError, match=r"\['mask'\]"):
        next(loader)
    loader.close()


def test_a_closed_loader_has_no_more_batches(dataset: Dataset) -> None:
    for num_workers in (0, 1):
        loader = train(dataset, share=share(num_workers=num_workers))
        next(loader)
        loader.close()
        loader.close()
        assert next(loader, None) is None


@pytest.mark.gpu
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pinned_batches_are_the_same(dataset: Dataset, num_workers: int) -> None:
    stream = train(dataset, share=share(num_workers=num_workers))
    stream._pin_memory = True
    batch, expected = next(stream), next(train(dataset, share=share()))
    stream.close()
    assert all(values.is_pinned() for values in batch.values())
    assert all(torch.equal(batch[key], expected[key]) for key in batch)
