"""The forms that the images of a batch take where they differ from step to step: by the side of the patches, or as sequences of patches."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitscale.dist.seeding import CounterRng, DrawSource

PATCH_SIZE_KEY = "patch_size"
"""Batch key of a tensor (B, P, 0) without values: P is the side in pixels of the batch's patches. A shape is known to the host, which
need not wait for the device to learn it."""
PATCH_GRID_KEY = "patch_grid"
"""Batch key of int64 (B, 2): rows and columns of the patches of each image, where images are sequences of patches."""


@dataclass(frozen=True, kw_only=True)
class PatchSequence:
    """Images as sequences of patches (NaFlex): an image keeps its aspect ratio, is cut into at most `length` square patches, and filled
    up to `length` with zeros.

    It travels as an image (C, length * patch_size, patch_size), its patches one below the other, row by row.
    """

    length: int
    patch_size: int
    least_share: float = 1.0
    """A training image has at most a share of `length` patches that is drawn evenly between this and 1."""


@dataclass(frozen=True, kw_only=True)
class PatchSizeMark:
    """Gives every sample the mark of `PATCH_SIZE_KEY`; nothing is drawn for it."""

    patch_size: int

    def draw(self, rng: CounterRng, *, image_size: int) -> npt.NDArray[np.uint8]:  # noqa: ARG002  (a DrawSource)
        """uint8 (P, 0)."""
        return np.empty((self.patch_size, 0), dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class InputForm:
    """What all images of a batch have in common; the loader draws one of a model's forms for each step."""

    patch_size: int | None = None
    """Side in pixels of the patches that the model cuts them into; None: its own, always the same."""
    sequence: PatchSequence | None = None
    """How they are sequences of patches; None: they are square images, all of one size."""

    @property
    def keys(self) -> frozenset[str]:
        """What the model reads of a batch to know its form, beside the images."""
        return frozenset(self.marks) | ({PATCH_GRID_KEY} if self.sequence else set())

    @property
    def marks(self) -> dict[str, DrawSource]:
        """What tells the model of the form, by batch key."""
        return {} if self.patch_size is None else {PATCH_SIZE_KEY: PatchSizeMark(patch_size=self.patch_size)}
