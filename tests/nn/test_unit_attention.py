import math

import pytest
import torch
import torch.nn.functional as F

from vitscale.nn.init import materialise
from vitscale.nn.unit_attention import UnitAttention, pool_units, to_units


@pytest.mark.parametrize("num_poolings", [1, 2, 3])
def test_pooling_units_again_and_again_is_max_pooling_of_the_map(num_poolings: int) -> None:
    side = 2**num_poolings
    x_BRCD = torch.randn(2, 2 * side, 3 * side, 5)
    units_BUSD = to_units(x_BRCD, num_poolings=num_poolings)
    assert units_BUSD.shape == (2, 6, side**2, 5)
    assert torch.equal(units_BUSD[:, 4].sort(1).values, x_BRCD[:, side:, side : 2 * side].flatten(1, 2).sort(1).values)
    map_BDRC = x_BRCD.permute(0, 3, 1, 2)
    for left in reversed(range(num_poolings)):
        map_BDRC, units_BUSD = F.max_pool2d(map_BDRC, 2), pool_units(units_BUSD)
        assert torch.equal(units_BUSD, to_units(map_BDRC.permute(0, 2, 3, 1), num_poolings=left))
    # Units of one token are a map, row by row.
    assert torch.equal(units_BUSD[:, :, 0], map_BDRC.flatten(2).transpose(1, 2))


def test_means_are_of_the_same_four_tokens() -> None:
    x_BRCD = torch.randn(1, 4, 8, 3)
    pooled = pool_units(to_units(x_BRCD, num_poolings=2), average=True)
    expected = F.avg_pool2d(x_BRCD.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled, to_units(expected, num_poolings=1))


@pytest.mark.parametrize("within_units", [True, False])
@pytest.mark.parametrize("pools", [True, False])
def test_every_head_attends_for_itself(within_units: bool, pools: bool) -> None:
    module = UnitAttention(in_width=6, width=8, num_heads=2, within_units=within_units, pools=pools)
    materialise(module, seed=0)
    for parameter in module.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    x_BUSD = torch.randn(2, 3, 16, 6, generator=torch.Generator().manual_seed(2))
    q, k, v = (part.unflatten(-1, (2, 4)) for part in module.qkv(x_BUSD).chunk(3, dim=-1))
    if pools:
        q = torch.stack([q[:, :, first : first + 4] for first in range(0, 16, 4)]).amax(0)
    mixed = torch.empty(2, 3, q.shape[2], 8)
    for image in range(2):
        for unit in range(3):
            for head in range(2):
                keys = k[image, unit, :, head] if within_units else k[image, :, :, head].flatten(0, 1)
                values = v[image, unit, :, head] if within_units else v[image, :, :, head].flatten(0, 1)
                scores = q[image, unit, :, head] @ keys.T / math.sqrt(4)
                mixed[image, unit, :, 4 * head : 4 * head + 4] = scores.softmax(dim=1) @ values
    torch.testing.assert_close(module(x_BUSD), module.proj(mixed), rtol=0, atol=2e-6)


def test_no_images_are_no_error() -> None:
    for within_units in (True, False):
        module = UnitAttention(in_width=6, width=8, num_heads=2, within_units=within_units, pools=True)
        materialise(module, seed=0)
        module(torch.randn(0, 3, 16, 6)).sum().backward()
        assert module.qkv.weight.grad is not None
        assert not module.qkv.weight.grad.any()
