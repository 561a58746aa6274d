import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import StdConv2dSame

from vitscale.nn.convolution import Convolution, DepthwiseConvolution, StandardisedConvolution, standardised
from vitscale.nn.init import initial_value, materialise


@pytest.mark.parametrize(("side", "stride"), [(7, 2), (3, 2), (3, 1), (1, 2), (1, 1)])
def test_equals_timms_on_a_map_that_is_not_square(side: int, stride: int) -> None:
    ours = materialise(StandardisedConvolution(in_channels=16, out_channels=5, side=side, stride=stride, epsilons="timm"), seed=0)
    theirs = StdConv2dSame(16, 5, side, stride=stride, eps=1e-8)
    theirs.weight.data = ours.weight.data
    x_BCHW = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    mine_BCHW, other_BCHW = ours(x_BCHW), theirs(x_BCHW)
    assert mine_BCHW.shape == other_BCHW.shape
    assert (mine_BCHW - other_BCHW).abs().max() <= 1e-6 * other_BCHW.abs().max()


def test_googles_kernel_is_divided_by_its_deviation_plus_epsilon() -> None:
    weight_OCKK = 1e-3 * torch.randn(4, 2, 3, 3)
    kernel = weight_OCKK.double().numpy()
    mean, deviation = kernel.mean(axis=(1, 2, 3), keepdims=True), kernel.std(axis=(1, 2, 3), keepdims=True)
    expected = torch.from_numpy((kernel - mean) / (deviation + 1e-5)).float()
    np.testing.assert_allclose(standardised(weight_OCKK, epsilons="google"), expected, rtol=1e-5, atol=1e-6)
    assert (standardised(weight_OCKK, epsilons="timm") - expected).abs().max() > 1e-3


def test_a_bf16_kernel_is_standardised_in_fp32() -> None:
    weight_OCKK = (1 + 0.05 * torch.randn(2, 64, 3, 3)).bfloat16()
    expected = standardised(weight_OCKK.float(), epsilons="google").bfloat16()
    assert torch.equal(standardised(weight_OCKK, epsilons="google"), expected)


def test_a_plain_convolution_is_torchs() -> None:
    conv = materialise(Convolution(in_channels=2, out_channels=3, side=3, stride=2, padding=1), seed=0)
    x_BCHW = torch.randn(1, 2, 6, 8)
    assert torch.equal(conv(x_BCHW), F.conv2d(x_BCHW, conv.weight, stride=2, padding=1))
    assert initial_value(conv.weight, name="w", shape=(3, 2, 3, 3), seed=0).std() == pytest.approx(18**-0.5, rel=0.3)


def test_a_depthwise_convolution_sees_one_channel() -> None:
    conv = materialise(DepthwiseConvolution(channels=2, side=3), seed=0)
    x_BCHW = torch.randn(1, 2, 4, 5)
    for channel in range(2):
        alone = F.conv2d(x_BCHW[:, channel : channel + 1], conv.weight[channel : channel + 1], conv.bias[channel : channel + 1], padding=1)
        torch.testing.assert_close(conv(x_BCHW)[:, channel : channel + 1], alone)
