"""Checks a data set that exists: every byte of tars and indexes, or a random share of the samples, with a finding per fault."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from vitscale.config import DataError
from vitscale.data.dataset import Dataset, ShardSpan
from vitscale.data.index import IndexTable, scan_samples
from vitscale.data.reader import SampleReader
from vitscale.data.types import RawSample, UnreachableDataError
from vitscale.data.ustar import MalformedTarError, parse_sample

from .atomic import replace_file
from .jobs import Advance, in_order
from .kept_results import Form, KeptFolder, kept_results
from .range_file import RangeFile
from .samples import Part, chosen, image_problem, scan_chosen
from .shard_states import ShardStates

_NUM_SHOWN = 20
_SAMPLES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is checked, and how closely. Picklable."""

    dataset: Dataset
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
    kept: KeptFolder | None = None,
    workers: int = 1,
    report: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Check every shard; `report(n)` is called with the number of samples done. Damage is reported, not raised.

    With `fraction` 1 the sha256 of every tar and index and the scan of every tar are compared with the manifest and the
    index, and every sample is parsed; with less only the crc32 of that share of the samples, and they are parsed.
    `dataset` need not be sound: see `open_unchecked`. Shards that `kept` has the report of, as they are now, are not read
    again. Raises `UnreachableDataError` where a store does not answer, which is no damage.
    """
    started = time.monotonic()
    spans = dataset.spans(0, dataset.num_samples)
    task = partial(verify_shard, check=Check(dataset=dataset, fraction=fraction, decodes=decodes))
    form = _form(ShardStates(dataset))
    shards = in_order(kept_results(task, spans, kept=kept or KeptFolder(), form=form, workers=workers, report=report))
    return VerifyReport(root=dataset.index_storage.root, shards=tuple(shards), seconds=time.monotonic() - started)


def verify_shard(span: ShardSpan, advance: Advance, *, check: Check) -> ShardReport:
    """Check one whole shard; `advance(n)` is called as samples are done."""
    shard = span.shard
    told = _Told(advance, limit=shard.num_samples)
    try:
        size = check.dataset.storage.size(shard.name)
        table = check.dataset.read_index(shard)
    except UnreachableDataError:
        raise
    except DataError as error:
        told.finish()
        return _report(span, num_checked=0, num_damaged=shard.num_samples, findings=[str(error)])
    findings = [] if size == shard.bytes else [f"{shard.name}: {size} bytes, the manifest says {shard.bytes}."]
    part = Part(first=span.first_id, stop=span.first_id + shard.num_samples)
    numbers = chosen(part, fraction=check.fraction, purpose="verify")
    if check.fraction == 1.0 and not findings:
        # Where images are decoded as well, that is what takes the time.
        findings += _whole_problems(span, table=table, dataset=check.dataset, advance=_untold if check.decodes else told.advance)
    if check.fraction == 1.0 and not findings and not check.decodes:
        told.finish()
        return _report(span, num_checked=len(numbers), num_damaged=0, findings=findings)
    damaged = _damaged_samples(check, numbers=numbers, advance=told.advance)
    told.finish()
    return _report(span, num_checked=len(numbers), num_damaged=len(damaged), findings=findings + damaged)


def write_report(report: VerifyReport, path: Path) -> None:
    """The findings as JSON. Raises `OSError`."""
    values = {"root": report.root, "is_sound": report.is_sound, "shards": [asdict(shard) for shard in report.shards]}
    replace_file(path, (json.dumps(values, indent=2) + "\n").encode())


class _Told:
    """Passes on what is done of one shard, all of it once, although damage makes samples be looked at twice."""

    def __init__(self, advance: Advance, *, limit: int) -> None:
        self._advance = advance
        self._left = limit

    def advance(self, count: int) -> None:
        count = min(count, self._left)
        self._left -= count
        self._advance(count)

    def finish(self) -> None:
        self.advance(self._left)


def _untold(_: int) -> None:
    pass


def _whole_problems(span: ShardSpan, *, table: IndexTable, dataset: Dataset, advance: Advance) -> list[str]:
    """What is wrong with the tar as a whole: found in one pass from front to back."""
    shard = span.shard
    path = f"{dataset.storage.root}/{shard.name}"
    file = RangeFile(dataset.storage, shard.name)
    found: dict[int, tuple[int, int]] = {}
    try:
        for sample in scan_samples(file, path=path):
            parse_sample(memoryview(sample.raw))
            offset, length, crc = sample.row
            found[offset] = length, crc
            if len(found) % _SAMPLES_AT_ONCE == 0:
                advance(_SAMPLES_AT_ONCE)
    except UnreachableDataError:
        raise
    except (DataError, MalformedTarError) as error:
        return [str(error)]
    if file.sha256 != shard.sha256:
        return [f"{shard.name}: its sha256 is {file.sha256}, the manifest says {shard.sha256}."]
    missing = [row for row, (offset, length, crc) in enumerate(table.tolist()) if found.get(offset) != (length, crc)]
    if missing:
        return [f"{shard.name}: its index does not fit: {len(missing)} rows name no sample, the first is row {missing[0]}."]
    return []


def _damaged_samples(check: Check, *, numbers: Sequence[int], advance: Advance) -> list[str]:
    """A sentence for each of these samples that a run could not read."""
    reader = SampleReader(check.dataset)
    damaged = []
    for start in range(0, len(numbers), _SAMPLES_AT_ONCE):
        chunk = numbers[start : start + _SAMPLES_AT_ONCE]
        for sample in scan_chosen(reader, chunk):
            if not isinstance(sample, RawSample):
                damaged.append(sample.reason)
            elif check.decodes and (problem := image_problem(sample)):
                damaged.append(problem)
        advance(len(chunk))
    return damaged


def _report(span: ShardSpan, *, num_checked: int, num_damaged: int, findings: Sequence[str]) -> ShardReport:
    shown = tuple(findings[:_NUM_SHOWN])
    name = span.shard.name
    more = (f"{name}: {len(findings) - _NUM_SHOWN} more.",) if len(findings) > _NUM_SHOWN else ()
    return ShardReport(
        name=name, num_samples=span.shard.num_samples, num_checked=num_checked, num_damaged=num_damaged, findings=shown + more
    )


def _form(states: ShardStates) -> Form[ShardSpan, ShardReport]:
    return Form(
        name=lambda span: f"{span.first_id}-{states.of(span.first_id, span.first_id + 1)}.json",
        size=lambda span: span.shard.num_samples,
        encode=_encoded,
        decode=lambda _, raw: _decoded(raw),
        lasts=lambda report: states.show_changes or not report.findings,
    )


def _encoded(report: ShardReport) -> bytes:
    return json.dumps(asdict(report)).encode()


def _decoded(raw: bytes) -> ShardReport:
    values = json.loads(raw)
    return ShardReport(**{**values, "findings": tuple(values["findings"])})
