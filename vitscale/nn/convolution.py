"""Convolutions whose kernels carry their init recipe: plain ones, one per channel, and ones whose kernels are standardised."""

# B batch, C channels, H height, W width, O output channels, K kernel side

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.init import lecun_normal, set_init, zeros

Epsilons = Literal["google", "timm"]
"""What is added so that nothing is divided by 0. google: 1e-5 to the standard deviation of a kernel and 1e-6 to the variance of a
group norm (google-research/vision_transformer, models_resnet.py; flax). timm: 1e-8 to the variance of a kernel and 1e-5 to that of a
group norm."""


class Convolution(nn.Module):
    """A convolution with a square kernel `weight` (O, C, K, K), no bias, and the same `padding` on every side."""

    def __init__(self, *, in_channels: int, out_channels: int, side: int, stride: int, padding: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        self.weight = _kernel(in_channels=in_channels, out_channels=out_channels, side=side)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H', W')."""
        return F.conv2d(x_BCHW, self.weight, stride=self.stride, padding=self.padding)


class DepthwiseConvolution(nn.Module):
    """A convolution of every channel with a square kernel of its own, `weight` (C, 1, K, K) of odd side, and a bias; the map keeps its
    size."""

    def __init__(self, *, channels: int, side: int) -> None:
        super().__init__()
        self.weight = _kernel(in_channels=1, out_channels=channels, side=side)
        self.bias = set_init(nn.Parameter(torch.empty(channels)), zeros())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return F.conv2d(x_BCHW, self.weight, self.bias, padding=self.weight.shape[-1] // 2, groups=x_BCHW.shape[1])


class StandardisedConvolution(nn.Module):
    """A convolution whose kernel is given mean 0 and deviation 1 for every output channel first (Qiao et al. 2019).

    Padded as flax and TensorFlow pad by "SAME" an image whose sides are multiples of the stride: the odd one of the zeros goes
    below and to the right.
    """

    def __init__(self, *, in_channels: int, out_channels: int, side: int, stride: int = 1, epsilons: Epsilons) -> None:
        super().__init__()
        self.stride = stride
        self.epsilons = epsilons
        self.weight = _kernel(in_channels=in_channels, out_channels=out_channels, side=side)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W), both sides multiples of the stride, to (B, O, H / stride, W / stride)."""
        weight_OCKK = standardised(self.weight, epsilons=self.epsilons)
        num_zeros = max(0, weight_OCKK.shape[-1] - self.stride)
        before, odd = divmod(num_zeros, 2)
        if odd:
            x_BCHW = F.pad(x_BCHW, (before, before + 1, before, before + 1))
        return F.conv2d(x_BCHW, weight_OCKK, stride=self.stride, padding=0 if odd else before)


def standardised(weight_OCKK: Tensor, *, epsilons: Epsilons) -> Tensor:
    """The kernel with mean 0 and deviation 1 for every output channel, in its type but computed in fp32."""
    # A kernel's mean and deviation in bf16 would be off by half a percent.
    kernel_OCKK = weight_OCKK.float()
    variance_O111, mean_O111 = torch.var_mean(kernel_OCKK, dim=(1, 2, 3), correction=0, keepdim=True)
    if epsilons == "google":
        result_OCKK = (kernel_OCKK - mean_O111) / (variance_O111.sqrt() + 1e-5)
    else:
        result_OCKK = (kernel_OCKK - mean_O111) * (variance_O111 + 1e-8).rsqrt()
    return result_OCKK.to(weight_OCKK.dtype)


def _kernel(*, in_channels: int, out_channels: int, side: int) -> nn.Parameter:
    fan_in = in_channels * side**2
    return set_init(nn.Parameter(torch.empty(out_channels, in_channels, side, side)), lecun_normal(fan_in))
