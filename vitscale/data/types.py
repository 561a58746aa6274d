"""What travels through the data path: a sample as read, the transform that decodes it, and the batch of named tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitscale.dist.seeding import CounterRng

Batch = dict[str, Tensor]
"""Named tensors whose first dimension is the sample.

Besides what the sample transform makes, every batch has `sample_id` (int64, the index in the data set) and `epoch` (int64).
"""

SampleFields = dict[str, npt.NDArray[np.generic] | int | float]
"""What a transform makes of one sample: one array or number per batch key; shapes are equal for all samples of a run."""


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One sample as it lies in the tar: undecoded members by extension (`"png"`, `"cls"`)."""

    sample_id: int
    epoch: int
    key: str
    shard: str
    members: Mapping[str, memoryview]


class SampleTransform(Protocol):
    """Decodes and augments one sample. Runs in loader workers: pure and picklable.

    All its randomness comes from `rng`, which is keyed by (seed, epoch, sample id), so that a sample looks the same
    whichever worker of whichever rank prepares it. Raises `DataError` naming shard and key for what cannot be decoded.
    """

    def __call__(self, sample: RawSample, rng: CounterRng) -> SampleFields: ...
