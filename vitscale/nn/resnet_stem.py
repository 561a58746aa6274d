"""The stem of Google's hybrid vision transformers: a ResNet with standardised convolutions and group norm, without its head."""

# B batch, C channels, H height, W width, F features of a bottleneck

from collections.abc import Iterator
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitscale.config import Config
from vitscale.nn.convolution import Epsilons, StandardisedConvolution
from vitscale.nn.init import constant, set_init, zeros
from vitscale.nn.stem import Stem, StemShape, UnitShape

_NUM_GROUPS = 32
_ROOT_SIDE = 7
_ROOT_STRIDE = 4
_BOTTLENECK = 4
_INT64_BYTES = 8


class ResNetStemConfig(Config):
    """A ResNet before the transformer, as in Google's hybrids (R50+B/16 and others; Dosovitskiy et al. 2021, Steiner et al. 2022)."""

    kind: Literal["resnet"] = "resnet"
    units: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Bottleneck units of each stage: 2, 2, 2, 2 in R26; 3, 4, 6, 3 in R50 before L/32; 3, 4, 9 in R50 before B/16. Empty: the root
    only (R+Ti/16). The root makes the image 4 times smaller and every stage after the first 2 times."""
    width: Annotated[int, Field(ge=_NUM_GROUPS, multiple_of=_NUM_GROUPS)] = 64
    """Channels of the root and of the first stage's bottlenecks, doubled by every further stage; a multiple of 32, the number of
    groups that are normalised."""
    epsilons: Epsilons = "google"
    """What is added so that nothing is divided by 0. google: 1e-5 to the deviation of a kernel, 1e-6 to the variance of a group norm
    (vit_jax). timm: 1e-8 to the variance of a kernel, 1e-5 to that of a group norm."""

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the features, along one side."""
        return _ROOT_STRIDE << max(0, len(self.units) - 1)

    def out_channels(self, num_channels: int) -> int:  # noqa: ARG002  (one signature for all stems)
        """Channels of the features."""
        return _BOTTLENECK * self.width * 2 ** (len(self.units) - 1) if self.units else self.width

    def architecture(self) -> "ResNetStemConfig":
        """The same stem with the settings that a published model only proposes at their defaults."""
        return self.model_copy(update={"epsilons": "google"})

    def build(self, *, num_channels: int) -> "ResNetStem":
        """The stem, with parameters on the current default device."""
        return ResNetStem(self, num_channels=num_channels)

    def shape(self, *, num_channels: int, image_size: int) -> StemShape:
        """What it costs at a size of the image in pixels."""
        root = _root_shape(num_channels=num_channels, width=self.width, image_size=image_size)
        units, side, channels = [root], image_size // _ROOT_STRIDE, self.width
        for stage, count in enumerate(self.units):
            features = self.width * 2**stage
            for index in range(count):
                stride = 2 if stage and not index else 1
                units.append(_unit_shape(channels=channels, features=features, side=side, stride=stride, has_shortcut=not index))
                side, channels = side // stride, _BOTTLENECK * features
        return StemShape(units=tuple(units), result_elements=channels * side**2)


class ResNetStem(Stem):
    """Root, then stages of bottleneck units with the ReLU after the sum (google-research/vision_transformer, models_resnet.py).

    The last norm of every unit starts from scale 0, so that a unit starts as its shortcut.
    """

    def __init__(self, config: ResNetStemConfig, *, num_channels: int) -> None:
        super().__init__()
        self.root = Root(num_channels=num_channels, width=config.width, epsilons=config.epsilons)
        self.stages = nn.ModuleList()
        channels = config.width
        for stage, count in enumerate(config.units):
            features = config.width * 2**stage
            units = nn.ModuleList()
            for index in range(count):
                stride = 2 if stage and not index else 1
                units.append(
                    Bottleneck(channels=channels, features=features, stride=stride, has_shortcut=not index, epsilons=config.epsilons)
                )
                channels = _BOTTLENECK * features
            self.stages.append(units)

    def units(self) -> Iterator[nn.Module]:
        """The root, then every bottleneck."""
        yield self.root
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            yield from stage


