"""What an image is recognised by: digests of its bytes and of its pixels, and its perceptual hash; one row per sample."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitscale.config import DataError
from vitscale.data.images.decode import IMAGE_MEMBERS, decode_image_member
from vitscale.data.reader import SampleReader
from vitscale.data.types import RawSample

from .jobs import Advance
from .key_hashes import key_hash
from .perceptual_hash import perceptual_hash
from .samples import Part

FINGERPRINT_DTYPE = np.dtype(
    [
        ("key", "<u8"),
        ("bytes_high", "<u8"),
        ("bytes_low", "<u8"),
        ("pixels_high", "<u8"),
        ("pixels_low", "<u8"),
        ("perceptual", "<u8"),
        ("is_readable", "?"),
        ("has_contrast", "?"),
    ]
)
"""Hash of the key, 128-bit digests, pHash. An unreadable image has bytes only, one without contrast no pHash."""

Fingerprints = npt.NDArray[np.void]

_SAMPLES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class FingerprintJob:
    """Some samples of one of several data sets."""

    set_number: int
    part: Part

    @property
    def num_samples(self) -> int:
        return self.part.stop - self.part.first


def fingerprint_part(job: FingerprintJob, advance: Advance, *, readers: Sequence[SampleReader]) -> Fingerprints:
    """The rows of the part's samples, in order. Raises `DataError` for damaged samples and samples without an image."""
    reader = readers[job.set_number]
    rows = []
    for first in range(job.part.first, job.part.stop, _SAMPLES_AT_ONCE):
        samples = reader.read(first, min(first + _SAMPLES_AT_ONCE, job.part.stop))
        rows += [fingerprint(sample) for sample in samples]
        advance(len(samples))
    return np.array(rows, FINGERPRINT_DTYPE)


def fingerprint(sample: RawSample) -> tuple[int | bool, ...]:
    """One row. Raises `DataError` for a sample without an image; an image that cannot be decoded is marked so."""
    member = next((sample.members[name] for name in IMAGE_MEMBERS if name in sample.members), None)
    if member is None:
        raise DataError(f"{sample.shard}: sample {sample.key!r} has no image, and images are what is compared. Leave the data set out.")
    bytes_digest = _digest(member)
    try:
        image_HWC = decode_image_member(sample, num_channels=3)
    except DataError:
        return key_hash(sample.key), *bytes_digest, 0, 0, 0, False, False
    pixels_digest = _digest(image_HWC.data, shape=b"%d %d" % image_HWC.shape[:2])
    perceptual = perceptual_hash(image_HWC)
    return key_hash(sample.key), *bytes_digest, *pixels_digest, perceptual or 0, True, perceptual is not None


def decode_rows(raw: bytes) -> Fingerprints:
    """Rows from the bytes of a .npy file. Raises `ValueError` for anything else."""
    try:
        table: Fingerprints = np.load(io.BytesIO(raw), allow_pickle=False)
    except EOFError as error:
        raise ValueError(str(error)) from None
    if table.dtype != FINGERPRINT_DTYPE:
        raise ValueError(f"rows of another kind ({table.dtype})")
    return table


def _digest(data: memoryview, *, shape: bytes = b"") -> tuple[int, int]:
    digest = hashlib.blake2b(data, digest_size=16, person=shape).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
