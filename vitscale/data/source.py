"""Opened training data: what any kind of it offers to a run, and packed data sets as the kind that keeps every promise."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch.utils.data import IterableDataset

from vitscale.config import ConfigError, DataError
from vitscale.data.config import DataConfig, MixtureConfig, OrderedConfig, ShardsConfig, StreamConfig
from vitscale.data.dataset import Dataset, open_dataset
from vitscale.data.demand import Demand
from vitscale.data.lanes import SampleOrder, SampleScanner
from vitscale.data.mixture import MixedSet, MixtureOrder, MixtureReader
from vitscale.data.order import Order
from vitscale.data.reader import SampleReader
from vitscale.data.webdataset_stream import open_stream
from vitscale.data.worker import Part, TrainParts
from vitscale.dist.seeding import counter_key


class TrainingData(Protocol):
    """Training data of any kind, opened on this rank."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order; None without classes."""
        ...

    @property
    def epoch_samples(self) -> int | None:
        """Samples of an epoch, each counted as often as it is repeated; None where that is not known."""
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
    match config:
        case ShardsConfig():
            return open_shards(config, seed=seed)
        case MixtureConfig():
            return open_mixture(config, seed=seed)
        case StreamConfig():
            return open_stream(config)


def open_shards(config: ShardsConfig, *, seed: int) -> "ShardData":
    """Open one packed data set."""
    dataset = open_dataset(config.path, cache=config.cache)
    return ShardData(dataset=dataset, order=_order(config, dataset=dataset, seed=seed))


def open_mixture(config: MixtureConfig, *, seed: int) -> "MixtureData":
    """Open the sets of a mixture. Raises `DataError` where they differ in their classes, `ConfigError` for a set with too few samples."""
    datasets = {name: open_dataset(mixed.path, cache=config.cache) for name, mixed in config.sets.items()}
    _check_classes({config.sets[name].path: dataset for name, dataset in datasets.items()})
    orders = []
    for name, dataset in datasets.items():
        try:
            # By name: the others keep their order when a set is added or taken away.
            orders.append(_order(config, dataset=dataset, seed=counter_key(seed, "mixture", name)))
        except ConfigError as error:
            raise ConfigError(f"data.sets.{name}: {error}") from None
    order = MixtureOrder(orders=tuple(orders), slots=tuple(config.slots.values()), seed=seed)
    return MixtureData(datasets=datasets, order=order, weights={name: mixed.weight for name, mixed in config.sets.items()})


@dataclass(frozen=True, kw_only=True)
class ShardData:
    """One packed data set in its order."""

    dataset: Dataset
    order: Order

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.dataset.classes

    @property
    def epoch_samples(self) -> int:
        return self.dataset.num_samples * self.order.repeats

    @property
    def cursor_unit(self) -> int:
        return self.order.lanes

    @property
    def notes(self) -> tuple[str, ...]:
        return (_size_note([self.dataset], window_lengths=[self.order.window_length], lanes=self.order.lanes),)

    def identity(self) -> dict[str, object]:
        return {"manifest_sha256": self.dataset.sha256, "order": self.order.identity()}

    def batch_ids(self, consumed: int, *, global_batch: int) -> list[int]:
        ids: list[int] = self.order.batch_ids(consumed, global_batch=global_batch).sample_ids.tolist()
        return ids

    def parts(self, demand: Demand) -> TrainParts:
        return _train_parts(partial(SampleReader, self.dataset), order=self.order, demand=demand)


