import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid
from vitscale.nn.window_attention import CosineWindowAttention, WindowAttention
from vitscale.nn.windows import Windows


class FreeBias(nn.Module):
    """A bias of its own for every head and pair of tokens of a window."""

    def __init__(self, num_heads: int, num_tokens: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(num_heads, num_tokens, num_tokens, generator=torch.Generator().manual_seed(2)))
        self.values.init = None

    def forward(self, *, grid: Grid, num_prefix: int) -> torch.Tensor:
        assert (grid.rows * grid.columns, num_prefix) == (self.values.shape[1], 0)
        return self.values


def attention(kind: type[WindowAttention], *, shift: int) -> WindowAttention:
    windows = Windows(side=3, shift=shift, padding="before_shift")
    module = kind(width=8, num_heads=2, windows=windows, position_bias=nn.Identity())
    materialise(module, seed=0)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    module.position_bias = FreeBias(2, 9)
    return module


def expected_map(module: WindowAttention, x_BRCD: torch.Tensor) -> torch.Tensor:
    """Window by window and head by head."""
    grid = Grid(*x_BRCD.shape[1:3])
    windows_BWMD = module.windows.cut(x_BRCD)
    mask_WMM = module.windows.mask(x_BRCD, grid=grid)
    mixed_BWMD = torch.empty_like(windows_BWMD)
    for image, windows_WMD in enumerate(windows_BWMD):
        for window, x_MD in enumerate(windows_WMD):
            for head in range(2):
                q_MK, k_MK, v_MK = (part_MD[:, 4 * head : 4 * head + 4] for part_MD in module.qkv(x_MD).chunk(3, dim=1))
                if isinstance(module, CosineWindowAttention):
                    scale = module.logit_scale[head].exp().clamp(max=100.0)
                    scores_MM = scale * F.cosine_similarity(q_MK[:, None], k_MK[None], dim=-1)
                else:
                    scores_MM = q_MK @ k_MK.T / math.sqrt(4)
                scores_MM = scores_MM + module.position_bias.values[head]
                if mask_WMM is not None:
                    scores_MM = scores_MM + mask_WMM[window]
                mixed_BWMD[image, window, :, 4 * head : 4 * head + 4] = scores_MM.softmax(dim=1) @ v_MK
    return module.windows.join(module.proj(mixed_BWMD), grid=grid)


@pytest.mark.parametrize("kind", [WindowAttention, CosineWindowAttention])
@pytest.mark.parametrize(("shift", "grid"), [(0, Grid(6, 6)), (1, Grid(6, 9)), (1, Grid(4, 7))])
def test_every_window_and_head_attends_for_itself(kind: type[WindowAttention], shift: int, grid: Grid) -> None:
    module = attention(kind, shift=shift)
    x_BRCD = torch.randn(2, *grid, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(module(x_BRCD), expected_map(module, x_BRCD), rtol=0, atol=2e-6)


def test_the_scale_of_cosines_is_at_most_100() -> None:
    module = attention(CosineWindowAttention, shift=0)
    x_BRCD = torch.randn(1, 3, 3, 8)
    module.logit_scale.data.fill_(math.log(100.0))
    at_most = module(x_BRCD)
    module.logit_scale.data.fill_(9.0)
    assert torch.equal(module(x_BRCD), at_most)
    module(x_BRCD).sum().backward()
    assert module.logit_scale.grad.eq(0).all()


def test_no_images_are_no_error() -> None:
    for shift in (0, 1):
        for kind in (WindowAttention, CosineWindowAttention):
            module = attention(kind, shift=shift)
            module(torch.randn(0, 6, 6, 8)).sum().backward()
            assert module.position_bias.values.grad.eq(0).all()
