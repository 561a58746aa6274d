"""Constant tables that a forward pass reads: made once, then kept on each device and in each type that asked for them."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class TableCache:
    """What `make(*key)` gives, computed on the CPU once for each key, device and type.

    No module and no buffer: it is not part of the state, and a model built on the meta device has nothing to fill in.
    """

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self._make = make
        self._tables: dict[tuple[tuple[Hashable, ...], torch.device, torch.dtype], Tensor] = {}

    def like(self, x: Tensor, *key: Hashable) -> Tensor:
        """The table of `key` on the device and in the type of `x`."""
        place = (key, x.device, x.dtype)
        if place not in self._tables:
            # A cached table must not be an inference tensor even when evaluation asks for it first: training would refuse it.
            with torch.inference_mode(False), torch.device("cpu"):
                self._tables[place] = self._make(*key).to(device=x.device, dtype=x.dtype)
        return self._tables[place]
