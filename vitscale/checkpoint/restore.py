"""Restoring a checkpoint into a running engine, at whatever world size and ZeRO stage it has now."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Generic, Literal, Self, TypeVar

import torch
from torch import Tensor

from vitscale.checkpoint.discover import nothing
from vitscale.checkpoint.durable import disk_errors
from vitscale.checkpoint.fragment_file import CHUNK_ELEMENTS
from vitscale.checkpoint.fragments import Fragment, Kind, ShardStore
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import CheckpointError
from vitscale.dist.agreement import on_every_rank

T = TypeVar("T")

_READING_THREADS = 4
"""A read waits for the disk and then copies; with several, one copies while others wait."""
_SHOWN_PROBLEMS = 5
_OTHER_MODEL = (
    "Go on with the model that the checkpoint's config.yaml describes, or train this one under another name (name=...), with init_from"
    " to start it from these weights"
)


def restore_checkpoint(
    reader: CheckpointReader,
    *,
    store: ShardStore,
    missing_ema: Literal["refuse", "copy_weights"] = "refuse",
    show_life: Callable[[], None] = nothing,
) -> None:
    """Fill what every rank holds with the checkpoint's values and set the optimizer's step count. Collective.

    `missing_ema` says what to do when the run keeps a moving average and the checkpoint has none: refuse, or start the
    average from the weights. `show_life` is called while files are read, from any thread, but one at a time. Raises
    `CheckpointError` on all ranks, before anything is written, when names or shapes differ.

    State in host memory is filled straight from the files, that on a GPU through a page-locked chunk of 4 MiB for each of four
    threads: beside the map of the pieces, which the reader holds, and what the store takes to refresh its copies, this is all
    the memory it needs, whatever wrote the checkpoint.
    """
    sources = _sources(reader, missing_ema=missing_ema)
    held = on_every_rank(lambda: _check_held(list(store.held()), reader=reader, sources=sources))
    _refuse_unused(reader, used={name for names in held for name in names})
    on_every_rank(lambda: _fill(store, reader=reader, sources=sources, show_life=show_life))
    store.restored(optimizer_steps=reader.manifest.optimizer_steps)


def _sources(reader: CheckpointReader, *, missing_ema: str) -> dict[Kind, Kind]:
    """Which kind of the checkpoint fills which kind of the store."""
    sources: dict[Kind, Kind] = {kind: kind for kind in reader.kinds}
    if "ema" not in sources and missing_ema == "copy_weights":
        sources["ema"] = "weight"
    return sources


def _check_held(held: Sequence[Fragment], *, reader: CheckpointReader, sources: dict[Kind, Kind]) -> list[str]:
    """Raise unless the checkpoint has every held fragment in the same shape; return the names held."""
    missing_kinds = {fragment.kind for fragment in held} - set(sources)
    if missing_kinds:
        raise CheckpointError(
            f"{reader.path}: holds no {' or '.join(sorted(missing_kinds))}, which this run keeps; it has"
            f" {', '.join(sorted(reader.kinds))}. Continue with the settings of the run that wrote it"
        )
    shapes = {kind: reader.shapes(source) for kind, source in sources.items()}
    problems = sorted(set(_problems(held, shapes=shapes)))
    if problems:
        raise CheckpointError(f"{reader.path}: does not fit this model: {_shortened(problems)}. {_OTHER_MODEL}")
    return sorted({fragment.name for fragment in held})


def _problems(held: Sequence[Fragment], *, shapes: dict[Kind, dict[str, tuple[int, ...]]]) -> Iterator[str]:
    for fragment in held:
        shape = shapes[fragment.kind].get(fragment.name)
        if shape is None:
            yield f"{fragment.name} is not in the checkpoint"
        elif shape != fragment.shape:
            yield f"{fragment.name} has shape {shape} in the checkpoint and {fragment.shape} in the model"


def _refuse_unused(reader: CheckpointReader, *, used: set[str]) -> None:
    unused = sorted(set(reader.shapes("weight")) - used)
    if unused:
        raise CheckpointError(f"{reader.path}: does not fit this model, which lacks {_shortened(unused)}. {_OTHER_MODEL}")


def _shortened(items: Sequence[str]) -> str:
    more = f"; and {len(items) - _SHOWN_PROBLEMS} more" if len(items) > _SHOWN_PROBLEMS else ""
    return "; ".join(items[:_SHOWN_PROBLEMS]) + more


def _fill(store: ShardStore, *, reader: CheckpointReader, sources: dict[Kind, Kind], show_life: Callable[[], None]) -> None:
    parts = _Shared(_parts(store.held(), show_life=show_life))
    with disk_errors(), ThreadPoolExecutor(_READING_THREADS) as pool:
        try:
            readers = [pool.submit(_fill_parts, parts, reader=reader, sources=sources) for _ in range(_READING_THREADS)]
            for done in as_completed(readers):
                done.result()
        finally:
            parts.end()  # of a reader that failed, or of a Ctrl-C, the others would hear nothing


def _fill_parts(parts: Iterable[Fragment], *, reader: CheckpointReader, sources: dict[Kind, Kind]) -> None:
    chunk: Tensor | None = None
    for part in parts:
        values, source = part.values, sources[part.kind]
        if values.is_cpu:
            reader.read_into(values, name=part.name, kind=source, start=part.start)
            continue
        chunk = torch.empty(CHUNK_ELEMENTS, dtype=torch.float32, pin_memory=values.is_cuda) if chunk is None else chunk
        host = chunk[: values.numel()]
        reader.read_into(host, name=part.name, kind=source, start=part.start)
        values.copy_(host)


def _parts(fragments: Iterable[Fragment], *, show_life: Callable[[], None]) -> Iterator[Fragment]:
    """The fragments in pieces of one chunk at most."""
    for fragment in fragments:
        for number, values in enumerate(fragment.values.detach().split(CHUNK_ELEMENTS)):
            show_life()
            yield replace(fragment, start=fragment.start + number * CHUNK_ELEMENTS, values=values)


class _Shared(Generic[T]):
    """An iterator that several threads take from."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._lock = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)

    def end(self) -> None:
        """There is nothing more to take."""
        with self._lock:
            self._items = iter(())
