"""Ranks as threads and engines as dictionaries, so that any world size and ZeRO stage is tested in one process."""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import torch
from torch import Tensor

from vitscale.checkpoint.discover import verify
from vitscale.checkpoint.fragments import Fragment, Kind, ShardStore
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.saver import CheckpointSaver, Retention
from vitscale.config import CheckpointError
from vitscale.dist.ranks import Ranks

Tensors = dict[tuple[str, Kind], Tensor]

SHAPES: dict[str, tuple[int, ...]] = {"backbone.a": (3, 5), "backbone.b": (7,), "head.scale": (), "head.w": (2, 3, 2)}


def make_tensors(*, seed: int, shapes: dict[str, tuple[int, ...]] | None = None, kinds: tuple[Kind, ...] = get_args(Kind)) -> Tensors:
    """Random whole tensors of a model."""
    generator = torch.Generator().manual_seed(seed)
    return {(name, kind): torch.randn(shape, generator=generator) for name, shape in (shapes or SHAPES).items() for kind in kinds}


class FakeStore:
    """What one rank's engine would hold of `tensors`, cut as DeepSpeed cuts them at each ZeRO stage."""

    def __init__(self, tensors: Tensors, *, rank: int, world_size: int, zero_stage: int, optimizer_steps: int = 0) -> None:
        self.zero_stage = zero_stage
        self.rank = rank
        self.steps = optimizer_steps
        self.pieces = [
            Fragment(name=name, kind=kind, shape=tuple(value.shape), start=start, values=value.reshape(-1)[start:stop].clone())
            for (name, kind), value in tensors.items()
            for start, stop in [_span(tensors, (name, kind), rank=rank, world_size=world_size, zero_stage=zero_stage)]
            if stop > start
        ]

    def owned(self) -> Iterator[Fragment]:
        return iter(self.pieces if self.zero_stage > 0 or self.rank == 0 else [])

    def held(self) -> Iterator[Fragment]:
        return iter(self.pieces)

    def optimizer_steps(self) -> int:
        return self.steps

    def restored(self, *, optimizer_steps: int) -> None:
        self.steps = optimizer_steps

    def matches(self, tensors: Tensors) -> bool:
        """Whether every held element is bitwise that of the whole tensors."""
        return all(
            torch.equal(piece.values, tensors[piece.name, piece.kind].reshape(-1)[piece.start : piece.start + piece.values.numel()])
            for piece in self.pieces
        )


def _span(tensors: Tensors, key: tuple[str, Kind], *, rank: int, world_size: int, zero_stage: int) -> tuple[int, int]:
    count = tensors[key].numel()
    if zero_stage == 0:
        return 0, count
    if zero_stage == 3:
        width = math.ceil(count / world_size)
        return min(rank * width, count), min((rank + 1) * width, count)
    # Stages 1 and 2: all parameters behind one another, the whole cut into equal parts.
    names = [name for name, kind in tensors if kind == key[1]]
    offset = sum(tensors[name, key[1]].numel() for name in names[: names.index(key[0])])
    part = math.ceil(sum(tensors[name, key[1]].numel() for name in names) / world_size)
    return max(rank * part - offset, 0), min((rank + 1) * part - offset, count)


def holds(path: Path, tensors: Tensors) -> bool:
    """Whether the checkpoint, whose files must be whole, is of these tensors to the bit."""
    verify(path)
    reader = CheckpointReader(path)
    return all(torch.equal(reader.read_full(name, kind=kind), value) for (name, kind), value in tensors.items())


class SimulatedRanks:
    """Runs work as several ranks in threads; the collectives that checkpoints use meet at a barrier."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = threading.Barrier(world_size, timeout=20)
        self._slots: list[Any] = [None] * world_size
        self._local = threading.local()

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Each rank's result, or the exception that it ended with."""
        with self._patched(), ThreadPoolExecutor(self.world_size) as pool:
            return list(pool.map(lambda rank: self._one(rank, work), range(self.world_size)))

    def smallest(self, value: int) -> int:
        """What the vote after a step tells every rank. All ranks must call this."""
        return min(self._gather(value))

    def _one(self, rank: int, work: Callable[[int], Any]) -> Any:
        self._local.rank = rank
        try:
            return work(rank)
        except Exception as error:
            return error

    def _gather(self, value: Any) -> list[Any]:
        self._slots[self._local.rank] = json.loads(json.dumps(value))
        self._barrier.wait()
        gathered = list(self._slots)
        self._barrier.wait()
        return gathered

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        ranks = lambda: Ranks(rank=self._local.rank, world_size=self.world_size)  # noqa: E731
        with (
            mock.patch("vitscale.dist.agreement.gather_json", self._gather),
            mock.patch("vitscale.dist.agreement.broadcast_json", lambda value: self._gather(value)[0]),
            mock.patch("vitscale.dist.agreement.current_ranks", ranks),
            mock.patch("vitscale.checkpoint.saver.gather_json", self._gather),
            mock.patch("vitscale.checkpoint.saver.current_ranks", ranks),
        ):
            yield


def save_as(
    tensors: Tensors,
    *,
    folder: Path,
    step: int,
    world_size: int = 1,
    zero_stage: int = 1,
    state: dict[str, Any] | None = None,
    in_background: bool = False,
) -> Path:
    """Save a checkpoint as `world_size` simulated ranks; raise what rank 0 raised."""

    def work(rank: int) -> Path:
        store = FakeStore(tensors, rank=rank, world_size=world_size, zero_stage=zero_stage, optimizer_steps=step)
        return save_now(store, folder=folder, step=step, state=state or {"step": step}, in_background=in_background)

    results = SimulatedRanks(world_size).run(work)
    for result in results:
        if isinstance(result, Exception):
            raise result
    assert set(results) == {folder / f"step-{step:08d}"}
    return Path(results[0])


def save_now(store: ShardStore, *, folder: Path, step: int, state: dict[str, Any] | None = None, in_background: bool = False) -> Path:
    """Save a checkpoint and wait for it; its path. All ranks call this. Raises `CheckpointError` where there is none."""
    saver = open_saver(store, folder=folder, in_background=in_background)
    try:
        outcomes = saver.begin(step=step, state=state or {}, config_text=f"seed: {step}\n")
        (outcome,) = outcomes + saver.finish()
    finally:
        saver.close()
    if outcome.error is not None:
        raise CheckpointError(outcome.error)
    return folder / f"step-{step:08d}"


def open_saver(
    store: ShardStore,
    *,
    folder: Path,
    in_background: bool = True,
    check_owner: Callable[[], None] = lambda: None,
    retention: Retention | None = None,
    show_life: Callable[[], None] = lambda: None,
) -> CheckpointSaver:
    """A saver that keeps everything and has no rival, unless told otherwise."""
    return CheckpointSaver(
        store, folder=folder, in_background=in_background, check_owner=check_owner, retention=retention, show_life=show_life
    )
