"""Checks a data set that exists: every byte of tars and indexes, or a random share of the samples, with a finding per fault."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vitscale.config import DataError
from vitscale.data.dataset import Dataset
from vitscale.data.images.decode import IMAGE_MEMBERS, decode_image_member
from vitscale.data.index import IndexTable, scan_samples
from vitscale.data.manifest import Shard
from vitscale.data.reader import SampleReader
from vitscale.data.types import RawSample
from vitscale.data.ustar import MalformedTarError, parse_sample

from .atomic import replace_file
from .jobs import Advance, run_jobs
from .kept_results import Form, keeping
from .range_file import RangeFile
from .samples import Part, chosen, scan_chosen

_NUM_SHOWN = 20
_SAMPLES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """One shard to check; `first_id` is the flat index of its first sample."""

    dataset: Dataset
    shard: Shard
    first_id: int
    fraction: float
    """1: every byte; less: this share of the samples, the same ones each time."""
    decodes: bool
    """Whether images are decoded as well."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What was found in one shard."""

    name: str
    num_samples: int
    num_checked: int
    num_damaged: int
    """Samples that a run could not read."""
    findings: tuple[str, ...]
    """What is wrong, a sentence each: first what concerns the whole shard, then the first samples; empty for a sound shard."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was found in a data set."""

    root: str
    shards: tuple[ShardReport, ...]
    seconds: float

    @property
    def is_sound(self) -> bool:
        return not any(shard.findings for shard in self.shards)

    @property
    def num_damaged(self) -> int:
        return sum(shard.num_damaged for shard in self.shards)


def verify_dataset(
    dataset: Dataset,
    *,
    fraction: float = 1.0,
    decodes: bool = False,
    work: Path | None = None,
    workers: int = 1,
    report: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Check every shard; `report(n)` is called with the number of samples done. Damage is reported, not raised.

    With `fraction` 1 the sha256 of every tar and index and the scan of every tar are compared with the manifest and the
    index, and every sample is parsed; with less only the crc32 of that share of the samples, and they are parsed.
    `dataset` need not be sound: see `open_unchecked`. What is done is kept in the folder `work` until all is.
    """
    started = time.monotonic()
    jobs = [
        VerifyJob(dataset=dataset, shard=shard, first_id=first_id, fraction=fraction, decodes=decodes)
        for shard, first_id in zip(dataset.shards, dataset.shard_starts, strict=False)
    ]
    with keeping(verify_shard, folder=work, form=_REPORTS) as task:
        shards = run_jobs(task, jobs, workers=workers, report=report)
    return VerifyReport(root=dataset.index_storage.root, shards=tuple(shards), seconds=time.monotonic() - started)


def verify_shard(job: VerifyJob, advance: Advance) -> ShardReport:
    """Check one shard; `advance(n)` is called as samples are done."""
    shard = job.shard
    try:
        size = job.dataset.storage.size(shard.name)
        table = job.dataset.read_index(shard)
    except DataError as error:
        advance(shard.num_samples)
        return _report(job, num_checked=0, num_damaged=shard.num_samples, findings=[str(error)])
    findings = [] if size == shard.bytes else [f"{shard.name}: {size} bytes, the manifest says {shard.bytes}."]
    part = Part(first=job.first_id, stop=job.first_id + shard.num_samples)
    numbers = chosen(part, fraction=job.fraction, purpose="verify")
    if job.fraction == 1.0 and not findings:
        findings += _whole_problems(job, table=table)
    if job.fraction == 1.0 and not findings and not job.decodes:
        advance(len(numbers))
        return _report(job, num_checked=len(numbers), num_damaged=0, findings=findings)
    damaged = _damaged_samples(job, numbers=numbers, advance=advance)
    return _report(job, num_checked=len(numbers), num_damaged=len(damaged), findings=findings + damaged)


def write_report(report: VerifyReport, path: Path) -> None:
    """The findings as JSON. Raises `OSError`."""
    values = {"root": report.root, "is_sound": report.is_sound, "shards": [asdict(shard) for shard in report.shards]}
    replace_file(path, (json.dumps(values, indent=2) + "\n").encode())


def _whole_problems(job: VerifyJob, *, table: IndexTable) -> list[str]:
    """What is wrong with the tar as a whole: found in one pass from front to back."""
    shard = job.shard
    path = f"{job.dataset.storage.root}/{shard.name}"
    file = RangeFile(job.dataset.storage, shard.name)
    found: dict[int, tuple[int, int]] = {}
    try:
        for sample in scan_samples(file, path=path):
            parse_sample(memoryview(sample.raw))
            offset, length, crc = sample.row
            found[offset] = length, crc
    except (DataError, MalformedTarError) as error:
        return [str(error)]
    if file.sha256 != shard.sha256:
        return [f"{shard.name}: its sha256 is {file.sha256}, the manifest says {shard.sha256}."]
    missing = [row for row, (offset, length, crc) in enumerate(table.tolist()) if found.get(offset) != (length, crc)]
    if missing:
        return [f"{shard.name}: its index does not fit: {len(missing)} rows name no sample, the first is row {missing[0]}."]
    return []


def _damaged_samples(job: VerifyJob, *, numbers: Sequence[int], advance: Advance) -> list[str]:
    """A sentence for each of these samples that a run could not read."""
    reader = SampleReader(job.dataset)
    damaged = []
    for start in range(0, len(numbers), _SAMPLES_AT_ONCE):
        chunk = numbers[start : start + _SAMPLES_AT_ONCE]
        for sample in scan_chosen(reader, chunk):
            if not isinstance(sample, RawSample):
                damaged.append(sample.reason)
            elif job.decodes and (problem := _image_problem(sample)):
                damaged.append(problem)
        advance(len(chunk))
    advance(job.shard.num_samples - len(numbers))
    return damaged


def _image_problem(sample: RawSample) -> str | None:
    if not any(name in sample.members for name in IMAGE_MEMBERS):
        return None
    try:
        decode_image_member(sample, num_channels=3)
    except DataError as error:
        return str(error)
    return None


def _report(job: VerifyJob, *, num_checked: int, num_damaged: int, findings: Sequence[str]) -> ShardReport:
    shown = tuple(findings[:_NUM_SHOWN])
    more = (f"{job.shard.name}: {len(findings) - _NUM_SHOWN} more.",) if len(findings) > _NUM_SHOWN else ()
    return ShardReport(
        name=job.shard.name, num_samples=job.shard.num_samples, num_checked=num_checked, num_damaged=num_damaged, findings=shown + more
    )


def _result_name(job: VerifyJob) -> str:
    return f"{job.dataset.sha256[:32]}-{job.first_id}-{job.fraction!r}-{job.decodes}.json"


def _encoded(report: ShardReport) -> bytes:
    return json.dumps(asdict(report)).encode()


def _decoded(raw: bytes) -> ShardReport:
    values = json.loads(raw)
    return ShardReport(**{**values, "findings": tuple(values["findings"])})


def _num_samples(job: VerifyJob) -> int:
    return job.shard.num_samples


_REPORTS = Form(name=_result_name, size=_num_samples, encode=_encoded, decode=_decoded)