class Root(nn.Module):
    """A convolution of 7 x 7 and max pooling, each of stride 2."""

    def __init__(self, *, num_channels: int, width: int, epsilons: Epsilons) -> None:
        super().__init__()
        self.conv = StandardisedConvolution(in_channels=num_channels, out_channels=width, side=_ROOT_SIDE, stride=2, epsilons=epsilons)
        self.norm = _group_norm(width, epsilons=epsilons)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/4, W/4)."""
        x_BCHW = F.relu(self.norm(self.conv(image_BCHW)))
        # Windows that begin inside and end outside are as good as "SAME" padding with minus infinity, without a padded copy.
        return F.max_pool2d(x_BCHW, kernel_size=3, stride=2, ceil_mode=True)


class Bottleneck(nn.Module):
    """`relu(shortcut(x) + convolutions(x))`: 1 x 1 to F channels, 3 x 3 with the stride, 1 x 1 to 4 F, each with a group norm."""

    def __init__(self, *, channels: int, features: int, stride: int, has_shortcut: bool, epsilons: Epsilons) -> None:
        super().__init__()
        wide = _BOTTLENECK * features
        self.conv_proj: nn.Module | None = None
        self.norm_proj: nn.Module | None = None
        if has_shortcut:
            self.conv_proj = StandardisedConvolution(in_channels=channels, out_channels=wide, side=1, stride=stride, epsilons=epsilons)
            self.norm_proj = _group_norm(wide, epsilons=epsilons)
        self.conv1 = StandardisedConvolution(in_channels=channels, out_channels=features, side=1, epsilons=epsilons)
        self.norm1 = _group_norm(features, epsilons=epsilons)
        self.conv2 = StandardisedConvolution(in_channels=features, out_channels=features, side=3, stride=stride, epsilons=epsilons)
        self.norm2 = _group_norm(features, epsilons=epsilons)
        self.conv3 = StandardisedConvolution(in_channels=features, out_channels=wide, side=1, epsilons=epsilons)
        self.norm3 = _group_norm(wide, epsilons=epsilons)
        set_init(self.norm3.weight, zeros())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 F, H / stride, W / stride)."""
        shortcut_BCHW = x_BCHW
        if self.conv_proj is not None and self.norm_proj is not None:
            shortcut_BCHW = self.norm_proj(self.conv_proj(x_BCHW))
        y_BFHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        y_BFHW = F.relu(self.norm2(self.conv2(y_BFHW)))
        return F.relu(shortcut_BCHW + self.norm3(self.conv3(y_BFHW)))


def _group_norm(channels: int, *, epsilons: Epsilons) -> nn.GroupNorm:
    norm = nn.GroupNorm(_NUM_GROUPS, channels, eps=1e-6 if epsilons == "google" else 1e-5)
    set_init(norm.weight, constant(1.0))
    set_init(norm.bias, zeros())
    return norm


def _root_shape(*, num_channels: int, width: int, image_size: int) -> UnitShape:
    convolved = width * (image_size // 2) ** 2
    weights = num_channels * _ROOT_SIDE**2 * width
    return UnitShape(
        forward_flops=2 * weights * (image_size // 2) ** 2,
        input_elements=num_channels * image_size**2,
        convolved_elements=convolved,
        activated_elements=convolved + num_channels * (image_size + _ROOT_SIDE - 2) ** 2,
        index_bytes=_INT64_BYTES * width * (image_size // _ROOT_STRIDE) ** 2,
        standardised_elements=weights,
    )


def _unit_shape(*, channels: int, features: int, side: int, stride: int, has_shortcut: bool) -> UnitShape:
    before, after, wide = side**2, (side // stride) ** 2, _BOTTLENECK * features
    shortcut = channels * wide if has_shortcut else 0
    # At stride 2 the second convolution reads a padded copy.
    padded = features * (side + 1) ** 2 if stride > 1 else 0
    return UnitShape(
        forward_flops=2 * (channels * features * before + (9 * features**2 + features * wide + shortcut) * after),
        input_elements=channels * before,
        convolved_elements=features * before + (features + wide + (wide if has_shortcut else 0)) * after,
        activated_elements=features * (before + after) + padded,
        standardised_elements=channels * features + 9 * features**2 + features * wide + shortcut,
    )
