"""The loaders that feed training and evaluation, with the same batches for every number of ranks and workers."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from vitscale.data.dataset import Dataset
from vitscale.data.processes import PartStream
from vitscale.data.types import Batch, LostSample, SampleTransform
from vitscale.data.worker import EvalParts, Part


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of how many ranks loads, with how many processes, each preparing `prefetch` batches ahead (0: in this process)."""

    rank: int
    world_size: int
    num_workers: int
    prefetch: int


def train_loader(parts: IterableDataset[Part], *, share: Share, batch_keys: frozenset[str], pin_memory: bool = False) -> "TrainLoader":
    """Batches put together from `parts`, which each of the rank's processes iterates over its part of, for ever.

    Raises while iterating what `PartStream` raises.
    """
    stream = PartStream(parts, num_workers=share.num_workers, prefetch=share.prefetch)
    return TrainLoader(stream, num_parts=max(1, share.num_workers), batch_keys=batch_keys, pin_memory=pin_memory)


def eval_loader(*, dataset: Dataset, transform: SampleTransform, share: Share, batch_size: int, pin_memory: bool = False) -> "EvalLoader":
    """This rank's share of the data set, every sample once over all ranks, in order.

    Every rank gets the same number of batches of the same shape, as the collectives of a sharded model demand. Rows that
    fill up have `sample_id` and `label` -1 and zeros elsewhere. Raises `DataError` while iterating.
    """
    num_samples, rank, world_size = dataset.num_samples, share.rank, share.world_size
    largest_share = -(-num_samples // world_size)
    parts = EvalParts(
        dataset=dataset,
        transform=transform,
        first=rank * num_samples // world_size,
        stop=(rank + 1) * num_samples // world_size,
        batch_size=batch_size,
        num_batches=-(-largest_share // batch_size),
    )
    return EvalLoader(PartStream(parts, num_workers=share.num_workers, prefetch=share.prefetch), pin_memory=pin_memory)


class TrainLoader(Iterator[Batch]):
    """Batches for ever. `close` ends the loader processes."""

    def __init__(self, stream: PartStream, *, num_parts: int, batch_keys: frozenset[str], pin_memory: bool) -> None:
        self._stream = stream
        self._num_parts = num_parts
        self._unchecked_keys = batch_keys
        self._pin_memory = pin_memory
        self._lost: list[LostSample] = []
        self._io: Counter[str] = Counter()

    def __next__(self) -> Batch:
        made = [next(self._stream) for _ in range(self._num_parts)]
        for part in made:
            self._lost += part.lost
            self._io.update(part.io)
        batches = [part.batch for part in made if part.batch is not None]
        batch = {key: _join([part[key] for part in batches], pin_memory=self._pin_memory) for key in batches[0]}
        missing, self._unchecked_keys = self._unchecked_keys - batch.keys(), frozenset()
        assert not missing, f"the objective reads {sorted(missing)}, which its sample transform does not make: {sorted(batch)}"
        return batch

    def take_lost(self) -> list[LostSample]:
        """The samples replaced in the batches since the last call."""
        lost, self._lost = self._lost, []
        return lost

    def take_io(self) -> dict[str, int]:
        """What reading has cost since the last call; see `Storage.io_counters`."""
        io, self._io = self._io, Counter()
        return dict(io)

    def close(self) -> None:
        """End the loader processes. May be called twice."""
        self._stream.close()


class EvalLoader(Iterator[Batch]):
    """Batches of equal shape until the data set ends. `close` ends the loader processes before that."""

    def __init__(self, stream: PartStream, *, pin_memory: bool) -> None:
        self._stream = stream
        self._pin_memory = pin_memory

    def __next__(self) -> Batch:
        try:
            part = next(self._stream)
        except StopIteration:
            self.close()
            raise
        assert part.batch is not None
        return {key: _join([values], pin_memory=self._pin_memory) for key, values in part.batch.items()}

    def close(self) -> None:
        """End the loader processes. May be called twice."""
        self._stream.close()


def _join(parts: list[Tensor], *, pin_memory: bool) -> Tensor:
    """The parts as one tensor, copied once, straight into pinned memory where that is asked for."""
    if len(parts) == 1:
        return parts[0].pin_memory() if pin_memory else parts[0]
    length = sum(len(part) for part in parts)
    joined = torch.empty((length, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=pin_memory)
    return torch.cat(parts, out=joined)
