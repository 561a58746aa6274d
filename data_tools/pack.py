"""Packs a source into data sets of tar shards: first a plan that fixes every byte, then the writing, in one process or many."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitscale.config import DataError, UsageError
from vitscale.data.manifest import MANIFEST_NAME, Manifest, encode_manifest

from .atomic import write_durably
from .plan import DatasetPlan, PackPlan, PackRequest, plan_pack
from .processes import Runner, write_shards
from .shard_writer import ShardJob, ShardResult, SkippedSample, recorded_result
from .split import some
from .staging import Staging, partial_folder, resumable_folder

__all__ = ["PackPlan", "PackRequest", "PackSummary", "PackedDataset", "pack", "plan_pack", "write_pack"]

SKIPPED_NAME = "skipped.txt"
"""In a data set that lacks samples of its source: a line for each, its origin, a tab and the reason."""

_UNUSABLE_NAME = "unusable.txt"


@dataclass(frozen=True, kw_only=True)
class PackedDataset:
    """One data set that was written."""

    path: Path
    manifest: Manifest
    num_skipped: int
    traits: Mapping[str, int]
    """How many of its images are rotated by EXIF, animated, or of another format than their names say."""


@dataclass(frozen=True, kw_only=True)
class PackSummary:
    """What was written and how long it took."""

    datasets: tuple[PackedDataset, ...]
    seconds: float
    num_resumed_shards: int
    """Were there from an interrupted attempt."""
    has_discarded_others: bool
    """An interrupted attempt had left shards of other input or options."""


def pack(request: PackRequest, *, workers: int = 1, report: Callable[[int], None] | None = None) -> PackSummary:
    """Plan and write. `report(n)` is called now and then with the number of samples done.

    Raises `UsageError` for a request that makes no sense or an output that exists, `DataError` for an unusable input or disk.
    """
    return write_pack(plan_pack(request), workers=workers, report=report)


def write_pack(plan: PackPlan, *, workers: int = 1, report: Callable[[int], None] | None = None, run: Runner | None = None) -> PackSummary:
    """Write the planned data sets; the output folder appears complete or not at all.

    The bytes depend neither on `workers` nor on `run`, which writes the shards elsewhere than in processes of this machine.
    Shards that an interrupted attempt at the same plan has left are kept.
    """
    if workers < 1:
        raise UsageError(f"--workers {workers}: at least one process is needed")
    started = time.monotonic()
    with resumable_folder(plan.request.output, plan_digest=plan.digest()) as staging:
        progress = _Progress(report)
        results = _recorded(plan, staging=staging)
        num_resumed = len(results)
        progress.advance(sum(result.num_samples for result in results.values()))
        num_left = sum(len(dataset.shards) for dataset in plan.datasets) - num_resumed
        run = run or partial(write_shards, workers=min(workers, num_left))
        # Closed in any case: nothing may still be writing when the staging folder is cleared up.
        with closing(run(_jobs(plan, staging=staging, done=frozenset(results)), progress.advance)) as written:
            results |= {result.name: result for result in written}
        progress.tell()
        grouped = [[results[dataset.shard_name(number)] for number in range(len(dataset.shards))] for dataset in plan.datasets]
        if plan.request.unusable == "refuse":
            _refuse_unusable([sample for group in grouped for result in group for sample in result.skipped], plan=plan, staging=staging)
        packed = [
            _finish(dataset, results=group, plan=plan, staging=staging) for dataset, group in zip(plan.datasets, grouped, strict=True)
        ]
    return PackSummary(
        datasets=tuple(packed),
        seconds=time.monotonic() - started,
        num_resumed_shards=num_resumed,
        has_discarded_others=staging.has_discarded_others,
    )


class _Progress:
    """Counts samples and reports their sum."""

    def __init__(self, report: Callable[[int], None] | None) -> None:
        self._report = report
        self._num_done = 0

    def advance(self, count: int) -> None:
        self._num_done += count
        if count:
            self.tell()

    def tell(self) -> None:
        if self._report is not None:
            self._report(self._num_done)


def _recorded(plan: PackPlan, *, staging: Staging) -> dict[str, ShardResult]:
    """The shards of an earlier attempt, by name."""
    names = (dataset.shard_name(number) for dataset in plan.datasets for number in range(len(dataset.shards)))
    results = ((name, recorded_result(staging, name)) for name in names) if staging.has_records() else ()
    return {name: result for name, result in results if result is not None}


def _jobs(plan: PackPlan, *, staging: Staging, done: frozenset[str]) -> Iterator[ShardJob]:
    for dataset in plan.datasets:
        (staging.contents / dataset.folder).mkdir(exist_ok=True)
        for number, indices in enumerate(dataset.shards):
            name = dataset.shard_name(number)
            if name not in done:
                yield ShardJob(name=name, split=dataset.split.take(indices), policy=plan.request.policy, staging=staging)


def _refuse_unusable(skipped: Sequence[SkippedSample], *, plan: PackPlan, staging: Staging) -> None:
    if not skipped:
        return
    listed = sorted(f"{sample.origin} ({sample.reason})" for sample in skipped)
    partial_path = partial_folder(plan.request.output)
    where = ""
    if len(listed) > 5:
        (staging.root / _UNUSABLE_NAME).write_bytes(_skipped_text(skipped))
        where = f" All are listed in {staging.root / _UNUSABLE_NAME}."
    raise DataError(
        f"{plan.request.input}: {len(skipped)} of {plan.num_samples} images cannot be packed: {some(listed)}.{where} Repair or remove"
        f" them and run the command again, or leave them out with --skip-unusable. Nothing was written but {partial_path}, which holds"
        " the other images for that; delete it to give up."
    )


def _finish(dataset: DatasetPlan, *, results: Sequence[ShardResult], plan: PackPlan, staging: Staging) -> PackedDataset:
    """Write what a data set has besides its shards: the manifest, and the list of what was left out."""
    folder = staging.contents / dataset.folder
    skipped = [sample for result in results for sample in result.skipped]
    shards = tuple(result.shard for result in results if result.shard is not None)
    if not shards:
        name = f"the split {dataset.split.name} of " if dataset.split.name else ""
        raise DataError(
            f"{plan.request.input}: not one image of {name}the source can be packed, for example {skipped[0].origin} ({skipped[0].reason})."
        )
    description = plan.description(dataset)
    if plan.request.unusable == "skip":
        description["skipped"] = len(skipped)
    manifest = Manifest(
        split=dataset.split.name,
        num_samples=sum(shard.num_samples for shard in shards),
        classes=dataset.split.classes,
        members=tuple(sorted({extension for result in results for extension in result.extensions})),
        shards=shards,
        source=description,
    )
    _write_anew(folder / MANIFEST_NAME, encode_manifest(manifest))
    if skipped:
        _write_anew(folder / SKIPPED_NAME, _skipped_text(skipped))
    traits = sum((Counter(result.traits) for result in results), Counter[str]())
    return PackedDataset(path=plan.request.output / dataset.folder, manifest=manifest, num_skipped=len(skipped), traits=traits)


def _write_anew(path: Path, data: bytes) -> None:
    """Replace what an attempt that was killed in its last moments may have left half written."""
    path.unlink(missing_ok=True)
    write_durably(path, data)


def _skipped_text(skipped: Iterable[SkippedSample]) -> bytes:
    lines = sorted(f"{' '.join(sample.origin.splitlines())}\t{sample.reason}\n" for sample in skipped)
    return "".join(lines).encode(errors="backslashreplace")
