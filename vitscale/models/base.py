"""What every backbone offers to objectives, the engine and evaluators."""

# B batch, C channels, H height, W width, N tokens, D model width

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

BlockRunner = Callable[[int, nn.Module, Tensor], Tensor]
"""Runs block number i on its input. The engine puts its own in place to recompute activations."""


class Features(NamedTuple):
    """What a backbone makes of a batch of images.

    `pooled_BD` is one normalised vector per image. `tokens_BND` are the last block's outputs before the final norm, so
    that nothing is computed which is not used; `backbone.norm(tokens_BND)` normalises them.
    """

    # A tuple because DeepSpeed's ZeRO-3 hooks look for tensors in tuples, lists and dicts only.
    pooled_BD: Tensor
    tokens_BND: Tensor


class Backbone(nn.Module, ABC):
    """Images to features. Built from parameters with init recipes and no buffers, so it can be built on the meta device."""

    width: int
    image_size: int
    patch_size: int
    num_channels: int
    blocks: nn.ModuleList
    norm: nn.Module
    block_runner: BlockRunner

    @property
    @abstractmethod
    def compute_dtype(self) -> torch.dtype:
        """The type that images are normalised to: that of the parameters."""

    @abstractmethod
    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to normalised images of the compute type on the same device."""

    @abstractmethod
    def forward(self, image_BCHW: Tensor) -> Features:
        """Normalised images (B, C, H, W) to features; sides other than `image_size` are multiples of the patch size."""


def run_block(index: int, block: nn.Module, x_BND: Tensor) -> Tensor:  # noqa: ARG001  (a BlockRunner)
    """The plain block runner: just calls the block."""
    y_BND: Tensor = block(x_BND)
    return y_BND
