"""Image to patch tokens as one matrix product over unfolded patches."""

# B batch, C channels, P patch side, G grid side, N patches, D width

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.init import lecun_normal, set_init, zeros
from vitscale.nn.patch_kernel import FlexibleKernel


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping square patches, row by row.

    `weight` is (D, C*P*P): a convolution's OIHW kernel flattened, so a kernel of shape (D, C, P, P) is copied by a reshape. For
    patches of another side it is resampled by PI-resize, and trained through (FlexiViT, Beyer et al. 2023).
    """

    def __init__(self, *, num_channels: int, patch_size: int, width: int, has_bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.flexible_kernel = FlexibleKernel(num_channels=num_channels, source=patch_size)
        fan_in = num_channels * patch_size**2
        self.weight = set_init(nn.Parameter(torch.empty(width, fan_in)), lecun_normal(fan_in))
        self.bias = set_init(nn.Parameter(torch.empty(width)), zeros()) if has_bias else None

    def forward(self, image_BCHW: Tensor, *, patch_size: int | None = None) -> Tensor:
        """(B, C, H, W), both sides multiples of the patch side, to (B, N, D). `patch_size` None is the kernel's own."""
        side = patch_size or self.patch_size
        weight = self.weight if side == self.patch_size else self.flexible_kernel.resampled(self.weight, target=side)
        return F.linear(unfold_patches(image_BCHW, patch_size=side), weight, self.bias)


def unfold_patches(image_BCHW: Tensor, *, patch_size: int) -> Tensor:
    """(B, C, H, W) to (B, N, C*P*P): patches row by row, each in channel, row, column order."""
    b, c, h, w = image_BCHW.shape
    rows, columns = h // patch_size, w // patch_size
    image_BCGPGP = image_BCHW.reshape(b, c, rows, patch_size, columns, patch_size)
    return image_BCGPGP.permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, c * patch_size**2)
