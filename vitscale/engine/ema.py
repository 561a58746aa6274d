"""The moving average of the master weights, kept in fp32 beside them on whichever rank holds them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Exchanged piece by piece, so that a swap costs this much memory and not a copy of the weights.
_SWAP_ELEMENTS = 1 << 24


class WeightAverage:
    """`average = decay * average + (1 - decay) * weights` after every step (Polyak and Juditsky 1992)."""

    def __init__(self, weights: list[Tensor], *, decay: float) -> None:
        """Starts as a copy of `weights`, the flat fp32 masters of this rank, which it keeps referring to."""
        self._weights = weights
        self._decay = decay
        self.averages = [weight.clone() for weight in weights]

    def update(self, *, is_taken: bool | Tensor = True) -> None:
        """Take the weights of a finished step in, unless the step was skipped: then the average stays as it is, bit for bit.

        A scalar tensor is read where it lies, so that nobody waits for the device.
        """
        if isinstance(is_taken, Tensor):
            weight = torch.where(is_taken, 1.0 - self._decay, 0.0)
            torch._foreach_lerp_(self.averages, self._weights, [weight] * len(self.averages))
        elif is_taken:
            torch._foreach_lerp_(self.averages, self._weights, 1.0 - self._decay)

    @contextmanager
    def in_place_of_weights(self, refresh: Callable[[], None]) -> Iterator[None]:
        """Within the context the masters hold the average; afterwards, bit for bit, what they held before.

        `refresh` makes forward read the masters. Collective, as `refresh` is.
        """
        self._swap()
        refresh()
        try:
            yield
        finally:
            self._swap()
            refresh()

    def _swap(self) -> None:
        for weight, average in zip(self._weights, self.averages, strict=True):
            for mine, other in zip(weight.split(_SWAP_ELEMENTS), average.split(_SWAP_ELEMENTS), strict=True):
                kept = mine.clone()
                mine.copy_(other)
                other.copy_(kept)
