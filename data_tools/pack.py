"""Packs a source into data sets of tar shards: first a plan that fixes every byte, then the writing, in one process or many."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Literal

import numpy as np

from vitscale.config import DataError, UsageError
from vitscale.data.manifest import MANIFEST_NAME, Manifest, encode_manifest
from vitscale.data.orphans import end_with_parent
from vitscale.data.ustar import END_OF_ARCHIVE
from vitscale.dist.seeding import counter_key, mix_array

from .shard_writer import ShardJob, ShardResult, sample_tar_bytes, write_shard
from .sources import SOURCES
from .split import IntArray, Split
from .staging import check_free, staged_folder, write_durably

DEFAULT_SHARD_MEBIBYTES = 64

_POLL_SECONDS = 0.1
_COUNT_EVERY = 64


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """What to pack and how; every field but the two folders' places decides the bytes that are written."""

    source: str
    """A name in `SOURCES`."""
    input: Path
    output: Path
    split: str | None = None
    """Only this split; `output` is then the data set itself. None: all, each in its subfolder of `output` where the source has splits."""
    samples_per_shard: int | None = None
    shard_mebibytes: int | None = None
    """Shards of about equal size, none larger than this and one sample; 64 if neither is given."""
    order: Literal["shuffled", "source"] = "shuffled"
    """shuffled: one global random order over all shards, so that any stretch of the data set is a mixture of its classes."""
    seed: int = 0
    """Of the shuffled order."""


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """One data set to be: its folder below the output (empty for the output itself) and the source's sample indices by shard."""

    folder: str
    split: Split
    shards: tuple[IntArray, ...]
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """What `write_pack` will do."""

    request: PackRequest
    datasets: tuple[DatasetPlan, ...]

    @property
    def num_samples(self) -> int:
        return sum(dataset.split.num_samples for dataset in self.datasets)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for dataset in self.datasets for note in dataset.split.notes)


@dataclass(frozen=True, kw_only=True)
class PackedDataset:
    """One data set that was written."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class PackSummary:
    """What was written and how long it took."""

    datasets: tuple[PackedDataset, ...]
    seconds: float


def pack(request: PackRequest, *, workers: int = 1, report: Callable[[int], None] | None = None) -> PackSummary:
    """Plan and write. `report(n)` is called now and then with the number of samples done.

    Raises `UsageError` for a request that makes no sense or an output that exists, `DataError` for an unusable input or disk.
    """
    return write_pack(plan_pack(request), workers=workers, report=report)


def plan_pack(request: PackRequest) -> PackPlan:
    """Open the source and decide which sample goes into which shard, without writing anything."""
    _check_request(request)
    splits = _chosen_splits(SOURCES[request.source](request.input), request=request)
    datasets = []
    for split in splits:
        order = _sample_order(split, request=request)
        sizes = sample_tar_bytes(split.image_bytes())[order]
        shards = _cut(order, sizes=sizes, request=request)
        folder = "" if request.split is not None or split.name is None else split.name
        num_bytes = int(sizes.sum()) + len(shards) * len(END_OF_ARCHIVE)
        datasets.append(DatasetPlan(folder=folder, split=split, shards=shards, num_bytes=num_bytes))
    return PackPlan(request=request, datasets=tuple(datasets))


def write_pack(plan: PackPlan, *, workers: int = 1, report: Callable[[int], None] | None = None) -> PackSummary:
    """Write the planned data sets; the output folder appears complete or not at all. The bytes do not depend on `workers`."""
    if workers < 1:
        raise UsageError(f"--workers {workers}: at least one process is needed")
    started = time.monotonic()
    output = plan.request.output
    with staged_folder(output) as staging:
        jobs = [list(_jobs(dataset, folder=staging / dataset.folder)) for dataset in plan.datasets]
        results = iter(_run([job for group in jobs for job in group], workers=workers, report=report or _ignore))
        grouped = [[next(results) for _ in group] for group in jobs]
        _refuse_unusable([result for group in grouped for result in group], plan=plan)
        manifests = [_manifest(dataset, results=group, plan=plan) for dataset, group in zip(plan.datasets, grouped, strict=True)]
        for dataset, manifest in zip(plan.datasets, manifests, strict=True):
            write_durably(staging / dataset.folder / MANIFEST_NAME, encode_manifest(manifest))
    packed = [
        PackedDataset(path=output / dataset.folder, manifest=manifest) for dataset, manifest in zip(plan.datasets, manifests, strict=True)
    ]
    return PackSummary(datasets=tuple(packed), seconds=time.monotonic() - started)


def _check_request(request: PackRequest) -> None:
    if request.source not in SOURCES:
        raise UsageError(f"unknown source {request.source!r}. Known: {', '.join(SOURCES)}.")
    if request.samples_per_shard is not None and request.shard_mebibytes is not None:
        raise UsageError("--samples-per-shard and --shard-mebibytes both set the size of shards. Give one of them.")
    if any(size is not None and size < 1 for size in (request.samples_per_shard, request.shard_mebibytes)):
        raise UsageError("--samples-per-shard and --shard-mebibytes must be at least 1.")
    output, source = Path(os.path.abspath(request.output)), Path(os.path.abspath(request.input))
    if output.is_relative_to(source):
        raise UsageError(f"{request.output}: lies inside the input folder. Give an OUTPUT outside of it.")
    check_free(output)


def _chosen_splits(splits: Sequence[Split], *, request: PackRequest) -> Sequence[Split]:
    if request.split is None:
        return splits
    names = [split.name for split in splits if split.name is not None]
    if not names:
        raise UsageError(f"--split {request.split}: the source {request.source} has no splits. Pack the folder of each split by itself.")
    if request.split not in names:
        raise UsageError(f"--split {request.split}: {request.input} has {', '.join(names)}.")
    return [split for split in splits if split.name == request.split]


def _sample_order(split: Split, *, request: PackRequest) -> IntArray:
    """The source's sample indices in the order in which they are written."""
    indices = np.arange(split.num_samples, dtype=np.int64)
    if request.order == "source":
        return indices
    key = np.uint64(counter_key(request.seed, "pack", split.name or ""))
    return np.argsort(mix_array(indices.astype(np.uint64) ^ key), kind="stable")


