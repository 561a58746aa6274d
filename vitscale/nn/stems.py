"""The stems that a vision transformer can have, by `kind`."""

from typing import Annotated, Literal

from pydantic import Field

from vitscale.config import Config
from vitscale.nn.conv_stem import ConvStemConfig
from vitscale.nn.resnet_stem import ResNetStemConfig


class PatchStemConfig(Config):
    """No stem: patches are cut from the image itself (Dosovitskiy et al. 2021)."""

    kind: Literal["patches"] = "patches"

    @property
    def stride(self) -> int:
        """Pixels per position: patches see every pixel."""
        return 1

    def out_channels(self, num_channels: int) -> int:
        """Channels that patches are cut from: those of the image."""
        return num_channels

    def architecture(self) -> "PatchStemConfig":
        """Itself."""
        return self

    def build(self, *, num_channels: int) -> None:
        """Nothing."""

    def shape(self, *, num_channels: int, image_size: int) -> None:
        """Nothing."""


STEMS = (PatchStemConfig, ConvStemConfig, ResNetStemConfig)
StemConfig = Annotated[PatchStemConfig | ConvStemConfig | ResNetStemConfig, Field(discriminator="kind")]
