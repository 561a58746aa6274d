"""Writes one shard, tar and index, from a plan that says exactly what goes in: the same bytes in any process."""

import hashlib
import json
import os
import secrets
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitscale.data.index import INDEX_DTYPE, encode_index, index_name
from vitscale.data.manifest import Shard
from vitscale.data.ustar import END_OF_ARCHIVE, is_safe_name, member_bytes

from .atomic import flush_folder, write_durably
from .images import ImagePolicy, prepare_image
from .split import Split, UnusableImageError
from .staging import Staging

_WRITE_BYTES = 1 << 22
_LONGEST_NAME = 100  # what the header of a ustar member holds


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard to write: `name` is its path inside the output, and `split` holds its samples in order."""

    name: str
    split: Split
    policy: ImagePolicy
    staging: Staging


@dataclass(frozen=True, kw_only=True)
class SkippedSample:
    """A sample that could not be packed."""

    origin: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What was written; `shard` is None, and there are no files, where not one sample could be."""

    name: str
    shard: Shard | None
    extensions: tuple[str, ...]
    traits: Mapping[str, int]
    """How many packed images have each trait."""
    skipped: tuple[SkippedSample, ...]

    @property
    def num_samples(self) -> int:
        """Samples that were dealt with, packed or not."""
        return len(self.skipped) + (0 if self.shard is None else self.shard.num_samples)


def write_shard(job: ShardJob, *, advance: Callable[[int], None]) -> ShardResult:
    """Write tar and index, flush them, move them into their place and record the result; `advance(n)` is called as samples are done.

    Whoever stops it at whatever moment, the shard is whole and recorded, or it will be written again. Raises `OSError` for
    the disk. Unusable samples are left out and told.
    """
    staging = job.staging
    scratch = staging.scratch / f"{Path(job.name).name}.{secrets.token_hex(8)}"
    scratch_index = scratch.with_name(index_name(scratch.name))
    try:
        with open(scratch, "xb", buffering=_WRITE_BYTES) as file:
            writer = _Writer(file)
            writer.write_samples(job, advance=advance)
            file.flush()
            os.fsync(file.fileno())
        result = writer.result(job.name)
        if result.shard is not None:
            final = staging.contents / job.name
            write_durably(scratch_index, writer.index)
            os.replace(scratch_index, final.with_name(index_name(final.name)))
            os.replace(scratch, final)
            flush_folder(final.parent)
    finally:
        scratch.unlink(missing_ok=True)
        scratch_index.unlink(missing_ok=True)
    staging.record(job.name, _result_text(result))
    return result


def recorded_result(staging: Staging, name: str) -> ShardResult | None:
    """What `write_shard` recorded of the shard `name` in an earlier attempt; None unless its files are there in their full size."""
    text = staging.recorded(name)
    if text is None:
        return None
    try:
        values = json.loads(text)
        skipped = tuple(SkippedSample(**sample) for sample in values.pop("skipped"))
        shard = None if values["shard"] is None else Shard.model_validate_json(json.dumps(values["shard"]))
        result = ShardResult(**{**values, "shard": shard, "extensions": tuple(values["extensions"]), "skipped": skipped})
    except (ValueError, KeyError, TypeError):
        return None  # written by another version: the shard is written again
    path = staging.contents / name
    if result.name != name or (shard is not None and not _has_size(path, shard.bytes)):
        return None
    return result if shard is None or path.with_name(index_name(path.name)).is_file() else None


class _Writer:
    """The growing tar and all that is told about it in the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._offset = 0
        self._rows: list[tuple[int, int, int]] = []
        self._extensions: set[str] = set()
        self._traits: Counter[str] = Counter()
        self._skipped: list[SkippedSample] = []

    def write_samples(self, job: ShardJob, *, advance: Callable[[int], None]) -> None:
        for index in range(job.split.num_samples):
            try:
                members = self._members(job, index=index)
            except UnusableImageError as error:
                self._skipped.append(SkippedSample(origin=job.split.images.origin(index), reason=str(error)))
            else:
                self._write_sample(members, key=job.split.key(index))
            advance(1)
        self._append(END_OF_ARCHIVE)

    def result(self, name: str) -> ShardResult:
        shard = (
            Shard(
                name=Path(name).name,
                bytes=self._offset,
                num_samples=len(self._rows),
                sha256=self._digest.hexdigest(),
                index_sha256=hashlib.sha256(self.index).hexdigest(),
            )
            if self._rows
            else None
        )
        return ShardResult(
            name=name,
            shard=shard,
            extensions=tuple(sorted(self._extensions)),
            traits=dict(sorted(self._traits.items())),
            skipped=tuple(self._skipped),
        )

    @property
    def index(self) -> bytes:
        return encode_index(np.array(self._rows, INDEX_DTYPE))

    def _members(self, job: ShardJob, *, index: int) -> dict[str, bytes]:
        """Payload by extension, the image first."""
        split = job.split
        record = split.images.read(index)
        if split.is_sound and job.policy.transcode is None:
            assert record.extension is not None
            image = {record.extension: record.image}
        else:
            prepared = prepare_image(record.image, policy=job.policy, claimed=record.extension)
            image = {prepared.extension: prepared.data}
            self._traits.update(prepared.traits)
        members = {**image, **split.members(index), **dict(sorted(record.members.items()))}
        key = split.key(index)
        if not is_safe_name(key) or max(len(key) + 1 + len(extension) for extension in members) > _LONGEST_NAME:
            raise UnusableImageError(f"its key {key!r} cannot name a member: letters, digits and ._-/ only, at most 95 characters")
        return members

    def _write_sample(self, members: Mapping[str, bytes], *, key: str) -> None:
        data = b"".join(member_bytes(f"{key}.{extension}", payload=payload) for extension, payload in members.items())
        self._rows.append((self._offset, len(data), zlib.crc32(data)))
        self._extensions.update(members)
        self._append(data)

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._offset += len(data)


def _result_text(result: ShardResult) -> str:
    values = {
        "name": result.name,
        "shard": None if result.shard is None else result.shard.model_dump(mode="json"),
        "extensions": result.extensions,
        "traits": result.traits,
        "skipped": [{"origin": sample.origin, "reason": sample.reason} for sample in result.skipped],
    }
    return json.dumps(values)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
