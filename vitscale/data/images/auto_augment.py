"""Augmentation policies: which operations an image gets, and how strong, drawn for each sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from vitscale.config import Config
from vitscale.data.images.augment_ops import Operation, Resampling
from vitscale.dist.seeding import CounterRng

_GREATEST_MAGNITUDE = 10.0


class RandAugmentConfig(Config):
    """RandAugment (Cubuk et al. 2020) as in timm: `rand-m9-mstd0.5-inc1` is magnitude 9, magnitude_std 0.5."""

    kind: Literal["rand_augment"] = "rand_augment"
    magnitude: float = Field(ge=0.0, le=_GREATEST_MAGNITUDE)
    """Strength of the operations, 0 to 10."""
    magnitude_std: float = Field(default=0.0, ge=0.0)
    """Standard deviation of the strength, drawn for each operation and cut at 0 and 10."""
    num_ops: int = Field(default=2, ge=1)
    """Operations drawn per image, with replacement, out of 15."""
    probability: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the drawn operations that are carried out. timm's default; the paper has 1."""
    severity: Literal["increasing", "mixed"] = "increasing"
    """increasing: every operation is the stronger the greater the magnitude. mixed: as the paper's code had it, where posterise
    and solarise are weaker, and colour, contrast, brightness and sharpness run from far below to far above no change."""
    fill: int = Field(default=128, ge=0, le=255)
    """Grey level of what moves in from outside the image."""
    resampling: Literal["random", "bilinear", "bicubic"] = "random"
    """Of operations that move pixels; random: bilinear or bicubic, evenly."""

    def draw(self, rng: CounterRng, *, image_size: int) -> list[Operation]:
        """The operations of one square image."""
        drawn = []
        for _ in range(self.num_ops):
            name, value_of = _RAND_AUGMENT[rng.integer(0, len(_RAND_AUGMENT))]
            if not rng.chance(self.probability):
                continue
            magnitude = self.magnitude + (self.magnitude_std * rng.normal() if self.magnitude_std else 0.0)
            level = min(max(magnitude, 0.0), _GREATEST_MAGNITUDE) / _GREATEST_MAGNITUDE
            strength = _Strength(level=level, is_increasing=self.severity == "increasing", image_size=image_size, rng=rng)
            drawn.append(Operation(name=name, value=value_of(strength), resampling=self._draw_resampling(rng), fill=self.fill))
        return drawn

    def _draw_resampling(self, rng: CounterRng) -> Resampling:
        if self.resampling != "random":
            return self.resampling
        return "bilinear" if rng.chance(0.5) else "bicubic"


@dataclass(frozen=True, kw_only=True)
class _Strength:
    """What RandAugment turns into an operation's value: a level of 0 to 1, and the draws of a sign."""

    level: float
    is_increasing: bool
    image_size: int
    rng: CounterRng

    def signed(self, value: float) -> float:
        return -value if self.rng.chance(0.5) else value


def _none(strength: _Strength) -> float:  # noqa: ARG001
    return 0.0


def _factor(strength: _Strength) -> float:
    if strength.is_increasing:
        return max(0.1, 1.0 + strength.signed(0.9 * strength.level))
    return 0.1 + 1.8 * strength.level


def _bits(strength: _Strength) -> float:
    bits = int(4 * strength.level)
    return 4 - bits if strength.is_increasing else bits


def _threshold(strength: _Strength) -> float:
    threshold = int(256 * strength.level)
    return 256 - threshold if strength.is_increasing else threshold


def _added(strength: _Strength) -> float:
    return int(110 * strength.level)


def _degrees(strength: _Strength) -> float:
    return strength.signed(30.0 * strength.level)


def _shear(strength: _Strength) -> float:
    return strength.signed(0.3 * strength.level)


def _shift(strength: _Strength) -> float:
    return strength.signed(0.45 * strength.level) * strength.image_size


_RAND_AUGMENT: tuple[tuple[str, Callable[[_Strength], float]], ...] = (
    ("autocontrast", _none),
    ("equalise", _none),
    ("invert", _none),
    ("rotate", _degrees),
    ("posterise", _bits),
    ("solarise", _threshold),
    ("solarise_add", _added),
    ("saturation", _factor),
    ("contrast", _factor),
    ("brightness", _factor),
    ("sharpness", _factor),
    ("shear_x", _shear),
    ("shear_y", _shear),
    ("translate_x", _shift),
    ("translate_y", _shift),
)


class TrivialAugmentConfig(Config):
    """TrivialAugment Wide (Müller and Hutter 2021) as in torchvision: one operation of 14, at one of 31 strengths."""

    kind: Literal["trivial_augment_wide"] = "trivial_augment_wide"
    fill: int = Field(default=0, ge=0, le=255)
    """Grey level of what moves in from outside the image."""

    def draw(self, rng: CounterRng, *, image_size: int) -> list[Operation]:  # noqa: ARG002  (its shifts are in pixels)
        """The operation of one image; none for the identity."""
        name, value_of, is_signed = _TRIVIAL_AUGMENT[rng.integer(0, len(_TRIVIAL_AUGMENT))]
        strength = rng.integer(0, _NUM_STRENGTHS) / (_NUM_STRENGTHS - 1)
        sign = -1.0 if is_signed and rng.chance(0.5) else 1.0
        return [Operation(name=name, value=value_of(strength, sign), fill=self.fill)] if name else []


_NUM_STRENGTHS = 31


def _enhancement(strength: float, sign: float) -> float:
    return 1.0 + sign * 0.99 * strength


_TRIVIAL_AUGMENT: tuple[tuple[str, Callable[[float, float], float], bool], ...] = (
    ("", lambda strength, sign: 0.0, False),  # noqa: ARG005
    ("shear_x", lambda strength, sign: sign * 0.99 * strength, True),
    ("shear_y", lambda strength, sign: sign * 0.99 * strength, True),
    ("translate_x", lambda strength, sign: float(int(sign * 32.0 * strength)), True),
    ("translate_y", lambda strength, sign: float(int(sign * 32.0 * strength)), True),
    ("rotate", lambda strength, sign: sign * 135.0 * strength, True),
    ("brightness", _enhancement, True),
    ("saturation", _enhancement, True),
    ("contrast", _enhancement, True),
    ("sharpness", _enhancement, True),
    ("posterise", lambda strength, sign: float(8 - round(6 * strength)), False),  # noqa: ARG005
    ("solarise", lambda strength, sign: 255.0 * (1.0 - strength), False),  # noqa: ARG005
    ("autocontrast", lambda strength, sign: 0.0, False),  # noqa: ARG005
    ("equalise", lambda strength, sign: 0.0, False),  # noqa: ARG005
)
"""Operation, its value from a strength of 0 to 1 and a sign, and whether it has a sign."""


class ThreeAugmentConfig(Config):
    """3-Augment (DeiT III, Touvron et al. 2022): one of grayscale, solarise and blur. The colour jitter of 0.3 that the paper
    adds to it is a setting of its own."""

    kind: Literal["three_augment"] = "three_augment"

    def draw(self, rng: CounterRng, *, image_size: int) -> list[Operation]:  # noqa: ARG002
        """The operation of one image."""
        choice = rng.integer(0, 3)
        if choice == 0:
            return [Operation(name="grayscale")]
        if choice == 1:
            return [Operation(name="solarise", value=128.0)]
        return [Operation(name="blur", value=rng.uniform(0.1, 2.0))]


PolicyConfig = Annotated[RandAugmentConfig | TrivialAugmentConfig | ThreeAugmentConfig, Field(discriminator="kind")]
"""A policy; `draw` gives the operations of one image."""
