"""Makes a data set without some samples of another: new indexes and a manifest for the same tars, which are not touched."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitscale.config import DataError, UsageError
from vitscale.data.dataset import Dataset
from vitscale.data.index import encode_index, index_name
from vitscale.data.manifest import MANIFEST_NAME, Manifest, Shard, encode_manifest
from vitscale.data.reader import SampleReader
from vitscale.data.storage.storage import LocalStorage
from vitscale.data.types import LostSample

from .atomic import output_errors, replace_file
from .jobs import Advance, run_jobs
from .range_file import RangeFile
from .samples import scan_chosen

_SAMPLES_AT_ONCE = 256
_READ_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ExcludeJob:
    """One shard whose samples are looked through; `first_id` is the flat index of its first."""

    dataset: Dataset
    shard: Shard
    first_id: int
    keys: frozenset[str]
    drops_damaged: bool


@dataclass(frozen=True, kw_only=True)
class ShardChoice:
    """What stays of a shard; `index` None where nothing does."""

    shard: Shard | None
    index: bytes | None
    found: frozenset[str]
    """The keys of the list that name a sample of this shard."""
    num_damaged: int


@dataclass(frozen=True, kw_only=True)
class ExcludeSummary:
    """What was left out."""

    manifest: Manifest
    num_listed: int
    num_damaged: int
    unknown_keys: tuple[str, ...]
    """Keys of the list that name no sample."""
    seconds: float


def exclude_samples(
    dataset: Dataset,
    *,
    keys: frozenset[str],
    drops_damaged: bool,
    output: Path | None,
    workers: int = 1,
    report: Callable[[int], None] | None = None,
) -> ExcludeSummary:
    """Write the data set without the samples named by `keys`, and with `drops_damaged` those that cannot be read, to `output`.

    None as `output` writes nothing. The tars stay where they are; the manifest, written last, says where. Raises
    `DataError` for damage that is not to be dropped and where nothing would be left, `UsageError` for an output in use.
    """
    started = time.monotonic()
    if output is not None and (output / MANIFEST_NAME).exists():
        raise UsageError(f"{output / MANIFEST_NAME}: exists already and is not overwritten. Give another OUTPUT, or remove it.")
    jobs = [
        ExcludeJob(dataset=dataset, shard=shard, first_id=first_id, keys=keys, drops_damaged=drops_damaged)
        for shard, first_id in zip(dataset.shards, dataset.shard_starts, strict=False)
    ]
    choices = run_jobs(choose_rows, jobs, workers=workers, report=report)
    manifest = _manifest(dataset, choices=choices)
    if output is not None:
        with output_errors(output):
            _write(choices, manifest=manifest, output=output)
    num_damaged = sum(choice.num_damaged for choice in choices)
    return ExcludeSummary(
        manifest=manifest,
        num_listed=dataset.num_samples - manifest.num_samples - num_damaged,
        num_damaged=num_damaged,
        unknown_keys=tuple(sorted(keys.difference(*(choice.found for choice in choices)))),
        seconds=time.monotonic() - started,
    )


def choose_rows(job: ExcludeJob, advance: Advance) -> ShardChoice:
    """Look through one shard; `advance(n)` is called as samples are done. Raises `DataError` for damage, unless it is dropped."""
    reader = SampleReader(job.dataset)
    kept: list[int] = []
    found: set[str] = set()
    num_damaged = 0
    for first in range(0, job.shard.num_samples, _SAMPLES_AT_ONCE):
        stop = min(first + _SAMPLES_AT_ONCE, job.shard.num_samples)
        for sample in scan_chosen(reader, range(job.first_id + first, job.first_id + stop)):
            if isinstance(sample, LostSample):
                if not job.drops_damaged:
                    raise DataError(f"{sample.reason} Or add --damaged to leave out what cannot be read.")
                num_damaged += 1
            elif sample.key.strip() in job.keys:
                found.add(sample.key.strip())
            else:
                kept.append(sample.sample_id - job.first_id)
        advance(stop - first)
    if not kept:
        return ShardChoice(shard=None, index=None, found=frozenset(found), num_damaged=num_damaged)
    index = encode_index(np.ascontiguousarray(job.dataset.read_index(job.shard)[kept]))
    shard = job.shard.model_copy(update={"num_samples": len(kept), "index_sha256": hashlib.sha256(index).hexdigest()})
    if num_damaged:
        shard = _as_it_is(shard, dataset=job.dataset)
    return ShardChoice(shard=shard, index=index, found=frozenset(found), num_damaged=num_damaged)


def _as_it_is(shard: Shard, *, dataset: Dataset) -> Shard:
    """The shard with the size and sha256 that its damaged tar has now."""
    file = RangeFile(dataset.storage, shard.name)
    while file.read(_READ_BYTES):
        pass
    return shard.model_copy(update={"bytes": file.size, "sha256": file.sha256})


def _manifest(dataset: Dataset, *, choices: Sequence[ShardChoice]) -> Manifest:
    shards = tuple(choice.shard for choice in choices if choice.shard is not None)
    if not shards:
        raise DataError(f"{dataset.storage.root}: not one sample would be left. Look at the list of keys.")
    old = dataset.manifest
    num_samples = sum(shard.num_samples for shard in shards)
    history: dict[str, str | int] = {"excluded_from": dataset.sha256, "excluded": old.num_samples - num_samples}
    root = old.shards_root or dataset.storage.root
    if old.shards_root is None and isinstance(dataset.storage, LocalStorage):
        root = os.path.abspath(root)
    return old.model_copy(update={"num_samples": num_samples, "shards": shards, "source": {**old.source, **history}, "shards_root": root})


def _write(choices: Sequence[ShardChoice], *, manifest: Manifest, output: Path) -> None:
    """The manifest last: without it the folder is no data set."""
    output.mkdir(parents=True, exist_ok=True)
    for choice in choices:
        if choice.shard is not None and choice.index is not None:
            path = output / index_name(choice.shard.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, choice.index)
    replace_file(output / MANIFEST_NAME, encode_manifest(manifest))
