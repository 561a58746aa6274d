"""Resampling the kernel of the patch embedding to another patch size."""

# D width, C channels, P old patch side, Q new patch side, K = P*P

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_patch_kernel(weight: Tensor, *, num_channels: int, source: int, target: int) -> Tensor:
    """A kernel (D, C*P*P) for patches of side `source` as one (D, C*Q*Q) for patches of side `target`, in fp32.

    PI-resize of FlexiViT (Beyer et al. 2023, section 3.4): where patches are enlarged, the new kernel gives the resized
    patch exactly the embedding that the old kernel gave the original; else it is the least-squares answer. Patches are
    thought of as resized by antialiased bicubic interpolation, timm's choice (`resample_patch_embed`).
    """
    assert weight.shape[1] == num_channels * source**2, (weight.shape, num_channels, source)
    if source == target:
        return weight.float()
    # In float64: the pseudo-inverse of the resize is ill-conditioned when patches shrink a lot.
    inverse: Tensor = torch.linalg.pinv(_resize_matrix(source=source, target=target))
    weight_DCK = weight.double().reshape(weight.shape[0], num_channels, source**2)
    resampled: Tensor = weight_DCK @ inverse
    return resampled.flatten(1).float()


def _resize_matrix(*, source: int, target: int) -> Tensor:
    """The linear map (Q*Q, P*P) that resizes a flattened patch: column j is the resized j-th basis patch."""
    basis = torch.eye(source**2, dtype=torch.float64).reshape(source**2, 1, source, source)
    resized = F.interpolate(basis, size=(target, target), mode="bicubic", align_corners=False, antialias=True)
    matrix: Tensor = resized.flatten(1).T
    return matrix
