"""Opened training data: what any kind of it offers to a run, and packed data sets as the kind that keeps every promise."""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch.utils.data import IterableDataset

from vitscale.data.config import DataConfig, ShardsConfig
from vitscale.data.dataset import Dataset, open_dataset
from vitscale.data.demand import Demand
from vitscale.data.order import Order
from vitscale.data.reader import SampleReader
from vitscale.data.worker import Part, TrainParts


class TrainingData(Protocol):
    """Training data of any kind, opened on this rank."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order; None without classes."""
        ...

    @property
    def num_samples(self) -> int | None:
        """Samples of an epoch without repeats; None where that is not known."""
        ...

    @property
    def cursor_unit(self) -> int:
        """What the count of consumed samples must be a multiple of."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this data at the start of a run, a sentence each: size, memory, what it cannot promise."""
        ...

    def identity(self) -> dict[str, object]:
        """What a checkpoint stores and a resume compares: with anything else the run would see other batches. Plain JSON."""
        ...

    def batch_ids(self, consumed: int, *, global_batch: int) -> list[int] | None:
        """Sample ids of the global batch that follows `consumed` samples, before replacements; None where only readers know."""
        ...

    def parts(self, demand: Demand) -> IterableDataset[Part]:
        """What the rank's loader processes iterate over. Raises `ConfigError` where the global batch does not fit the order."""
        ...


def open_training_data(config: DataConfig, *, seed: int) -> TrainingData:
    """Open what `config` (resolved: no `auto` left) names. Raises `DataError`, `ConfigError`."""
    return open_shards(config, seed=seed)


def open_shards(config: ShardsConfig, *, seed: int) -> "ShardData":
    """Open one packed data set."""
    assert isinstance(config.lanes, int), "the plan resolves auto"
    dataset = open_dataset(config.path)
    order = Order(
        num_samples=dataset.num_samples,
        seed=seed,
        lanes=config.lanes,
        block=config.block,
        window=config.window,
        repeats=config.repeats,
    )
    return ShardData(dataset=dataset, order=order)


@dataclass(frozen=True, kw_only=True)
class ShardData:
    """One packed data set in its order."""

    dataset: Dataset
    order: Order

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.dataset.classes

    @property
    def num_samples(self) -> int:
        return self.dataset.num_samples

    @property
    def cursor_unit(self) -> int:
        return self.order.lanes

    @property
    def notes(self) -> tuple[str, ...]:
        held = 2 * self.order.lanes * self.order.window_length
        num_bytes = sum(shard.bytes for shard in self.dataset.shards)
        gib = min(held, self.num_samples) * num_bytes / self.num_samples / 2**30
        return (
            f"data: {self.num_samples} samples in {len(self.dataset.shards)} shards, {num_bytes / 2**30:.2f} GiB; the readers of all"
            f" ranks together hold up to {min(held, self.num_samples)} undecoded samples, {gib:.2f} GiB",
        )

    def identity(self) -> dict[str, object]:
        return {"manifest_sha256": self.dataset.sha256, "order": self.order.identity()}

    def batch_ids(self, consumed: int, *, global_batch: int) -> list[int]:
        ids: list[int] = self.order.batch_ids(consumed, global_batch=global_batch).sample_ids.tolist()
        return ids

    def parts(self, demand: Demand) -> TrainParts:
        self.order.samples_per_lane(demand.global_batch)
        return TrainParts(
            open_reader=partial(SampleReader, self.dataset),
            order=self.order,
            transform=demand.transform,
            seed=demand.seed,
            global_batch=demand.global_batch,
            start_samples=demand.start_samples,
            rank_slice=demand.rank_slice,
            ledger=demand.ledger,
        )