def _cut(order: IntArray, *, sizes: IntArray, request: PackRequest) -> tuple[IntArray, ...]:
    if request.samples_per_shard is not None:
        return tuple(np.split(order, np.arange(request.samples_per_shard, len(order), request.samples_per_shard)))
    ends = np.cumsum(sizes)
    limit = (request.shard_mebibytes or DEFAULT_SHARD_MEBIBYTES) << 20
    num_shards = -(-int(ends[-1]) // limit)
    targets = [int(ends[-1]) * number // num_shards for number in range(1, num_shards)]
    # A sample larger than a shard makes two cuts at one place.
    cuts = np.unique(np.searchsorted(ends, targets, side="left") + 1) if targets else np.array([], np.int64)
    return tuple(part for part in np.split(order, cuts) if len(part))


def _jobs(dataset: DatasetPlan, *, folder: Path) -> Iterator[ShardJob]:
    folder.mkdir(exist_ok=True)
    stem = dataset.split.name or "shard"
    key_prefix = f"{dataset.split.name}-" if dataset.split.name else ""
    for number, indices in enumerate(dataset.shards):
        path = folder / f"{stem}-{number:05d}.tar"
        yield ShardJob(path=path, split=dataset.split.take(indices), source_indices=indices, key_prefix=key_prefix)


def _run(jobs: Sequence[ShardJob], *, workers: int, report: Callable[[int], None]) -> list[ShardResult]:
    if workers == 1 or len(jobs) == 1:
        return _run_here(jobs, report=report)
    # Not forked: the progress bar runs a thread, and a fork copies its locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("Q", 0)
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker, initargs=(counter,))
    try:
        futures = [pool.submit(_run_in_worker, job) for job in jobs]
        _watch(futures, counter=counter, report=report)
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise DataError("a packing process was killed, perhaps for want of memory. Run the command again with fewer --workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _run_here(jobs: Sequence[ShardJob], *, report: Callable[[int], None]) -> list[ShardResult]:
    num_done = 0

    def advance(count: int) -> None:
        nonlocal num_done
        num_done += count
        if num_done % _COUNT_EVERY == 0:
            report(num_done)

    results = [write_shard(job, advance=advance) for job in jobs]
    report(num_done)
    return results


def _watch(futures: Sequence[Future[ShardResult]], *, counter: "Synchronized[int]", report: Callable[[int], None]) -> None:
    """Report until all are done or one has failed."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        report(counter.value)
        if any(future.exception() for future in done):
            return


_shared_counter: "Synchronized[int] | None" = None


def _start_worker(counter: "Synchronized[int]") -> None:
    global _shared_counter
    _shared_counter = counter
    end_with_parent()  # else a process waits for ever for the next shard of a killed command
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the pool in order


def _run_in_worker(job: ShardJob) -> ShardResult:
    counter = _shared_counter
    assert counter is not None
    pending = 0

    def advance(count: int) -> None:
        nonlocal pending
        pending += count
        if pending >= _COUNT_EVERY:
            flush()

    def flush() -> None:
        nonlocal pending
        with counter.get_lock():
            counter.value += pending
        pending = 0

    result = write_shard(job, advance=advance)
    flush()
    return result


def _refuse_unusable(results: Sequence[ShardResult], *, plan: PackPlan) -> None:
    count = sum(result.num_unusable for result in results)
    if count:
        shown = [reason for result in results for reason in result.unusable][:5]
        more = f" and {count - len(shown)} more" if count > len(shown) else ""
        raise DataError(
            f"{plan.request.input}: {count} of {plan.num_samples} images cannot be packed: {', '.join(sorted(shown))}{more}. "
            "Repair or remove them and run the command again; nothing was written."
        )


def _manifest(dataset: DatasetPlan, *, results: Sequence[ShardResult], plan: PackPlan) -> Manifest:
    shards = [result.shard for result in results if result.shard is not None]
    assert len(shards) == len(results)
    request = plan.request
    ordering: dict[str, str | int] = {"order": request.order, **({"seed": request.seed} if request.order == "shuffled" else {})}
    return Manifest(
        split=dataset.split.name,
        num_samples=dataset.split.num_samples,
        classes=dataset.split.classes,
        members=tuple(sorted(frozenset().union(*(result.extensions for result in results)))),
        shards=tuple(shards),
        source={**dataset.split.description, **ordering},
    )


def _ignore(_: int) -> None:
    return None
