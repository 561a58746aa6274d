"""Counter-based randomness: every draw is a pure function of what it is for, never of what was drawn before it.

The mixer is splitmix64 (Steele, Lea, Flood 2014; constants from the public-domain reference by Vigna), the key is
BLAKE2b over the text of the parts. Both are written out here so that no library's generator can change a run.
"""

import hashlib
import math
import operator
from typing import Protocol

import numpy as np
import numpy.typing as npt

U64_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

Part = int | str


def counter_key(*parts: Part) -> int:
    """A 64-bit key for a tuple of integers and words: equal on every machine and Python version."""
    # index: a numpy integer has the same key as the Python one, and a float has none.
    plain = tuple(part if isinstance(part, str) else operator.index(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), "little")


def mix(value: int) -> int:
    """splitmix64's finaliser on one 64-bit integer."""
    value = (value + _GOLDEN) & U64_MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & U64_MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & U64_MASK
    return value ^ (value >> 31)


def mix_array(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`mix` on an array of uint64, element by element."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(_GOLDEN)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX_1)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX_2)
        mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


class CounterRng:
    """A stream of draws named by its key, for example `CounterRng(seed, epoch, sample_id, "crop")`.

    The n-th draw depends on the key and on n alone. Cheap to create: one per sample and purpose.
    """

    def __init__(self, *parts: Part) -> None:
        self._key = counter_key(*parts)
        self._count = 0

    def bits(self) -> int:
        """64 random bits."""
        self._count += 1
        return mix(self._key ^ mix(self._count))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high); the bias of the 64-bit product is below 2**-40 for ranges under 2**24."""
        if high <= low:
            raise ValueError(f"empty range [{low}, {high})")
        return low + ((self.bits() * (high - low)) >> 64)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def normal(self) -> float:
        """A standard normal draw (Box-Muller, two uniforms)."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
        return radius * math.cos(2.0 * math.pi * self.uniform())

    def gamma(self, shape: float) -> float:
        """A Gamma(shape, 1) draw (Marsaglia and Tsang 2000)."""
        if shape < 1.0:
            boost: float = (1.0 - self.uniform()) ** (1.0 / shape)
            return self.gamma(shape + 1.0) * boost
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x = self.normal()
            v = (1.0 + c * x) ** 3
            if v > 0.0 and math.log(1.0 - self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v

    def beta(self, a: float, b: float) -> float:
        """A Beta(a, b) draw as a ratio of gammas; 0.5 where both underflow (a and b far below 0.01)."""
        x, y = self.gamma(a), self.gamma(b)
        return x / (x + y) if x + y > 0.0 else 0.5


class DrawSource(Protocol):
    """What decides the numbers that are drawn for a sample. Picklable: loader processes call it."""

    def draw(self, rng: CounterRng, *, image_size: int) -> npt.NDArray[np.generic]:
        """The numbers for one square image of `image_size` pixels; the same shape and type for every sample."""
        ...
