"""Dropout of single values and of whole patches, by bits that depend on a sample's seed alone."""

# B batch, N tokens, P patches, K kept patches, D width

import torch
from torch import Tensor

from vitscale.nn.counter_hash import sample_bits, threshold

PATCH_SITE = 1 << 20
"""The number under which patch dropout draws; dropout layers count from 0, residual branches from `BRANCH_SITE`."""
BRANCH_SITE = 1 << 21


class Dropout:
    """Sets a share `rate` of the values to zero and scales the others up, where there are seeds (Srivastava et al. 2014).

    `site` tells the dropouts of a model apart. No module: nothing of it is part of the state.
    """

    def __init__(self, *, rate: float, site: int) -> None:
        self.rate = rate
        self.site = site

    def __call__(self, x_BND: Tensor, *, seed_B: Tensor | None) -> Tensor:
        """(B, ...) to (B, ...); unchanged without seeds."""
        if seed_B is None or not self.rate:
            return x_BND
        bits = sample_bits(seed_B, site=self.site, num_values=x_BND.shape[1:].numel())
        keep_BND = (bits >= threshold(self.rate)).view(x_BND.shape)
        # Scaled by a number, not by the mask: in bf16 that would hold 1 / 0.9 as 1.109.
        return x_BND * keep_BND.to(x_BND.dtype) * (1 / (1 - self.rate))


def num_kept_patches(num_patches: int, *, rate: float) -> int:
    """How many patches are left, at least one."""
    return max(1, int(num_patches * (1 - rate)))


def kept_patches(seed_B: Tensor, *, num_patches: int, rate: float) -> Tensor:
    """The patches (B, K) that each sample keeps, rising: a share `1 - rate`, as in FLIP (Li et al. 2023)."""
    bits_BP = sample_bits(seed_B, site=PATCH_SITE, num_values=num_patches)
    kept_BK = bits_BP.argsort(dim=1, stable=True)[:, : num_kept_patches(num_patches, rate=rate)]
    return kept_BK.sort(dim=1).values


def take_patches(x_BPD: Tensor, kept_BK: Tensor) -> Tensor:
    """(B, P, D) to (B, K, D)."""
    return torch.gather(x_BPD, 1, kept_BK.unsqueeze(-1).expand(-1, -1, x_BPD.shape[-1]))
