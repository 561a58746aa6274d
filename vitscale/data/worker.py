"""What runs inside a loader process: raw samples through the transform into stacked tensors, as parts of batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vitscale.config import UserError
from vitscale.data.dataset import Dataset
from vitscale.data.lanes import BatchSlice, LaneReader, worker_slice
from vitscale.data.order import Order
from vitscale.data.reader import SampleReader
from vitscale.data.types import Batch, RawSample, SampleFields, SampleTransform
from vitscale.dist.seeding import CounterRng

Part = Batch | UserError | None
"""A batch or a slice of one; None where the slice is empty. An error travels as a value, or torch would wrap it in a trace."""

_PADDING = {"sample_id": -1, "label": -1}


@dataclass(frozen=True, kw_only=True)
class TrainParts(IterableDataset[Part]):
    """One rank's slice of successive global batches, for ever; each worker iterates over its part of that slice."""

    dataset: Dataset
    order: Order
    transform: SampleTransform
    seed: int
    global_batch: int
    start_samples: int
    rank_slice: BatchSlice

    def __iter__(self) -> Iterator[Part]:
        worker, num_workers = _worker()
        part_slice = worker_slice(
            self.rank_slice, samples_per_lane=self.global_batch // self.order.lanes, worker=worker, num_workers=num_workers
        )
        reader = LaneReader(self.dataset, order=self.order)
        consumed = self.start_samples
        try:
            while True:
                samples = reader.read(consumed, global_batch=self.global_batch, batch_slice=part_slice)
                yield make_batch(samples, transform=self.transform, seed=self.seed) if samples else None
                consumed += self.global_batch
        except UserError as error:
            yield error
        finally:
            reader.close()


@dataclass(frozen=True, kw_only=True)
class EvalParts(IterableDataset[Part]):
    """The samples [first, stop) once, in `num_batches` batches padded to `batch_size`; workers make whole batches in turn."""

    dataset: Dataset
    transform: SampleTransform
    first: int
    stop: int
    batch_size: int
    num_batches: int

    def __iter__(self) -> Iterator[Part]:
        worker, num_workers = _worker()
        reader = SampleReader(self.dataset)
        try:
            for index in range(worker, self.num_batches, num_workers):
                yield self._batch(reader, first=min(self.first + index * self.batch_size, self.stop))
        except UserError as error:
            yield error

    def _batch(self, reader: SampleReader, *, first: int) -> Batch:
        samples = reader.read(first, min(first + self.batch_size, self.stop))
        # A rank may have nothing left while others have: any sample tells the shapes of the rows that are all padding.
        batch = make_batch(samples or reader.read(0, 1), transform=self.transform, seed=0)
        return {key: _pad(values[: len(samples)], key=key, size=self.batch_size) for key, values in batch.items()}


def make_batch(samples: Sequence[RawSample], *, transform: SampleTransform, seed: int) -> Batch:
    """Transform and stack samples, and add `sample_id` and `epoch` (int64). Raises `DataError` for what cannot be decoded."""
    fields = [transform(sample, CounterRng(seed, sample.epoch, sample.sample_id, "transform")) for sample in samples]
    batch = {key: _stack(fields, key=key) for key in fields[0]}
    batch["sample_id"] = torch.tensor([sample.sample_id for sample in samples], dtype=torch.int64)
    batch["epoch"] = torch.tensor([sample.epoch for sample in samples], dtype=torch.int64)
    return batch


def _worker() -> tuple[int, int]:
    """Number of this worker and how many there are; the whole when the loader runs in the training process."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _stack(fields: Sequence[SampleFields], *, key: str) -> Tensor:
    values = [field[key] for field in fields]
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values))
    return torch.tensor(values, dtype=torch.int64 if isinstance(values[0], int) else torch.float32)


def _pad(values: Tensor, *, key: str, size: int) -> Tensor:
    padding = values.new_full((size - len(values), *values.shape[1:]), _PADDING.get(key, 0))
    return torch.cat([values, padding])
