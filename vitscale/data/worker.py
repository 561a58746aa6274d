"""What runs inside a loader process: raw samples through the transform into stacked tensors, as parts of batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vitscale.config import UserError
from vitscale.data.dataset import Dataset
from vitscale.data.lanes import BatchSlice, LaneReader, SampleOrder, SampleScanner, worker_slice
from vitscale.data.order import Window
from vitscale.data.reader import SampleReader
from vitscale.data.replacement import Replacements, Row, RowMaker
from vitscale.data.storage.io_counters import IoMeter
from vitscale.data.types import Batch, LostSample, RawSample, SampleFields, SampleTransform, StagedTransform
from vitscale.dist.seeding import CounterRng
from vitscale.nn.input_form import PATCH_GRID_KEY

_PADDING = {"sample_id": -1, "label": -1, PATCH_GRID_KEY: 1}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a worker hands over: a batch or a slice of one (None where the slice is empty), what it lost, what reading cost
    since the part before. An error travels as a value, or torch would wrap it in a trace."""

    batch: Batch | None = None
    lost: tuple[LostSample, ...] = ()
    io: Mapping[str, int] = field(default_factory=dict)
    error: UserError | None = None


@dataclass(frozen=True, kw_only=True)
class TrainParts(IterableDataset[Part]):
    """One rank's slice of successive global batches, for ever; each worker iterates over its part of that slice.

    `open_reader` makes a reader of the samples that `order` numbers; `replaced_before` names the samples that were.
    """

    open_reader: Callable[[], SampleScanner]
    order: SampleOrder
    transform: StagedTransform
    seed: int
    global_batch: int
    start_samples: int
    rank_slice: BatchSlice
    replaced_before: Replacements = field(default_factory=dict)

    def __iter__(self) -> Iterator[Part]:
        worker, num_workers = current_worker()
        part_slice = worker_slice(
            self.rank_slice, samples_per_lane=self.order.samples_per_lane(self.global_batch), worker=worker, num_workers=num_workers
        )
        scanner = self.open_reader()
        reader = LaneReader(scanner, order=self.order)
        maker = RowMaker(self.open_reader(), order=self.order, seed=self.seed, replaced_before=self.replaced_before)
        meter = IoMeter(scanner.io_counters)
        consumed = self.start_samples
        try:
            while True:
                samples = reader.read(consumed, global_batch=self.global_batch, batch_slice=part_slice)
                rows = self._rows(samples, consumed=consumed, first=part_slice.start, maker=maker)
                lost = tuple(row.lost for row in rows if row.lost is not None)
                yield Part(batch=stack_rows(rows) if rows else None, lost=lost, io=meter.since_last())
                consumed += self.global_batch
        except UserError as error:
            yield Part(error=error)
        finally:
            reader.close()

    def _rows(self, samples: Sequence[RawSample | LostSample], *, consumed: int, first: int, maker: RowMaker) -> list[Row]:
        transform = self.transform.at(consumed)

        def window(position: int) -> Window:
            return self.order.window_at(consumed, global_batch=self.global_batch, position=position)

        return [maker.row(sample, transform=transform, window=partial(window, first + i)) for i, sample in enumerate(samples)]


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
        worker, num_workers = current_worker()
        reader = SampleReader(self.dataset)
        try:
            for index in range(worker, self.num_batches, num_workers):
                batch = self._batch(reader, first=min(self.first + index * self.batch_size, self.stop))
                yield Part(batch=batch)
        except UserError as error:
            yield Part(error=error)

    def _batch(self, reader: SampleReader, *, first: int) -> Batch:
        samples = reader.read(first, min(first + self.batch_size, self.stop))
        # A rank may have nothing left while others have: any sample tells the shapes of the rows that are all padding.
        batch = make_batch(samples or reader.read(0, 1), transform=self.transform, seed=0)
        return {key: _pad(values[: len(samples)], key=key, size=self.batch_size) for key, values in batch.items()}


def current_worker() -> tuple[int, int]:
    """Number of this loader process and how many the rank has; 0 of 1 where the training process itself loads."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def make_batch(samples: Sequence[RawSample], *, transform: SampleTransform, seed: int) -> Batch:
    """Transform and stack samples. Raises `DataError` for what cannot be decoded."""
    return stack_rows(
        [Row(sample=sample, fields=transform(sample, CounterRng(seed, sample.view, sample.sample_id, "transform"))) for sample in samples]
    )


def stack_rows(rows: Sequence[Row]) -> Batch:
    """The rows' fields stacked, with `sample_id` and `epoch` (int64)."""
    batch = {key: _stack([row.fields for row in rows], key=key) for key in rows[0].fields}
    batch["sample_id"] = torch.tensor([row.sample.sample_id for row in rows], dtype=torch.int64)
    batch["epoch"] = torch.tensor([row.sample.epoch for row in rows], dtype=torch.int64)
    return batch


def _stack(fields: Sequence[SampleFields], *, key: str) -> Tensor:
    values = [field[key] for field in fields]
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values))
    return torch.tensor(values, dtype=torch.int64 if isinstance(values[0], int) else torch.float32)


def _pad(values: Tensor, *, key: str, size: int) -> Tensor:
    padding = values.new_full((size - len(values), *values.shape[1:]), _PADDING.get(key, 0))
    return torch.cat([values, padding])
