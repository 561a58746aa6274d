"""Makes a data set without some samples of another: new indexes and a manifest for the same tars, which are not touched."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vitscale.config import DataError, UsageError
from vitscale.data.dataset import Dataset, ShardSpan
from vitscale.data.index import encode_index, index_name
from vitscale.data.manifest import MANIFEST_NAME, Manifest, Shard, encode_manifest
from vitscale.data.reader import SampleReader
from vitscale.data.storage.storage import LocalStorage
from vitscale.data.types import LostSample, RawSample

from .atomic import check_local, flush_folder, output_errors, replace_file
from .jobs import Advance, in_order
from .kept_results import Form, KeptFolder, Say, kept_folder, kept_results
from .range_file import RangeFile
from .samples import image_problem, scan_chosen
from .shard_states import ShardStates

WORK_FOLDER = ".vitscale-exclude"

_SAMPLES_AT_ONCE = 256
_READ_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ExcludeJob:
    """One whole shard whose samples are looked through."""

    span: ShardSpan
    name: str
    """What this shard as it is now, with these options, is called among the kept results."""
    index: Path | None
    """Where the new index lies until all are done; None writes nothing."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which samples are left out. Picklable."""

    dataset: Dataset
    keys: frozenset[str]
    drops_damaged: bool
    decodes: bool
    """Whether an image that cannot be decoded counts as damaged."""

    def digest(self) -> str:
        """Equal for choices that leave out the same."""
        values = [self.dataset.sha256, sorted(self.keys), self.drops_damaged, self.decodes]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class ShardChoice:
    """What stays of a shard; `shard` None where nothing does."""

    shard: Shard | None
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
    decodes: bool = False,
    output: Path | None,
    workers: int = 1,
    report: Callable[[int], None] | None = None,
    say: Say = lambda _: None,
) -> ExcludeSummary:
    """Write the data set without the samples named by `keys`, and with `drops_damaged` those that cannot be read, to `output`.

    With `decodes` an image that cannot be decoded counts as damage too. None as `output` writes nothing. The tars stay where
    they are; the manifest, written last, says where. A command that was killed finds the shards that it has looked through,
    kept in the output, when it is started again. Raises `DataError` for damage that is not to be dropped and where nothing
    would be left, `UsageError` for an output in use.
    """
    started = time.monotonic()
    if output is not None:
        check_local(output)
        if (output / MANIFEST_NAME).exists():
            raise UsageError(f"{output / MANIFEST_NAME}: exists already and is not overwritten. Give another OUTPUT, or remove it.")
    choice = Choice(dataset=dataset, keys=keys, drops_damaged=drops_damaged, decodes=decodes)
    states = ShardStates(dataset)
    work = None if output is None else output / WORK_FOLDER
    folder: AbstractContextManager[KeptFolder] = nullcontext(KeptFolder()) if work is None else kept_folder(work, say=say)
    with folder as kept:
        jobs = _jobs(choice, states=states, work=work)
        task = partial(choose_rows, choice=choice, reader=SampleReader(dataset))
        choices = in_order(kept_results(task, jobs, kept=kept, form=_form(states), workers=workers, report=report))
        manifest = _manifest(dataset, choices=choices)
        if output is not None:
            with output_errors(output):
                _publish(jobs, choices=choices, manifest=manifest, output=output)
    num_damaged = sum(of_shard.num_damaged for of_shard in choices)
    return ExcludeSummary(
        manifest=manifest,
        num_listed=dataset.num_samples - manifest.num_samples - num_damaged,
        num_damaged=num_damaged,
        unknown_keys=tuple(sorted(keys.difference(*(of_shard.found for of_shard in choices)))),
        seconds=time.monotonic() - started,
    )


