"""Colour jitter, blur and solarisation with a probability each, as self-supervised recipes have them."""

from typing import Self

from pydantic import Field, model_validator

from vitscale.config import Config
from vitscale.data.images.augment_ops import Operation
from vitscale.dist.seeding import CounterRng


class ColorJitterConfig(Config):
    """Random brightness, contrast, saturation and hue, in random order, as torchvision's ColorJitter."""

    brightness: float = Field(default=0.0, ge=0.0)
    """The factor is drawn from [max(0, 1 - this), 1 + this]; so it is for the next two."""
    contrast: float = Field(default=0.0, ge=0.0)
    """As brightness."""
    saturation: float = Field(default=0.0, ge=0.0)
    """As brightness."""
    hue: float = Field(default=0.0, ge=0.0, le=0.5)
    """The hue is turned by up to this share of the colour circle either way. It costs more than all the others together."""
    probability: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the images that are jittered."""

    @model_validator(mode="after")
    def _something_is_jittered(self) -> Self:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("set at least one of brightness, contrast, saturation and hue above 0, or leave color_jitter out")
        return self

    def draw(self, rng: CounterRng) -> list[Operation]:
        """The operations of one image."""
        if not rng.chance(self.probability):
            return []
        operations = [
            Operation(name=name, value=rng.uniform(max(0.0, 1.0 - spread), 1.0 + spread))
            for name, spread in (("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation))
            if spread
        ]
        if self.hue:
            operations.append(Operation(name="hue", value=rng.uniform(-self.hue, self.hue)))
        for last in range(len(operations) - 1, 0, -1):  # Fisher and Yates's shuffle
            other = rng.integer(0, last + 1)
            operations[last], operations[other] = operations[other], operations[last]
        return operations


class BlurConfig(Config):
    """Gaussian blur, by Pillow's repeated box filter."""

    probability: float = Field(gt=0.0, le=1.0)
    """Share of the images that are blurred."""
    sigma: tuple[float, float]
    """Least and greatest standard deviation in pixels of the model's image, for example [0.1, 2.0]."""

    @model_validator(mode="after")
    def _sigma_rises(self) -> Self:
        if not 0.0 <= self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma must be two rising numbers of pixels, got {list(self.sigma)}")
        return self

    def draw(self, rng: CounterRng) -> list[Operation]:
        """The operations of one image."""
        return [Operation(name="blur", value=rng.uniform(*self.sigma))] if rng.chance(self.probability) else []


class SolariseConfig(Config):
    """Inversion of bright values."""

    probability: float = Field(gt=0.0, le=1.0)
    """Share of the images that are solarised."""
    threshold: int = Field(default=128, ge=0, le=255)
    """Values from here on are inverted."""

    def draw(self, rng: CounterRng) -> list[Operation]:
        """The operations of one image."""
        return [Operation(name="solarise", value=float(self.threshold))] if rng.chance(self.probability) else []
