"""Any number of ranks and loader processes in one process, and what their parts make together."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from vitscale.data import worker as worker_module
from vitscale.data.lanes import BatchSlice, rank_slice
from vitscale.data.types import Batch, LostSample
from vitscale.data.worker import Part


@dataclass(frozen=True, kw_only=True)
class Made:
    """Global batches, and all that was lost in them, in the order of the batches."""

    batches: list[Batch]
    lost: list[list[LostSample]]

    @property
    def digests(self) -> list[str]:
        """One per batch, over names, types, shapes and bytes."""
        return [digest(batch) for batch in self.batches]

    @property
    def replaced_before(self) -> dict[tuple[int, int], int]:
        """As a run hands it to its loader after a resume."""
        return {(sample.view, sample.sample_id): sample.replaced_by for lost in self.lost for sample in lost}


def as_workers(parts: Iterable[Part], num_workers: int) -> list[Iterator[Part]]:
    """What each of `num_workers` processes would iterate over, in this process; 0: what the training process itself would."""
    return [iter(parts)] if num_workers == 0 else [_as_worker(parts, worker=i, num_workers=num_workers) for i in range(num_workers)]


def _as_worker(parts: Iterable[Part], *, worker: int, num_workers: int) -> Iterator[Part]:
    info = SimpleNamespace(id=worker, num_workers=num_workers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "get_worker_info", lambda: info)
        iterator = iter(parts)
        first = next(iterator)
    yield first
    yield from iterator


def make_batches(
    open_parts: Callable[[BatchSlice], Iterable[Part]], *, global_batch: int, world_size: int, num_workers: int, num_steps: int
) -> Made:
    """The first global batches, put together from the parts of all ranks and workers."""
    streams: list[Iterator[Part]] = []
    for rank in range(world_size):
        streams += as_workers(open_parts(rank_slice(global_batch, rank=rank, world_size=world_size)), num_workers)
    batches, lost = [], []
    for _ in range(num_steps):
        parts = [next(stream) for stream in streams]
        errors = [part.error for part in parts if part.error is not None]
        assert not errors, errors
        made = [part.batch for part in parts if part.batch is not None]
        batches.append({key: torch.cat([part[key] for part in made]) for key in made[0]})
        lost.append([sample for part in parts for sample in part.lost])
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    return Made(batches=batches, lost=lost)


def digest(batch: Batch) -> str:
    """sha256 of everything in the batch."""
    found = hashlib.sha256()
    for key, values in sorted(batch.items()):
        found.update(f"{key} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.contiguous().numpy().tobytes())
    return found.hexdigest()
