"""Writes one shard, tar and index, from a plan that says exactly what goes in: the same bytes in any process."""

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitscale.data.index import INDEX_DTYPE, encode_index, index_name
from vitscale.data.manifest import Shard
from vitscale.data.ustar import BLOCK_BYTES, END_OF_ARCHIVE, member_bytes, padded_bytes

from .split import IntArray, LabelledImage, Split, UnusableImageError
from .staging import write_durably

_WRITE_BYTES = 1 << 22
_NUM_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard to write: `split` holds its samples in order, `source_indices` says what they are called in the source."""

    path: Path
    split: Split
    source_indices: IntArray
    key_prefix: str


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What was written; `num_unusable` and the first few reasons if some samples could not be."""

    shard: Shard | None
    extensions: frozenset[str]
    num_unusable: int
    unusable: tuple[str, ...]


def write_shard(job: ShardJob, *, advance: Callable[[int], None]) -> ShardResult:
    """Write and flush the tar and its index; `advance(n)` is called as samples are done. Raises `OSError` for the disk.

    Unusable samples are counted to the end of the shard, so that one run reports them all.
    """
    rows: list[tuple[int, int, int]] = []
    extensions: set[str] = set()
    unusable: list[str] = []
    digest = hashlib.sha256()
    offset = 0
    with open(job.path, "xb", buffering=_WRITE_BYTES) as file:

        def append(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        for index, source_index in enumerate(job.source_indices.tolist()):
            try:
                sample = job.split.read(index)
            except UnusableImageError as error:
                unusable.append(f"{job.split.origin(index)} ({error})")
                continue
            data = _sample_bytes(sample, key=f"{job.key_prefix}{source_index:09d}")
            append(data)
            rows.append((offset, len(data), zlib.crc32(data)))
            extensions.update((sample.extension, "cls"))
            offset += len(data)
            advance(1)
        append(END_OF_ARCHIVE)
        file.flush()
        os.fsync(file.fileno())
    if unusable:
        return ShardResult(shard=None, extensions=frozenset(), num_unusable=len(unusable), unusable=tuple(unusable[:_NUM_SHOWN]))
    index_raw = encode_index(np.array(rows, INDEX_DTYPE))
    write_durably(job.path.with_name(index_name(job.path.name)), index_raw)
    shard = Shard(
        name=job.path.name,
        bytes=offset + len(END_OF_ARCHIVE),
        num_samples=len(rows),
        sha256=digest.hexdigest(),
        index_sha256=hashlib.sha256(index_raw).hexdigest(),
    )
    return ShardResult(shard=shard, extensions=frozenset(extensions), num_unusable=0, unusable=())


def sample_tar_bytes(image_bytes: IntArray) -> IntArray:
    """What samples with images of these sizes take in a tar: two headers, the image, the label."""
    return 3 * BLOCK_BYTES + -(-image_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _sample_bytes(sample: LabelledImage, *, key: str) -> bytes:
    assert padded_bytes(len(str(sample.label))) == BLOCK_BYTES
    image = member_bytes(f"{key}.{sample.extension}", payload=sample.image)
    return image + member_bytes(f"{key}.cls", payload=b"%d" % sample.label)
