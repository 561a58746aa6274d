import pytest
import torch
from timm.models.xcit import XCA

from vitscale.nn.attention import QkvBias
from vitscale.nn.context import BlockContext
from vitscale.nn.cross_covariance import CrossCovarianceAttention
from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid


@pytest.mark.parametrize("qkv_bias", ["all", "none"])
def test_equals_timms_in_values_and_gradients(qkv_bias: QkvBias) -> None:
    torch.manual_seed(0)
    ours = materialise(CrossCovarianceAttention(width=24, num_heads=3, qkv_bias=qkv_bias, proj_bias=True), seed=0)
    for parameter in ours.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    theirs = XCA(24, num_heads=3, qkv_bias=qkv_bias == "all")
    theirs.load_state_dict({**ours.state_dict(), "temperature": ours.temperature.data.view(3, 1, 1)})
    x_BND = torch.randn(2, 15, 24)
    context = BlockContext(grid=Grid(3, 5), num_prefix=0)
    mine_BND, other_BND = ours(x_BND, context=context), theirs(x_BND)
    assert (mine_BND - other_BND).abs().max() <= 1e-6
    weight_BND = torch.randn(mine_BND.shape)
    for y_BND in (mine_BND, other_BND):
        (y_BND * weight_BND).sum().backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(name).grad.reshape(parameter.shape)
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_does_not_depend_on_the_order_of_the_tokens() -> None:
    attention = materialise(CrossCovarianceAttention(width=8, num_heads=2, qkv_bias="all", proj_bias=True), seed=0)
    context, x_BND, order_N = BlockContext(grid=Grid(2, 3), num_prefix=0), torch.randn(1, 6, 8), torch.randperm(6)
    torch.testing.assert_close(attention(x_BND[:, order_N], context=context), attention(x_BND, context=context)[:, order_N])
