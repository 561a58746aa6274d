"""Random erasing: boxes drawn per sample in the loader, filled on the device without a draw (Zhong et al. 2017, as in timm)."""

# B batch, C channels, H height, W width, N pixels times channels (half of them: M)

import math
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from vitscale.config import Config
from vitscale.dist.seeding import CounterRng
from vitscale.nn.counter_hash import hash_bits

ERASE_KEY = "erase"
"""Batch key of the draws, int64 (B, 5): top, bottom, left, right of the box in pixels (empty where nothing is erased), and the
32-bit number that its noise is a function of."""

_BOX_TRIES = 10


class ErasingConfig(Config):
    """One box per erased image, filled after the image has been normalised and before it is mixed with another."""

    probability: float = Field(gt=0.0, le=1.0)
    """Share of the images with a box."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """Least and greatest share of the image that the box covers."""
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """Least and greatest height / width of the box."""
    fill: Literal["noise", "zero"] = "noise"
    """noise: a standard normal draw for each pixel and channel (timm's `pixel`). zero: the mean colour (timm's `const`)."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        if not 0.0 < self.area[0] <= self.area[1] < 1.0:
            raise ValueError(f"area must be two rising shares of the image between 0 and 1, got {list(self.area)}")
        if not 0.0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two rising positive numbers, got {list(self.ratio)}")
        return self

    def draw(self, rng: CounterRng, *, image_size: int) -> npt.NDArray[np.int64]:
        """The five numbers of `ERASE_KEY` for a square image: no box where ten tries find none that fits."""
        if rng.chance(self.probability):
            for _ in range(_BOX_TRIES):
                area = image_size**2 * rng.uniform(*self.area)
                ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
                height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if height < image_size and width < image_size:
                    top, left = rng.integer(0, image_size - height + 1), rng.integer(0, image_size - width + 1)
                    return np.array([top, top + height, left, left + width, rng.bits() >> 32], dtype=np.int64)
        return np.zeros(5, dtype=np.int64)


def erase_images(image_BCHW: Tensor, erase_B5: Tensor, *, fill: Literal["noise", "zero"]) -> Tensor:
    """Normalised float images with their boxes filled. The noise of a sample depends on its draw alone, not on its batch."""
    inside_B1HW = _inside_box(erase_B5, height=image_BCHW.shape[2], width=image_BCHW.shape[3])
    if fill == "zero":
        return image_BCHW.masked_fill(inside_B1HW, 0.0)
    noise_BN = normal_noise(erase_B5[:, 4], num_values=image_BCHW[0].numel())
    return torch.where(inside_B1HW, noise_BN.view(image_BCHW.shape).to(image_BCHW.dtype), image_BCHW)


def normal_noise(seed_B: Tensor, *, num_values: int) -> Tensor:
    """fp32 (B, N) standard normal values, each a function of its seed (32 bits in int64) and its place: Box-Muller on hashes."""
    num_pairs = -(-num_values // 2)
    place_2M = torch.arange(2 * num_pairs, device=seed_B.device).view(2, num_pairs)
    bits_B2M = hash_bits(hash_bits(place_2M) ^ seed_B.view(-1, 1, 1))
    uniform_B2M = (bits_B2M + 1).float() * 2.0**-32  # in (0, 1], for the logarithm
    radius_BM = torch.sqrt(-2.0 * torch.log(uniform_B2M[:, 0]))
    angle_BM = 2.0 * math.pi * uniform_B2M[:, 1]
    noise_BN = torch.cat([radius_BM * torch.cos(angle_BM), radius_BM * torch.sin(angle_BM)], dim=1)
    return noise_BN[:, :num_values]


def _inside_box(erase_B5: Tensor, *, height: int, width: int) -> Tensor:
    """Boolean (B, 1, H, W): which pixels are erased."""
    top, bottom, left, right = (erase_B5[:, i].view(-1, 1, 1, 1) for i in range(4))
    y_H1 = torch.arange(height, device=erase_B5.device).view(-1, 1)
    x_W = torch.arange(width, device=erase_B5.device)
    return (y_H1 >= top) & (y_H1 < bottom) & (x_W >= left) & (x_W < right)
