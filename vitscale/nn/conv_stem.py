"""A convolutional stem: a few 3 x 3 convolutions in place of the one large step from pixels to patches (Xiao et al. 2021)."""

# B batch, C channels, H height, W width

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from vitscale.config import Config
from vitscale.nn.convolution import Convolution
from vitscale.nn.layers import layer_norm
from vitscale.nn.stem import Stem, StemShape, UnitShape

_SIDE = 3


class ConvStemConfig(Config):
    """Convolutions of 3 x 3, each with a norm and a ReLU, before the transformer (ViT_C of Xiao et al. 2021).

    The norm is a layer norm over the channels at every position: the paper's batch norm would let a sample's features depend on the
    batch that it is in, and so on the number of ranks.
    """

    kind: Literal["convolutions"] = "convolutions"
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Output channels of each convolution: 24, 48, 96, 192 for ViT_C of 1 GF, 48, 96, 192, 384 for 4 GF, 64, 128, 128, 256, 256, 512
    for 18 and 36 GF."""
    strides: tuple[Annotated[int, Field(ge=1, le=2)], ...] | None = None
    """Of each convolution. null: 2 of all."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in its norms."""

    @field_validator("strides")
    @classmethod
    def _one_per_convolution(cls, value: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        widths = info.data.get("widths")
        if value is not None and widths is not None and len(value) != len(widths):
            raise ValueError(f"{len(value)} strides for the {len(widths)} convolutions of model.stem.widths; give one for each, or null")
        return value

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the features, along one side."""
        return math.prod(self._strides)

    @property
    def _strides(self) -> tuple[int, ...]:
        return self.strides or (2,) * len(self.widths)

    def out_channels(self, num_channels: int) -> int:  # noqa: ARG002  (one signature for all stems)
        """Channels of the features."""
        return self.widths[-1]

    def architecture(self) -> "ConvStemConfig":
        """The same stem with the settings that a published model only proposes at their defaults."""
        return self.model_copy(update={"strides": self._strides, "norm_eps": 1e-6})

    def build(self, *, num_channels: int) -> "ConvStem":
        """The stem, with parameters on the current default device."""
        channels = (num_channels, *self.widths)
        sizes = zip(channels, self.widths, self._strides, strict=False)
        return ConvStem([ConvUnit(in_channels=i, out_channels=o, stride=stride, norm_eps=self.norm_eps) for i, o, stride in sizes])

    def shape(self, *, num_channels: int, image_size: int) -> StemShape:
        """What it costs at a size of the image in pixels."""
        units, side, channels = [], image_size, num_channels
        for width, stride in zip(self.widths, self._strides, strict=True):
            before, side = side, side // stride
            convolved = width * side**2
            units.append(
                UnitShape(
                    forward_flops=2 * _SIDE**2 * channels * convolved,
                    input_elements=channels * before**2,
                    convolved_elements=convolved,
                    activated_elements=0,
                )
            )
            channels = width
        return StemShape(units=tuple(units), result_elements=channels * side**2)


class ConvStem(Stem):
    """Convolutions one after the other; the paper's last one, of 1 x 1, is the embedding of patches that follows."""

    def __init__(self, layers: list["ConvUnit"]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def units(self) -> Iterator[nn.Module]:
        """Every convolution with its norm and ReLU."""
        yield from self.layers


class ConvUnit(nn.Module):
    """Convolution, norm over the channels, ReLU."""

    def __init__(self, *, in_channels: int, out_channels: int, stride: int, norm_eps: float) -> None:
        super().__init__()
        self.conv = Convolution(in_channels=in_channels, out_channels=out_channels, side=_SIDE, stride=stride, padding=1)
        self.norm = layer_norm(out_channels, eps=norm_eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y_BHWC = self.norm(self.conv(x_BCHW).permute(0, 2, 3, 1))
        return F.relu(y_BHWC).permute(0, 3, 1, 2)
