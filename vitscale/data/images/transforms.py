"""Sample transforms: a raw sample to a uint8 image of fixed size and its label, augmented by counter-based draws.

Images stay uint8 until they are on the device: a float image in the worker costs four times the bytes between processes.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator

from vitscale.config import Config
from vitscale.data.images.augment_ops import Operation, apply_operations
from vitscale.data.images.auto_augment import PolicyConfig
from vitscale.data.images.crops import Box, centred_square, random_resized_box, whole
from vitscale.data.images.decode import decode_crop_member, decode_image_member
from vitscale.data.images.photometric import BlurConfig, ColorJitterConfig, SolariseConfig
from vitscale.data.images.turbojpeg import require_turbojpeg
from vitscale.data.labels import ANY_CLASS, TargetReader
from vitscale.data.types import JpegDecoder, RawSample, SampleFields
from vitscale.dist.seeding import CounterRng

# Shape suffixes: H height, W width, C channels.
Image = npt.NDArray[np.uint8]
Interpolation = Literal["bilinear", "bicubic"]


class AugmentConfig(Config):
    """Random changes of training images, in this order: crop, flip, policy, color_jitter, grayscale, blur, solarise.

    Everything is off by default, and what is off draws nothing. All after the crop is done at the model's size.
    """

    crop: Literal["none", "centre", "pad", "random_resized"] = "none"
    """none: the whole image, resized to the model's size. centre: the largest square in its middle, resized. pad: the whole image
    resized, then shifted by a random crop out of a border of zeros (`padding`), the recipe for small images. random_resized: a
    random part of the image (`scale`, `ratio`), resized."""
    padding: int | None = Field(default=None, ge=1)
    """Pixels of border on each side; for crop: pad only, for example 2 for 28-pixel images."""
    scale: tuple[float, float] | None = None
    """Least and greatest share of the image's area that is kept; for crop: random_resized only, for example [0.08, 1.0]."""
    ratio: tuple[float, float] | None = None
    """Least and greatest width / height of the part; for crop: random_resized only, for example [0.75, 1.3333]."""
    interpolation: Interpolation | Literal["random"] = "bilinear"
    """How the crop is resized, antialiased; random: bilinear or bicubic, evenly."""
    flip: bool = False
    """Mirror half of the images left to right."""
    policy: PolicyConfig | None = None
    """RandAugment, TrivialAugment Wide or 3-Augment."""
    color_jitter: ColorJitterConfig | None = None
    """Random brightness, contrast, saturation and hue."""
    grayscale: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the images that lose their colours."""
    blur: BlurConfig | None = None
    """Gaussian blur."""
    solarise: SolariseConfig | None = None
    """Inversion of bright values."""

    @model_validator(mode="after")
    def _settings_belong_to_the_crop(self) -> Self:
        wanted = {"none": (), "centre": (), "pad": ("padding",), "random_resized": ("scale", "ratio")}[self.crop]
        for name in ("padding", "scale", "ratio"):
            if name in wanted and getattr(self, name) is None:
                raise ValueError(f"crop {self.crop!r} needs {name}")
            if name not in wanted and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect with crop {self.crop!r}; leave it out")
        if self.scale is not None and not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"scale must be two rising shares of the area between 0 and 1, got {list(self.scale)}")
        if self.ratio is not None and not 0.0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two rising positive numbers, got {list(self.ratio)}")
        return self

    def box(self, *, height: int, width: int, rng: CounterRng) -> Box:
        """The part of the image that is kept."""
        if self.scale is not None and self.ratio is not None:
            return random_resized_box(height=height, width=width, scale=self.scale, ratio=self.ratio, rng=rng)
        return centred_square(height=height, width=width) if self.crop == "centre" else whole(height=height, width=width)

    def draw_operations(self, rng: CounterRng, *, image_size: int) -> list[Operation]:
        """What follows crop and flip for one image."""
        operations: list[Operation] = []
        if self.policy is not None:
            operations += self.policy.draw(rng, image_size=image_size)
        if self.color_jitter is not None:
            operations += self.color_jitter.draw(rng)
        if self.grayscale and rng.chance(self.grayscale):
            operations.append(Operation(name="grayscale"))
        if self.blur is not None:
            operations += self.blur.draw(rng)
        if self.solarise is not None:
            operations += self.solarise.draw(rng)
        return operations


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Decode, crop, resize to `image_size`, flip, augment: `image` uint8 (C, H, W), and what `targets` reads, by default `label`.

    A crop with at least 2, 4 or 8 times `image_size` pixels on both sides is decoded at 1/2, 1/4 or 1/8 where it comes from a
    JPEG, its edges rounded to the pixels there, whichever decoder is used.
    """

    image_size: int
    num_channels: int
    augment: AugmentConfig
    targets: TargetReader | None = ANY_CLASS
    """None: images alone, for learning without labels."""
    jpeg_decoder: JpegDecoder = "simplejpeg"

    def __post_init__(self) -> None:
        """Raises `ConfigError` where the decoder is not installed: at the start of the run, not in a worker."""
        if self.jpeg_decoder == "turbojpeg":
            require_turbojpeg()

    def __call__(self, sample: RawSample, rng: CounterRng) -> SampleFields:
        """Raises `UnreadableSampleError` for an image that cannot be decoded, `DataError` for a target that cannot be used; both
        name shard and key."""
        size, augment = self.image_size, self.augment
        part_HWC = decode_crop_member(
            sample,
            num_channels=self.num_channels,
            choose_box=lambda height, width: augment.box(height=height, width=width, rng=rng),
            size=size,
            jpeg_decoder=self.jpeg_decoder,
        )
        image_HWC = augmented(part_HWC, height=size, width=size, augment=augment, rng=rng)
        targets = {} if self.targets is None else self.targets(sample)
        return {"image": np.ascontiguousarray(image_HWC.transpose(2, 0, 1)), **targets}


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Decode, resize, centre crop of `image_size`: `image` uint8 (C, H, W), and what `targets` reads, by default `label`.

    The image is first resized to `floor(image_size / crop_fraction)`: both sides of it (`squash`, which changes the
    aspect ratio and loses nothing at crop_fraction 1) or its shorter side (`shorter_side`). Sizes are rounded as in timm
    and torchvision.
    """

    image_size: int
    num_channels: int
    resize: Literal["squash", "shorter_side"] = "squash"
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bilinear"
    targets: TargetReader = ANY_CLASS

    def __call__(self, sample: RawSample, rng: CounterRng) -> SampleFields:  # noqa: ARG002  (nothing is random here)
        """Raises `DataError` naming shard and key for an image or label that cannot be read."""
        image_HWC = decode_image_member(sample, num_channels=self.num_channels)
        height, width = self._resized_size(height=image_HWC.shape[0], width=image_HWC.shape[1])
        image_HWC = resize(image_HWC, height=height, width=width, interpolation=self.interpolation)
        top, left = round((height - self.image_size) / 2), round((width - self.image_size) / 2)
        image_HWC = image_HWC[top : top + self.image_size, left : left + self.image_size]
        return {"image": np.ascontiguousarray(image_HWC.transpose(2, 0, 1)), **self.targets(sample)}

    def _resized_size(self, *, height: int, width: int) -> tuple[int, int]:
        target = math.floor(self.image_size / self.crop_fraction)
        if self.resize == "squash":
            return target, target
        shorter = min(height, width)
        return target * height // shorter, target * width // shorter


def augmented(part_HWC: Image, *, height: int, width: int, augment: AugmentConfig, rng: CounterRng) -> Image:
    """A crop resized and changed in every way that `augment` asks for: (height, width, C)."""
    image_HWC = resize(part_HWC, height=height, width=width, interpolation=_drawn(augment.interpolation, rng))
    if augment.padding is not None:
        span = 2 * augment.padding + 1
        image_HWC = _shift(image_HWC, down=augment.padding - rng.integer(0, span), right=augment.padding - rng.integer(0, span))
    if augment.flip and rng.chance(0.5):
        image_HWC = image_HWC[:, ::-1]
    # Of an image that is not square, operations that move pixels take the side of a square of as many pixels.
    return apply_operations(image_HWC, augment.draw_operations(rng, image_size=math.isqrt(height * width)))


def resize(image_HWC: Image, *, height: int, width: int, interpolation: Interpolation = "bilinear") -> Image:
    """Antialiased resize of a uint8 image (H, W, C); the image itself when it has the size already."""
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    # A permuted view of height x width x channel is torch's channels_last, which takes its vectorised uint8 kernel.
    image_1CHW = torch.from_numpy(image_HWC).permute(2, 0, 1).unsqueeze(0)
    resized_1CHW = torch.nn.functional.interpolate(image_1CHW, size=(height, width), mode=interpolation, antialias=True)
    resized_HWC: Image = resized_1CHW[0].permute(1, 2, 0).numpy()
    return resized_HWC


def _drawn(interpolation: Interpolation | Literal["random"], rng: CounterRng) -> Interpolation:
    if interpolation != "random":
        return interpolation
    return "bilinear" if rng.chance(0.5) else "bicubic"


def _shift(image_HWC: Image, *, down: int, right: int) -> Image:
    """The image moved by whole pixels, zeros where it came from: a crop out of the padded image without padding it."""
    height, width, _ = image_HWC.shape
    shifted_HWC = np.zeros_like(image_HWC)
    rows, columns = max(0, height - abs(down)), max(0, width - abs(right))
    to_row, to_column = max(0, down), max(0, right)
    from_row, from_column = max(0, -down), max(0, -right)
    source_HWC = image_HWC[from_row : from_row + rows, from_column : from_column + columns]
    shifted_HWC[to_row : to_row + rows, to_column : to_column + columns] = source_HWC
    return shifted_HWC