@dataclass(frozen=True, kw_only=True)
class MixtureData:
    """Several packed data sets by name, mixed sample by sample."""

    datasets: Mapping[str, Dataset]
    order: MixtureOrder
    weights: Mapping[str, float]

    @property
    def classes(self) -> tuple[str, ...] | None:
        return next(iter(self.datasets.values())).classes

    @property
    def epoch_samples(self) -> int:
        return self.order.num_samples * self.order.repeats

    @property
    def cursor_unit(self) -> int:
        return self.order.lanes

    @property
    def notes(self) -> tuple[str, ...]:
        lengths = [order.window_length for order in self.order.orders]
        size = _size_note(list(self.datasets.values()), window_lengths=lengths, lanes=self.order.lanes)
        return (size, *(self._share_note(name, slots) for name, slots in zip(self.datasets, self.order.slots, strict=True)))

    def identity(self) -> dict[str, object]:
        sets = [
            {"name": name, "manifest_sha256": dataset.sha256, "slots": slots, "order": order.identity()}
            for (name, dataset), slots, order in zip(self.datasets.items(), self.order.slots, self.order.orders, strict=True)
        ]
        return {"mixture": sets, "seed": self.order.seed}

    def batch_ids(self, consumed: int, *, global_batch: int) -> list[int]:
        ids: list[int] = self.order.batch_ids(consumed, global_batch=global_batch).sample_ids.tolist()
        return ids

    def parts(self, demand: Demand) -> TrainParts:
        return _train_parts(partial(_mixture_reader, dict(self.datasets)), order=self.order, demand=demand)

    def _share_note(self, name: str, slots: int) -> str:
        share, wanted = slots / self.order.cycle, self.weights[name] / math.fsum(self.weights.values())
        rounded = "" if math.isclose(share, wanted, rel_tol=1e-6) else f", rounded from {wanted:.6g}"
        num_samples = self.datasets[name].num_samples
        return (
            f"data.sets.{name}: {slots} of every {self.order.cycle} samples{rounded}; one epoch of its {num_samples} samples in"
            f" {round(num_samples * self.order.repeats / share)}"
        )


def _mixture_reader(datasets: Mapping[str, Dataset]) -> MixtureReader:
    return MixtureReader(
        [MixedSet(name=name, reader=SampleReader(dataset), num_samples=dataset.num_samples) for name, dataset in datasets.items()]
    )


def _order(config: OrderedConfig, *, dataset: Dataset, seed: int) -> Order:
    assert isinstance(config.lanes, int), "the plan resolves auto"
    return Order(
        num_samples=dataset.num_samples,
        seed=seed,
        lanes=config.lanes,
        block=config.block,
        window=config.window,
        repeats=config.repeats,
    )


def _train_parts(open_reader: Callable[[], SampleScanner], *, order: SampleOrder, demand: Demand) -> TrainParts:
    order.samples_per_lane(demand.global_batch)
    return TrainParts(
        open_reader=open_reader,
        order=order,
        transform=demand.transform,
        seed=demand.seed,
        global_batch=demand.global_batch,
        start_samples=demand.start_samples,
        rank_slice=demand.rank_slice,
        replaced_before=demand.replaced_before,
    )


def _check_classes(datasets: Mapping[str, Dataset]) -> None:
    (first_path, first), *others = datasets.items()
    for path, dataset in others:
        if dataset.classes == first.classes:
            continue
        raise DataError(
            f"{path}: its classes are not those of {first_path}, with which it is to be mixed:"
            f" {_difference(dataset.classes, first.classes)}. Pack all sets of a mixture with the same classes, or all without."
        )


def _difference(classes: tuple[str, ...] | None, expected: tuple[str, ...] | None) -> str:
    if classes is None or expected is None:
        return f"it has {_counted(classes)} and not {_counted(expected)}"
    for number, (name, other) in enumerate(zip(classes, expected, strict=False)):
        if name != other:
            return f"class {number} is {name!r} and not {other!r}"
    return f"it has {_counted(classes)} and not {_counted(expected)}"


def _counted(classes: tuple[str, ...] | None) -> str:
    return "no classes" if classes is None else f"{len(classes)} classes"


def _size_note(datasets: Sequence[Dataset], *, window_lengths: Sequence[int], lanes: int) -> str:
    """How much there is, and how much of it is held at most: two windows per lane and set."""
    num_shards = sum(len(dataset.shards) for dataset in datasets)
    num_samples, num_bytes, held, held_bytes = 0, 0, 0, 0.0
    for dataset, window_length in zip(datasets, window_lengths, strict=True):
        set_bytes = sum(shard.bytes for shard in dataset.shards)
        set_held = min(2 * lanes * window_length, dataset.num_samples)
        num_samples, num_bytes = num_samples + dataset.num_samples, num_bytes + set_bytes
        held, held_bytes = held + set_held, held_bytes + set_held * set_bytes / dataset.num_samples
    return (
        f"data: {num_samples} samples in {num_shards} shards, {num_bytes / 2**30:.2f} GiB; the readers of all ranks together hold up"
        f" to {held} undecoded samples, {held_bytes / 2**30:.2f} GiB"
    )
