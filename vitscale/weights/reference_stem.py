"""The stem of Google's hybrids by the formulas of vit_jax and of timm, straight from the names and shapes of a file.

Part of the yardstick of imports and exports (reference.py): it shares nothing with our stem.
"""

# B batch, C channels, H height, W width, O output channels, G groups

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Read = Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Called:
    """What a project calls the parts, and what it adds so that nothing is divided by 0. `{n}` counts from 1, `{s}` and `{u}` from
    `first`."""

    root: tuple[str, str]
    unit: str
    first: int
    parts: tuple[str, str]
    shortcut: tuple[str, str]
    leaves: tuple[str, str, str]
    """Kernel of a convolution, scale and bias of a norm."""
    is_hwio: bool
    added_to: Literal["deviation", "variance"]
    """Of a kernel."""
    kernel_epsilon: float
    norm_epsilon: float


_VIT_JAX = _Called(
    root=("conv_root", "gn_root"),
    unit="block{s}/unit{u}",
    first=1,
    parts=("/conv{n}", "/gn{n}"),
    shortcut=("/conv_proj", "/gn_proj"),
    leaves=("/kernel", "/scale", "/bias"),
    is_hwio=True,
    added_to="deviation",
    kernel_epsilon=1e-5,
    norm_epsilon=1e-6,
)
_TIMM = _Called(
    root=("patch_embed.backbone.stem.conv", "patch_embed.backbone.stem.norm"),
    unit="patch_embed.backbone.stages.{s}.blocks.{u}",
    first=0,
    parts=(".conv{n}", ".norm{n}"),
    shortcut=(".downsample.conv", ".downsample.norm"),
    leaves=(".weight", ".weight", ".bias"),
    is_hwio=False,
    added_to="variance",
    kernel_epsilon=1e-8,
    norm_epsilon=1e-5,
)
_TIMM_ROOT_ONLY = replace(_TIMM, root=("patch_embed.backbone.conv", "patch_embed.backbone.norm"))
_ALL = (_VIT_JAX, _TIMM, _TIMM_ROOT_ONLY)


def stem_output(image_BCHW: Tensor, *, names: Collection[str], read: Read) -> Tensor:
    """The map of features that patches are cut from: the image itself where the file has no stem."""
    called = next((each for each in _ALL if f"{each.root[0]}{each.leaves[0]}" in names), None)
    if called is None:
        return image_BCHW
    x_BCHW = _normed(image_BCHW, *called.root, stride=2, called=called, read=read).relu()
    x_BCHW = F.max_pool2d(_same(x_BCHW, side=3, stride=2, value=-torch.inf), kernel_size=3, stride=2)
    stage = 0
    while _unit(called, stage, 0) + called.parts[0].format(n=1) + called.leaves[0] in names:
        unit = 0
        while (at := _unit(called, stage, unit)) + called.parts[0].format(n=1) + called.leaves[0] in names:
            stride = 2 if stage and not unit else 1
            x_BCHW = _bottleneck(x_BCHW, at=at, stride=stride, called=called, names=names, read=read)
            unit += 1
        stage += 1
    return x_BCHW


def _unit(called: _Called, stage: int, unit: int) -> str:
    return called.unit.format(s=stage + called.first, u=unit + called.first)


def _bottleneck(x_BCHW: Tensor, *, at: str, stride: int, called: _Called, names: Collection[str], read: Read) -> Tensor:
    conv_proj, norm_proj = (f"{at}{part}" for part in called.shortcut)
    shortcut_BCHW = x_BCHW
    if f"{conv_proj}{called.leaves[0]}" in names:
        shortcut_BCHW = _normed(x_BCHW, conv_proj, norm_proj, stride=stride, called=called, read=read)
    for number in (1, 2, 3):
        conv, norm = (f"{at}{part.format(n=number)}" for part in called.parts)
        x_BCHW = _normed(x_BCHW, conv, norm, stride=stride if number == 2 else 1, called=called, read=read)
        x_BCHW = x_BCHW.relu() if number < 3 else x_BCHW
    return (shortcut_BCHW + x_BCHW).relu()


def _normed(x_BCHW: Tensor, conv: str, norm: str, *, stride: int, called: _Called, read: Read) -> Tensor:
    """A standardised convolution, padded by "SAME", and a norm over 32 groups of channels."""
    kernel = read(f"{conv}{called.leaves[0]}")
    kernel_OCKK = kernel.permute(3, 2, 0, 1) if called.is_hwio else kernel
    centred_OCKK = kernel_OCKK - kernel_OCKK.mean(dim=(1, 2, 3), keepdim=True)
    variance_O111 = centred_OCKK.square().mean(dim=(1, 2, 3), keepdim=True)
    if called.added_to == "deviation":
        kernel_OCKK = centred_OCKK / (variance_O111.sqrt() + called.kernel_epsilon)
    else:
        kernel_OCKK = centred_OCKK / (variance_O111 + called.kernel_epsilon).sqrt()
    y_BCHW = F.conv2d(_same(x_BCHW, side=kernel_OCKK.shape[-1], stride=stride), kernel_OCKK, stride=stride)
    y_BGN = y_BCHW.unflatten(1, (32, -1)).flatten(2)
    mean, variance = y_BGN.mean(dim=2, keepdim=True), y_BGN.var(dim=2, keepdim=True, unbiased=False)
    normed_BCHW: Tensor = ((y_BGN - mean) * torch.rsqrt(variance + called.norm_epsilon)).view_as(y_BCHW)
    scale, bias = (read(f"{norm}{leaf}").view(-1, 1, 1) for leaf in called.leaves[1:])
    scaled_BCHW: Tensor = normed_BCHW * scale + bias
    return scaled_BCHW


def _same(x_BCHW: Tensor, *, side: int, stride: int, value: float = 0.0) -> Tensor:
    zeros = [max(0, (-(-length // stride) - 1) * stride + side - length) for length in (x_BCHW.shape[3], x_BCHW.shape[2])]
    return F.pad(x_BCHW, [part for total in zeros for part in (total // 2, total - total // 2)], value=value)
