"""Indexes one foreign tar: writes its index, and a record by which a killed run finds it finished."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from vitscale.config import Config, DataError
from vitscale.data.index import INDEX_DTYPE, ScannedSample, encode_index, index_name, scan_samples
from vitscale.data.labels import LABEL_MEMBER
from vitscale.data.manifest import Shard
from vitscale.data.storage.storage import Storage
from vitscale.data.types import StoredFile, UnreachableDataError
from vitscale.data.ustar import parse_sample

from .atomic import replace_array, replace_file
from .jobs import Advance
from .key_hashes import key_table
from .range_file import RangeFile

PICKLES = frozenset({"pickle", "pkl", "pt", "pth", "pyd"})
"""Last parts of extensions whose members run code when a careless reader decodes them."""

_LONGEST_LABEL = 18  # digits that surely fit int64
_ADVANCE_BYTES = 1 << 20
_NUM_SHOWN = 3
_NUM_SHOWN_CHARACTERS = 20


@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """One tar to index: `storage` has it, the index goes to `output`, what only this command needs to `work`."""

    storage: Storage
    file: StoredFile
    """The tar."""
    output: Path
    work: Path
    num_classes: int | None
    """Labels must be below it; None takes any."""
    allow_pickles: bool


class ShardRecord(Config):
    """What is known of an indexed tar."""

    fingerprint: str
    """Of the tar before it was read, its size and version, and of the options."""
    shard: Shard
    members: tuple[str, ...]
    num_labels: int | None = Field(ge=1)
    """One more than the largest label; None where a sample has no label or one that is not a whole number."""
    num_passed_over: int
    passed_over: tuple[str, ...]
    """The first few members that belong to no sample."""


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A tar that cannot be indexed, and why, in a sentence that names it."""

    problem: str


def index_shard(job: IndexJob, advance: Advance) -> ShardRecord | Unusable:
    """Index the tar unless a record says that it is done; `advance(n)` is called with the bytes read. Raises `OSError`, and
    `UnreachableDataError` where it cannot be read now."""
    try:
        known = read_record(job)
        if known is not None:
            advance(known.shard.bytes)
            return known
        return _index(job, advance)
    except UnreachableDataError:  # says nothing about the tar
        raise
    except DataError as error:
        return Unusable(problem=str(error))


def read_record(job: IndexJob) -> ShardRecord | None:
    """The record of an earlier run if tar, index and options are still those it was made from."""
    try:
        record = ShardRecord.model_validate_json(_record_path(job).read_bytes())
        index = (job.output / index_name(job.file.name)).read_bytes()
    except (OSError, ValidationError):
        return None
    is_same = record.fingerprint == _fingerprint(job) and hashlib.sha256(index).hexdigest() == record.shard.index_sha256
    return record if is_same and keys_path(job).is_file() else None


def keys_path(job: IndexJob) -> Path:
    """Where the hashes of the tar's keys are kept."""
    return job.work / f"{job.file.name}.keys.npy"


def _index(job: IndexJob, advance: Advance) -> ShardRecord:
    name = job.file.name
    path = f"{job.storage.root}/{name}"
    file = RangeFile(job.storage, name, size=job.file.size)
    rows: list[tuple[int, int, int]] = []
    keys: list[str] = []
    members: set[str] = set()
    labels = _Labels(num_classes=job.num_classes, path=path)
    passed_over: list[str] = []
    reported = 0
    for sample in scan_samples(file, path=path, passed_over=passed_over.append):
        if not job.allow_pickles:
            _refuse_pickles(sample, path=path)
        labels.add(sample)
        rows.append(sample.row)
        keys.append(sample.key)
        members.update(sample.extensions)
        if file.position - reported >= _ADVANCE_BYTES:
            advance(file.position - reported)
            reported = file.position
    index = encode_index(np.array(rows, INDEX_DTYPE))
    shard = Shard(name=name, bytes=file.size, num_samples=len(rows), sha256=file.sha256, index_sha256=hashlib.sha256(index).hexdigest())
    record = ShardRecord(
        fingerprint=_fingerprint(job),
        shard=shard,
        members=tuple(sorted(members)),
        num_labels=labels.num_labels,
        num_passed_over=len(passed_over),
        passed_over=tuple(passed_over[:_NUM_SHOWN]),
    )
    _write(job, index=index, keys=keys, record=record)
    advance(file.size - reported)
    return record


def _write(job: IndexJob, *, index: bytes, keys: list[str], record: ShardRecord) -> None:
    """The record last: what it vouches for is there."""
    index_path = job.output / index_name(job.file.name)
    index_path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(index_path, index)
    keys_path(job).parent.mkdir(parents=True, exist_ok=True)
    replace_array(keys_path(job), key_table(keys))
    replace_file(_record_path(job), json.dumps(record.model_dump(mode="json")).encode())


def _record_path(job: IndexJob) -> Path:
    return job.work / f"{job.file.name}.json"


def _fingerprint(job: IndexJob) -> str:
    return f"{job.file.size} {job.file.version} {job.num_classes} {job.allow_pickles}"


class _Labels:
    """Follows the labels of a tar's samples."""

    def __init__(self, *, num_classes: int | None, path: str) -> None:
        self._num_classes = num_classes
        self._path = path
        self._largest = -1
        self._are_numbers = True

    @property
    def num_labels(self) -> int | None:
        return self._largest + 1 if self._are_numbers and self._largest >= 0 else None

    def add(self, sample: ScannedSample) -> None:
        """Raises `DataError` where class names were given and the sample has no label, or one that is not among them."""
        members = parse_sample(memoryview(sample.raw))[1]
        text = bytes(members[LABEL_MEMBER]) if LABEL_MEMBER in members else None
        labels = None if text is None else _numbers(text)
        if self._num_classes is not None and not self._are_named(labels, has_json="json" in members and text is None):
            found = "no member .cls" if text is None else f"the label {text[:_NUM_SHOWN_CHARACTERS].decode(errors='replace')!r}"
            raise DataError(
                f"{self._path}: sample {sample.key!r} has {found}, but --classes names the labels 0 to {self._num_classes - 1}. "
                "Give the file with all class names in label order, or leave --classes out."
            )
        if labels is None:
            self._are_numbers = False
        else:
            self._largest = max(self._largest, *labels, -1)

    def _are_named(self, labels: list[int] | None, *, has_json: bool) -> bool:
        assert self._num_classes is not None
        # What lies in JSON only the run's configuration can tell.
        return has_json if labels is None else all(label < self._num_classes for label in labels)


def _numbers(text: bytes) -> list[int] | None:
    """One label, or several or none with spaces between; None where there is anything else."""
    parts = text.split()
    return [int(part) for part in parts] if all(part.isdigit() and len(part) <= _LONGEST_LABEL for part in parts) else None


def _refuse_pickles(sample: ScannedSample, *, path: str) -> None:
    for extension in sample.extensions:
        if extension.rpartition(".")[2] in PICKLES:
            raise DataError(
                f"{path}: sample {sample.key!r} has a pickled member .{extension}, which can run code in readers that decode it. "
                "vitscale never does: add --allow-pickles to index the tar and leave such members unread."
            )