def choose_rows(job: ExcludeJob, advance: Advance, *, choice: Choice, reader: SampleReader) -> ShardChoice:
    """Look through one shard and write its new index; `advance(n)` is called as samples are done.

    Raises `DataError` for damage, unless it is dropped, and `OSError`.
    """
    shard, first_id = job.span.shard, job.span.first_id
    kept: list[int] = []
    found: set[str] = set()
    num_damaged = 0
    for first in range(0, shard.num_samples, _SAMPLES_AT_ONCE):
        stop = min(first + _SAMPLES_AT_ONCE, shard.num_samples)
        for sample in scan_chosen(reader, range(first_id + first, first_id + stop)):
            if isinstance(sample, RawSample) and sample.key.strip() in choice.keys:
                found.add(sample.key.strip())
                continue
            problem = _problem(sample, decodes=choice.decodes)
            if problem is None:
                kept.append(sample.sample_id - first_id)
            elif choice.drops_damaged:
                num_damaged += 1
            else:
                raise DataError(f"{problem} Or add --damaged to leave out what cannot be read.")
        advance(stop - first)
    if not kept:
        return ShardChoice(shard=None, found=frozenset(found), num_damaged=num_damaged)
    index = encode_index(np.ascontiguousarray(choice.dataset.read_index(shard)[kept]))
    shard = shard.model_copy(update={"num_samples": len(kept), "index_sha256": hashlib.sha256(index).hexdigest()})
    if num_damaged:
        shard = _as_it_is(shard, dataset=choice.dataset)
    if job.index is not None:
        replace_file(job.index, index)
    return ShardChoice(shard=shard, found=frozenset(found), num_damaged=num_damaged)


def _problem(sample: RawSample | LostSample, *, decodes: bool) -> str | None:
    if isinstance(sample, LostSample):
        return sample.reason
    return image_problem(sample) if decodes else None


def _jobs(choice: Choice, *, states: ShardStates, work: Path | None) -> list[ExcludeJob]:
    digest = choice.digest()
    jobs = []
    for span in choice.dataset.spans(0, choice.dataset.num_samples):
        name = f"{digest}-{span.first_id}-{states.of(span.first_id, span.first_id + 1)}"
        jobs.append(ExcludeJob(span=span, name=name, index=None if work is None else work / f"{name}.npy"))
    return jobs


def _form(states: ShardStates) -> Form[ExcludeJob, ShardChoice]:
    return Form(
        name=lambda job: f"{job.name}.json",
        size=lambda job: job.span.shard.num_samples,
        encode=_encoded,
        decode=_decoded,
        lasts=lambda of_shard: states.show_changes or not of_shard.num_damaged,
    )


def _encoded(of_shard: ShardChoice) -> bytes:
    shard = None if of_shard.shard is None else of_shard.shard.model_dump(mode="json")
    return json.dumps({"shard": shard, "found": sorted(of_shard.found), "num_damaged": of_shard.num_damaged}).encode()


def _decoded(job: ExcludeJob, raw: bytes) -> ShardChoice:
    """Raises `ValueError` where the new index is not there: an attempt that was killed at its end had moved it already."""
    values = json.loads(raw)
    shard = None if values["shard"] is None else Shard.model_validate_json(json.dumps(values["shard"]))
    if shard is not None and job.index is not None and _digest(job.index) != shard.index_sha256:
        raise ValueError(f"{job.index}: not the index that was written")
    return ShardChoice(shard=shard, found=frozenset(values["found"]), num_damaged=values["num_damaged"])


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _as_it_is(shard: Shard, *, dataset: Dataset) -> Shard:
    """The shard with the size and sha256 that its damaged tar has now."""
    file = RangeFile(dataset.storage, shard.name)
    while file.read(_READ_BYTES):
        pass
    return shard.model_copy(update={"bytes": file.size, "sha256": file.sha256})


def _manifest(dataset: Dataset, *, choices: Sequence[ShardChoice]) -> Manifest:
    shards = tuple(of_shard.shard for of_shard in choices if of_shard.shard is not None)
    if not shards:
        raise DataError(f"{dataset.storage.root}: not one sample would be left. Look at the list of keys.")
    old = dataset.manifest
    num_samples = sum(shard.num_samples for shard in shards)
    history: dict[str, str | int] = {"excluded_from": dataset.sha256, "excluded": old.num_samples - num_samples}
    root = old.shards_root or dataset.storage.root
    if old.shards_root is None and isinstance(dataset.storage, LocalStorage):
        root = os.path.abspath(root)
    return old.model_copy(update={"num_samples": num_samples, "shards": shards, "source": {**old.source, **history}, "shards_root": root})


def _publish(jobs: Sequence[ExcludeJob], *, choices: Sequence[ShardChoice], manifest: Manifest, output: Path) -> None:
    """Move the indexes to their places, and write the manifest last: without it the folder is no data set."""
    folders = {output}
    for job, of_shard in zip(jobs, choices, strict=True):
        if of_shard.shard is not None and job.index is not None:
            path = output / index_name(of_shard.shard.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(job.index, path)
            folders.add(path.parent)
    for folder in folders:
        flush_folder(folder)
    replace_file(output / MANIFEST_NAME, encode_manifest(manifest))
