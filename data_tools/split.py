"""What a source offers to be packed: one split with its classes, its labels and its images in a fixed order."""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class UnusableImageError(Exception):
    """An image of the input that cannot be packed; the message is the reason. All of them are collected and reported."""


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """One sample as it will be stored."""

    label: int
    extension: str
    image: bytes


class Split(Protocol):
    """Samples numbered by the source's own order, which is the same for the same input. Picklable."""

    @property
    def name(self) -> str | None:
        """ "train", "test" and so on; None where the source does not tell splits apart."""
        ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def num_samples(self) -> int: ...

    @property
    def description(self) -> dict[str, str | int]:
        """What the manifest says about the source. No paths and no times: same input, same bytes."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before packing, for example files that were passed over."""
        ...

    def image_bytes(self) -> IntArray:
        """Size of each stored image, by which shards are cut."""
        ...

    def origin(self, index: int) -> str:
        """Where sample `index` comes from, for messages."""
        ...

    def read(self, index: int) -> LabelledImage:
        """Read and check sample `index`. Raises `UnusableImageError`."""
        ...

    def take(self, indices: IntArray) -> Self:
        """The same split with these samples only, numbered from 0: what one worker needs."""
        ...
