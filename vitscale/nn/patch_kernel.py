"""Resampling the kernel of the patch embedding to another patch size: of a stored model, or at every step of training."""

# D width, C channels, P old patch side, Q new patch side, K = P*P

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.nn.tables import TableCache

KernelMode = Literal["timm", "flexivit"]
"""How a patch is thought of as resized. timm: antialiased bicubic (`resample_patch_embed`). flexivit: bilinear without antialiasing
(`tf.image.resize` in google-research/big_vision, models/proj/flexi/vit.py; timm reads FlexiViT's and Google's own files so)."""


def resample_patch_kernel(weight: Tensor, *, num_channels: int, source: int, target: int, mode: KernelMode = "timm") -> Tensor:
    """A kernel (D, C*P*P) for patches of side `source` as one (D, C*Q*Q) for patches of side `target`, in fp32.

    PI-resize of FlexiViT (Beyer et al. 2023, section 3.4): where patches are enlarged, the new kernel gives the resized
    patch exactly the embedding that the old kernel gave the original; else it is the least-squares answer.
    """
    assert weight.shape[1] == num_channels * source**2, (weight.shape, num_channels, source)
    if source == target:
        return weight.float()
    inverse = _inverse_resize(source=source, target=target, mode=mode)
    weight_DCK = weight.double().reshape(weight.shape[0], num_channels, source**2)
    resampled: Tensor = weight_DCK @ inverse
    return resampled.flatten(1).float()


class FlexibleKernel:
    """A trained kernel for patches of side `source` as one for patches of any side, with a gradient: FlexiViT's, by mode flexivit."""

    def __init__(self, *, num_channels: int, source: int) -> None:
        self._num_channels = num_channels
        self._inverses = TableCache(lambda target: _inverse_resize(source=source, target=target, mode="flexivit"))

    def resampled(self, weight: Tensor, *, target: int) -> Tensor:
        """(D, C*P*P) to (D, C*Q*Q) of the same type, computed in fp32."""
        weight_DCK = weight.float().unflatten(1, (self._num_channels, -1))
        resampled: Tensor = weight_DCK @ self._inverses.like(weight_DCK, target)
        return resampled.flatten(1).to(weight.dtype)


def _inverse_resize(*, source: int, target: int, mode: KernelMode) -> Tensor:
    """The pseudo-inverse (P*P, Q*Q) of the resize of a patch, in float64: it is ill-conditioned when patches shrink a lot."""
    inverse: Tensor = torch.linalg.pinv(_resize_matrix(source=source, target=target, mode=mode))
    return inverse


def _resize_matrix(*, source: int, target: int, mode: KernelMode) -> Tensor:
    """The linear map (Q*Q, P*P) that resizes a flattened patch: column j is the resized j-th basis patch."""
    basis = torch.eye(source**2, dtype=torch.float64).reshape(source**2, 1, source, source)
    how, antialias = ("bicubic", True) if mode == "timm" else ("bilinear", False)
    resized = F.interpolate(basis, size=(target, target), mode=how, align_corners=False, antialias=antialias)
    matrix: Tensor = resized.flatten(1).T
    return matrix
