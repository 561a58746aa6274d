"""Random bits on the device as a function of a sample's seed and a place: no generator, so nothing depends on batches or ranks."""

# B batch, V values

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitscale.dist.seeding import CounterRng

T = TypeVar("T", int, Tensor)

SEED_KEY = "model_seed"
"""Batch key of a 32-bit number (int64) for each training sample, which all that is random in a model is a function of."""

MASK_32 = 0xFFFFFFFF


class SeedSource:
    """Draws the number of `SEED_KEY`."""

    def draw(self, rng: CounterRng, *, image_size: int) -> npt.NDArray[np.int64]:  # noqa: ARG002  (a DrawSource)
        """int64 ()."""
        return np.asarray(rng.bits() >> 32, dtype=np.int64)


def hash_bits(values: T) -> T:
    """A bijection of 32-bit numbers (int64 tensors, or an int) whose every output bit depends on all input bits.

    Two rounds of xor-shift and multiply with the constants of Wellons's hash-prospector (public domain); both are below 2**31,
    so that no product leaves int64, where overflow would be undefined.
    """
    values = ((values ^ (values >> 16)) * 0x21F0AAAD) & MASK_32
    values = ((values ^ (values >> 15)) * 0x735A2D97) & MASK_32
    return values ^ (values >> 15)


def sample_bits(seed_B: Tensor, *, site: int, num_values: int) -> Tensor:
    """int64 (B, V) of 32 random bits: functions of the sample's seed, the number of the site that asks, and the place in it."""
    key_B1 = hash_bits(seed_B ^ hash_bits(site)).unsqueeze(1)
    return hash_bits(hash_bits(torch.arange(num_values, device=seed_B.device)) ^ key_B1)


def threshold(probability: float) -> int:
    """The number that 32 random bits are below with the given probability."""
    return round(probability * 2**32)
