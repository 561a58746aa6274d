"""The forms that the images of a batch take where they differ from step to step: by the side of the patches, or as sequences of patches."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitscale.dist.seeding import CounterRng, DrawSource

PATCH_SIZE_KEY = "patch_size"
"""Batch key of a tensor (B, P, 0) without values: P is the side in pixels of the batch's patches. A shape is known to the host, which
need not wait for the device to learn it."""


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

    @property
    def marks(self) -> dict[str, DrawSource]:
        """What tells the model of the form, by batch key."""
        return {} if self.patch_size is None else {PATCH_SIZE_KEY: PatchSizeMark(patch_size=self.patch_size)}
