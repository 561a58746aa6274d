"""Mixup and cutmix of neighbouring samples: drawn per sample in the loader, carried out on the device without a draw.

Samples 2k and 2k+1 of a micro-batch are mixed with each other, by the draw of sample 2k. So the result does not depend on
how a batch is spread over ranks and accumulation steps, as long as every part is even.
"""

# B batch (pairs: P = B/2), C channels, H height, W width, K classes

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitscale.dist.seeding import CounterRng

MIX_KEY = "mix"
"""Batch key of the draws, float32 (B, 5): the share of the own image, then top, bottom, left, right of the box in pixels
that the other image is pasted into. Sample by sample only one of the two differs from its neutral value (1; an empty box)."""


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What is drawn for a sample. An alpha of 0 turns its method off; with both on, each is taken half of the time."""

    mixup_alpha: float
    cutmix_alpha: float
    probability: float

    @property
    def is_on(self) -> bool:
        """Whether any sample may be mixed."""
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def draw(self, rng: CounterRng, *, image_size: int) -> npt.NDArray[np.float32]:
        """The five numbers of `MIX_KEY` for a square image."""
        own_share, box = 1.0, (0, 0, 0, 0)
        if self.is_on and rng.chance(self.probability):
            if self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or rng.chance(0.5)):
                box = _cutmix_box(rng, share=1.0 - rng.beta(self.cutmix_alpha, self.cutmix_alpha), image_size=image_size)
            else:
                own_share = rng.beta(self.mixup_alpha, self.mixup_alpha)
        return np.array([own_share, *box], dtype=np.float32)


def _cutmix_box(rng: CounterRng, *, share: float, image_size: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a square of `share` of the area around a uniform centre, cut at the border (Yun et al. 2019)."""
    side = int(image_size * math.sqrt(share))
    y, x = rng.integer(0, image_size), rng.integer(0, image_size)
    top, left = y - side // 2, x - side // 2
    return max(top, 0), min(top + side, image_size), max(left, 0), min(left + side, image_size)


def mix_images(image_BCHW: Tensor, mix_B5: Tensor) -> Tensor:
    """Blend normalised float images of a pair by the own share (Zhang et al. 2018), then paste the box of the other image."""
    other_share_B111 = (1 - _pair_draws(mix_B5[:, 0])).to(image_BCHW.dtype).view(-1, 1, 1, 1)
    other_BCHW = swap_pairs(image_BCHW)
    # own + (1 - share) (other - own) leaves an unmixed image as it is to the bit.
    mixed_BCHW = torch.where(_inside_box(mix_B5, like_BCHW=image_BCHW), other_BCHW, image_BCHW)
    return torch.addcmul(mixed_BCHW, other_share_B111, other_BCHW - mixed_BCHW)


def own_label_shares(mix_B5: Tensor, *, height: int, width: int) -> Tensor:
    """How much (B,) of the mixed image is the sample's own, the box counted by its true area."""
    area_B = (mix_B5[:, 2] - mix_B5[:, 1]) * (mix_B5[:, 4] - mix_B5[:, 3])
    return _pair_draws(mix_B5[:, 0] * (1 - area_B / (height * width)))


def mix_targets(target: Tensor, own_share_B: Tensor, *, num_classes: int) -> Tensor:
    """fp32 (B, K): the own labels by their share, those of the other sample of the pair by the rest. `target` is a label (B,)
    or 1 for each label and 0 elsewhere (B, K)."""
    if target.ndim == 1:
        return soft_targets(target, own_share_B, num_classes=num_classes)
    target_BK, own_share_B1 = target.float(), own_share_B.unsqueeze(1)
    return own_share_B1 * target_BK + (1 - own_share_B1) * swap_pairs(target_BK)


def soft_targets(label_B: Tensor, own_share_B: Tensor, *, num_classes: int) -> Tensor:
    """fp32 (B, K): the own label by its share, the other label of the pair by the rest."""
    targets_BK = torch.zeros(label_B.shape[0], num_classes, device=label_B.device)
    targets_BK.scatter_add_(1, label_B.unsqueeze(1), own_share_B.unsqueeze(1))
    return targets_BK.scatter_add_(1, swap_pairs(label_B).unsqueeze(1), 1 - own_share_B.unsqueeze(1))


def swap_pairs(values: Tensor) -> Tensor:
    """Each sample's partner: 1, 0, 3, 2, ... along the first dimension. Raises `ValueError` for an odd number of samples."""
    if values.shape[0] % 2:
        raise ValueError(f"mixup and cutmix pair the samples of a micro-batch; {values.shape[0]} is odd, make it even")
    swapped: Tensor = values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return swapped


def _pair_draws(draw_B: Tensor) -> Tensor:
    """Give both samples of a pair the draw of the even one."""
    return draw_B[0::2].repeat_interleave(2)


def _inside_box(mix_B5: Tensor, *, like_BCHW: Tensor) -> Tensor:
    """Boolean (B, 1, H, W): which pixels come from the other image."""
    height, width = like_BCHW.shape[2:]
    top, bottom, left, right = (_pair_draws(mix_B5[:, i]).view(-1, 1, 1, 1) for i in range(1, 5))
    y_H1 = torch.arange(height, device=mix_B5.device).view(-1, 1)
    x_W = torch.arange(width, device=mix_B5.device)
    return (y_H1 >= top) & (y_H1 < bottom) & (x_W >= left) & (x_W < right)
