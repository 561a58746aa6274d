"""The block of transformers whose attention is between channels: neighbouring patches are mixed as well, by small convolutions."""

# B batch, N tokens, D width, R rows, C columns

import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.block import Block, BlockSpec, scaled
from vitscale.nn.context import BlockContext
from vitscale.nn.convolution import DepthwiseConvolution
from vitscale.nn.layers import LayerScale, layer_norm, norm_layer
from vitscale.nn.stochastic_depth import add_branch

_SIDE = 3


class LocalMixing(nn.Module):
    """Two depthwise 3 x 3 convolutions over the map of patches (local patch interaction in XCiT, El-Nouby et al. 2021, section 3.3).

    Between them is a layer norm over the channels where XCiT has a batch norm, which would let a sample's features depend on its batch.
    """

    def __init__(self, *, width: int, norm_eps: float) -> None:
        super().__init__()
        self.conv1 = DepthwiseConvolution(channels=width, side=_SIDE)
        self.norm = layer_norm(width, eps=norm_eps)
        self.conv2 = DepthwiseConvolution(channels=width, side=_SIDE)

    def forward(self, x_BND: Tensor, *, context: BlockContext) -> Tensor:
        """(B, N, D), patches only and all of them, to (B, N, D)."""
        x_BDRC = x_BND.unflatten(1, context.grid).permute(0, 3, 1, 2)
        hidden_BRCD = self.norm(F.gelu(self.conv1(x_BDRC)).permute(0, 2, 3, 1))
        mixed_BDRC: Tensor = self.conv2(hidden_BRCD.permute(0, 3, 1, 2))
        return mixed_BDRC.flatten(2).transpose(1, 2)


class MixingBlock(Block):
    """XCiT's layer: attention, local mixing and MLP, each as a residual branch after a norm of its own."""

    num_branches = 3

    def __init__(self, spec: BlockSpec, *, index: int) -> None:
        super().__init__(spec, index=index)
        self.norm3 = norm_layer(spec.norm, width=spec.width, eps=spec.norm_eps)
        self.local_mixing = LocalMixing(width=spec.width, norm_eps=spec.norm_eps)
        self.ls3 = LayerScale(spec.width, init=spec.layer_scale) if spec.layer_scale else None

    def forward(self, x_BND: Tensor, *, context: BlockContext) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        first = self.num_branches * self.index
        x_BND = add_branch(x_BND, self._attend, context=context, index=first, rate=self.drop_rate)
        x_BND = add_branch(x_BND, self._mix_neighbours, context=context, index=first + 1, rate=self.drop_rate)
        return add_branch(x_BND, self._feed_forward, context=context, index=first + 2, rate=self.drop_rate)

    def _mix_neighbours(self, x_BND: Tensor, context: BlockContext) -> Tensor:
        return scaled(self.local_mixing(self.norm3(x_BND), context=context), by=self.ls3)
