"""What travels through the data path: a sample as read, the transform that decodes it, and the batch of named tensors."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from vitscale.config import DataError
from vitscale.dist.seeding import CounterRng, DrawSource
from vitscale.nn.input_form import PatchSequence

if TYPE_CHECKING:
    # The tools for data sets read samples too, and start in a fraction of the time without torch.
    from torch import Tensor

Batch = dict[str, "Tensor"]
"""Named tensors whose first dimension is the sample.

Besides what the sample transform makes, every batch has `sample_id` (int64, the index in the data set) and `epoch` (int64).
"""

SampleFields = dict[str, npt.NDArray[np.generic] | int | float]
"""What a transform makes of one sample: one array or number per batch key; shapes are equal for all samples of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSample:
    """One sample as it lies in the tar: undecoded members by extension (`"png"`, `"cls"`)."""

    sample_id: int
    epoch: int
    view: int
    """Names the draws of its transform: `epoch * repeats + repeat`, so the epoch itself where samples are not repeated."""
    key: str
    shard: str
    members: Mapping[str, memoryview]


@dataclass(frozen=True, kw_only=True, slots=True)
class LostSample:
    """A sample whose bytes are gone or not what was packed, and what was trained on in its place; an entry of the ledger."""

    sample_id: int
    epoch: int
    view: int
    shard: str
    reason: str
    replaced_by: int | None = None
    """The sample id taken instead; None until one has been chosen."""
    num_lost: int = 1
    """How many samples this stands for: about the rest of a shard where no index says which they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """What a storage says of a file without reading it."""

    name: str
    """From the storage's root on, with slashes."""
    size: int
    """In bytes."""
    version: str
    """Another text when the file has been written anew: a store's ETag, or the time of the last change and the inode."""


class UnreadableSampleError(DataError):
    """The bytes are those that were packed, but no image can be made of them."""


class UnreachableDataError(DataError):
    """The store did not answer for as long as a read is patient, or this machine lacked what reading takes. What lies there is not
    lost: the run stops and goes on later. Whoever handles a `DataError` as damage lets this one pass."""


JpegDecoder = Literal["simplejpeg", "turbojpeg"]
"""What decodes the crops of JPEG images: simplejpeg comes as a wheel, turbojpeg needs libturbojpeg 3 and is faster."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a model takes, and how images are decoded for it: what an objective's sample transform is built from."""

    image_size: int
    num_channels: int
    jpeg_decoder: JpegDecoder = "simplejpeg"
    draws: Mapping[str, DrawSource] = field(default_factory=dict)
    """What the model wants drawn for each training sample, by batch key."""
    sequence: PatchSequence | None = None
    """How images are sequences of patches; None: they are square, `image_size` pixels a side."""


class SampleTransform(Protocol):
    """Decodes and augments one sample. Runs in loader workers: pure and picklable.

    All its randomness comes from `rng`, which is keyed by (seed, view, sample id), so that a sample looks the same
    whichever worker of whichever rank prepares it. Raises `UnreadableSampleError` for an image that cannot be decoded, which
    training replaces, and any other `DataError` for what is wrong with the data set as a whole; both name shard and key.
    """

    def __call__(self, sample: RawSample, rng: CounterRng) -> SampleFields: ...


@dataclass(frozen=True, kw_only=True)
class StagedTransform:
    """The transforms of each stage of a run; `starts[i]` is the number of samples consumed before stage i, the first is 0.

    Where a stage has several, `num_forms` each, one is drawn for every batch: a function of `seed` and of the samples consumed
    before it, so the same on all ranks and after a resume.
    """

    transforms: tuple[SampleTransform, ...]
    """Those of the first stage, then those of the next."""
    starts: tuple[int, ...] = (0,)
    num_forms: int = 1
    seed: int = 0

    def at(self, consumed: int) -> SampleTransform:
        """The transform of the batch that follows `consumed` samples."""
        stage = bisect.bisect_right(self.starts, consumed) - 1
        form = CounterRng(self.seed, "form", consumed).integer(0, self.num_forms) if self.num_forms > 1 else 0
        return self.transforms[stage * self.num_forms + form]
