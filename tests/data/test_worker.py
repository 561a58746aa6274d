import errno
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.packed import pack, pack_images
from tests.data.topologies import as_workers, make_batches
from vitscale.config import DataError
from vitscale.data.dataset import Dataset
from vitscale.data.images.transforms import AugmentConfig, EvalTransform, TrainTransform
from vitscale.data.lanes import BatchSlice, rank_slice
from vitscale.data.order import Order
from vitscale.data.reader import SampleReader
from vitscale.data.storage.retry import RetryPolicy
from vitscale.data.storage.storage import LocalStorage
from vitscale.data.types import Batch, RawSample, SampleFields, StagedTransform
from vitscale.data.worker import EvalParts, TrainParts, make_batch
from vitscale.dist.seeding import CounterRng

NUM_SAMPLES = 103
ORDER = Order(num_samples=NUM_SAMPLES, seed=3, lanes=8, block=4, window=2)
TRAIN = TrainTransform(image_size=8, num_channels=1, augment=AugmentConfig(crop="pad", padding=2, flip=True))
EVALUATE = EvalTransform(image_size=8, num_channels=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_images(tmp_path_factory.mktemp("packed"), num_samples=NUM_SAMPLES, samples_per_shard=40)


def train_parts(dataset: Dataset, whole: BatchSlice, *, global_batch: int, start_samples: int) -> TrainParts:
    return TrainParts(
        open_reader=partial(SampleReader, dataset),
        order=ORDER,
        transform=StagedTransform(transforms=(TRAIN,)),
        seed=9,
        global_batch=global_batch,
        start_samples=start_samples,
        rank_slice=whole,
    )


def train(
    dataset: Dataset, *, world_size: int = 1, num_workers: int = 1, global_batch: int = 16, start_samples: int = 0, num_steps: int = 30
) -> list[Batch]:
    """Global batches put together from all ranks and workers."""

    def open_parts(whole: BatchSlice) -> TrainParts:
        return train_parts(dataset, whole, global_batch=global_batch, start_samples=start_samples)

    return make_batches(open_parts, global_batch=global_batch, world_size=world_size, num_workers=num_workers, num_steps=num_steps).batches


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 1), (2, 2), (3, 3), (4, 1), (4, 2), (16, 2)])
def test_thirty_augmented_batches_are_the_same_bytes_for_every_topology(dataset: Dataset, world_size: int, num_workers: int) -> None:
    reference = train(dataset)
    assert {int(epoch) for batch in reference for epoch in batch["epoch"]} == {0, 1, 2, 3, 4}
    assert_equal(train(dataset, world_size=world_size, num_workers=num_workers), reference)


