"""Goes through the samples of a data set in parts, for the tools that look at every one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitscale.config import DataError
from vitscale.data.dataset import Dataset
from vitscale.data.images.decode import IMAGE_MEMBERS, decode_image_member
from vitscale.data.reader import SampleReader
from vitscale.data.types import LostSample, RawSample
from vitscale.dist.seeding import counter_key, mix, mix_array

_SAMPLES_PER_PART = 1024


@dataclass(frozen=True, kw_only=True)
class Part:
    """Neighbouring samples, [first, stop) by flat index."""

    first: int
    stop: int


def parts(dataset: Dataset, *, samples_per_part: int = _SAMPLES_PER_PART) -> list[Part]:
    """The whole data set in parts of about equal size; the cuts depend on the number of samples alone."""
    num_samples = dataset.num_samples
    return [Part(first=first, stop=min(first + samples_per_part, num_samples)) for first in range(0, num_samples, samples_per_part)]


def chosen(part: Part, *, fraction: float, purpose: str) -> Sequence[int]:
    """A share of the part's samples that depends on their numbers and the purpose alone; at least one of them."""
    numbers = range(part.first, part.stop)
    if fraction >= 1.0:
        return numbers
    key, limit = counter_key(purpose), int(fraction * (1 << 64))
    drawn = mix_array(np.arange(part.first, part.stop, dtype=np.uint64) ^ np.uint64(key))
    places: list[int] = np.flatnonzero(drawn < np.uint64(limit)).tolist()
    return [part.first + place for place in places] or [part.first + mix(key ^ part.first) % len(numbers)]


def scan_chosen(reader: SampleReader, numbers: Sequence[int]) -> list[RawSample | LostSample]:
    """The samples of these rising numbers, neighbours fetched together.

    A fetch that fails loses all it was for: what is lost is fetched again by itself, which tells what is still there.
    """
    samples: list[RawSample | LostSample] = []
    for run in _runs(numbers):
        for sample in reader.scan(run.first, run.stop, epoch=0):
            is_open = isinstance(sample, LostSample) and run.stop - run.first > 1
            samples += reader.scan(sample.sample_id, sample.sample_id + 1, epoch=0) if is_open else [sample]
    return samples


def image_problem(sample: RawSample) -> str | None:
    """Why the sample's image cannot be decoded; None for one that can, and for a sample without an image."""
    if not any(name in sample.members for name in IMAGE_MEMBERS):
        return None
    try:
        decode_image_member(sample, num_channels=3)
    except DataError as error:
        return str(error)
    return None


def _runs(numbers: Sequence[int]) -> list[Part]:
    runs: list[Part] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = Part(first=runs[-1].first, stop=number + 1)
        else:
            runs.append(Part(first=number, stop=number + 1))
    return runs