def test_passing_errors_of_the_machine_change_no_batch(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = train(dataset)
    storage = LocalStorage(Path(dataset.storage.root), policy=RetryPolicy(first_pause_seconds=1e-5, longest_pause_seconds=1e-4))

    def failing(real: Callable[..., Any], *, every: int, number: int) -> Callable[..., Any]:
        calls = itertools.count(1)

        def function(*arguments: Any) -> Any:
            if next(calls) % every == 0:
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        return function

    monkeypatch.setattr(os, "open", failing(os.open, every=2, number=errno.EMFILE))
    monkeypatch.setattr(os, "pread", failing(os.pread, every=5, number=errno.ENOMEM))
    made = train(replace(dataset, storage=storage, index_storage=storage), world_size=2, num_workers=2)
    monkeypatch.undo()
    assert_equal(made, reference)
    assert storage.io_counters()["retries"] > 5


@pytest.mark.parametrize("done", [1, 6, 17])
def test_resumes_at_any_step_on_another_topology(dataset: Dataset, done: int) -> None:
    resumed = train(dataset, world_size=2, num_workers=2, start_samples=done * 16, num_steps=20 - done)
    assert_equal(resumed, train(dataset, num_steps=20)[done:])


def test_the_global_batch_may_double_in_mid_run(dataset: Dataset) -> None:
    def content(batches: list[Batch]) -> list[tuple[int, int, bytes]]:
        rows = []
        for batch in batches:
            ids = zip(batch["epoch"].tolist(), batch["sample_id"].tolist(), batch["image"], strict=True)
            rows += [(epoch, sample_id, image.numpy().tobytes()) for epoch, sample_id, image in ids]
        return sorted(rows)

    undisturbed = train(dataset, num_steps=12)
    doubled = train(dataset, num_steps=4) + train(dataset, world_size=2, global_batch=32, start_samples=64, num_steps=4)
    assert content(doubled) == content(undisturbed)


def test_what_a_batch_holds(dataset: Dataset) -> None:
    batch = train(dataset, num_steps=1)[0]
    assert {key: (values.dtype, tuple(values.shape)) for key, values in batch.items()} == {
        "image": (torch.uint8, (16, 1, 8, 8)),
        "label": (torch.int64, (16,)),
        "sample_id": (torch.int64, (16,)),
        "epoch": (torch.int64, (16,)),
    }
    assert torch.equal(batch["label"], batch["sample_id"] % 10)


def test_the_same_sample_looks_different_in_another_epoch(dataset: Dataset) -> None:
    batches = train(dataset, num_steps=26)
    looks = {
        (int(epoch), int(sample_id)): image.numpy().tobytes()
        for batch in batches
        for epoch, sample_id, image in zip(batch["epoch"], batch["sample_id"], batch["image"], strict=True)
    }
    both = [sample_id for epoch, sample_id in looks if epoch == 0 and (1, sample_id) in looks]
    assert sum(looks[0, sample_id] == looks[1, sample_id] for sample_id in both) < len(both) / 5


def test_stacks_arrays_integers_and_floats() -> None:
    def transform(sample: RawSample, rng: CounterRng) -> SampleFields:
        return {"mix": np.full(4, sample.sample_id, np.float32), "lam": rng.uniform(), "count": sample.sample_id}

    samples = [RawSample(sample_id=i, epoch=2, view=2, key="", shard="", members={}) for i in (5, 6)]
    batch = make_batch(samples, transform=transform, seed=1)
    assert {key: values.dtype for key, values in batch.items()} == {
        "mix": torch.float32,
        "lam": torch.float32,
        "count": torch.int64,
        "sample_id": torch.int64,
        "epoch": torch.int64,
    }
    assert batch["mix"].tolist() == [[5.0] * 4, [6.0] * 4]
    assert batch["lam"][0] != batch["lam"][1]
    assert batch["epoch"].tolist() == [2, 2]


def eval_parts(dataset: Dataset, *, first: int, stop: int, num_batches: int) -> EvalParts:
    return EvalParts(dataset=dataset, transform=EVALUATE, first=first, stop=stop, batch_size=8, num_batches=num_batches)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_evaluation_workers_make_whole_batches_in_turn(dataset: Dataset, num_workers: int) -> None:
    streams = as_workers(eval_parts(dataset, first=20, stop=50, num_batches=5), num_workers)
    made = [list(stream) for stream in streams]
    batches = [made[i % num_workers][i // num_workers].batch for i in range(5)]
    assert [batch["sample_id"].tolist() for batch in batches if batch is not None] == [
        [20, 21, 22, 23, 24, 25, 26, 27],
        [28, 29, 30, 31, 32, 33, 34, 35],
        [36, 37, 38, 39, 40, 41, 42, 43],
        [44, 45, 46, 47, 48, 49, -1, -1],
        [-1] * 8,
    ]


def test_padding_rows_are_marked_and_black(dataset: Dataset) -> None:
    *_, short, empty = (part.batch for part in eval_parts(dataset, first=100, stop=103, num_batches=2))
    assert short is not None
    assert empty is not None
    assert short["label"].tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert short["image"][:3].any()
    assert not short["image"][3:].any()
    assert {key: (values.shape, values.dtype) for key, values in empty.items()} == {
        key: (values.shape, values.dtype) for key, values in short.items()
    }
    assert not empty["image"].any()


def test_where_nothing_can_be_decoded_the_parts_end_with_the_error_as_a_value(tmp_path: Path) -> None:
    samples = [{"cls": b"0", "png": b"not a picture"} for _ in range(16)]
    dataset = pack(tmp_path, samples, samples_per_shard=16)
    order = Order(num_samples=16, seed=0, lanes=8, block=4, window=2)
    parts = TrainParts(
        open_reader=partial(SampleReader, dataset),
        order=order,
        transform=StagedTransform(transforms=(TRAIN,)),
        seed=0,
        global_batch=8,
        start_samples=0,
        rank_slice=rank_slice(8, rank=0, world_size=1),
    )
    for iterable in (parts, eval_parts(dataset, first=0, stop=8, num_batches=1)):
        items = list(islice(iterable, 5))
        assert len(items) == 1
        assert isinstance(items[0].error, DataError)
        assert "cannot be decoded" in str(items[0].error)
