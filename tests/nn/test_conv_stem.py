import pytest
import torch
from pydantic import ValidationError
from timm.layers import LayerNorm2d
from timm.models.vision_transformer_hybrid import ConvStem as TimmConvStem
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitscale.nn.conv_stem import ConvStemConfig
from vitscale.nn.init import initial_value, materialise

STEM = ConvStemConfig(widths=(8, 16, 16), strides=(2, 1, 2))


class Timms(nn.Module):
    """timm's stem of these convolutions, whose last, bare one is left out."""

    def __init__(self, *, num_channels: int) -> None:
        super().__init__()
        stem = TimmConvStem(num_channels, 4, (8, 16, 16, 4), kernel_size=(3, 3, 3, 1), stride=(2, 1, 2, 1), norm_layer=LayerNorm2d)
        self.layers = nn.Sequential(*list(stem)[:3])

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.layers(x_BCHW)


def test_equals_timms_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    ours, theirs = materialise(STEM.build(num_channels=2), seed=0), Timms(num_channels=2)
    for ours_i, theirs_i in zip(ours.layers, theirs.layers, strict=True):
        theirs_i.bn.eps = 1e-6
        ours_i.norm.weight.data += 0.1 * torch.randn(ours_i.norm.weight.shape)
        for mine, other in ((ours_i.conv, theirs_i.conv), (ours_i.norm, theirs_i.bn)):
            other.load_state_dict(mine.state_dict())
    image_BCHW = torch.randn(2, 2, 16, 24)
    mine_BCHW, other_BCHW = ours(image_BCHW), theirs(image_BCHW)
    assert mine_BCHW.shape == (2, STEM.out_channels(2), 16 // STEM.stride, 24 // STEM.stride)
    torch.testing.assert_close(mine_BCHW, other_BCHW, rtol=0, atol=1e-6)
    weight_BCHW = torch.randn(mine_BCHW.shape)
    for map_BCHW in (mine_BCHW, other_BCHW):
        (map_BCHW * weight_BCHW).sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad - other.grad).abs().max() <= 1e-5 * other.grad.abs().max()


def test_flops_and_sizes_are_those_of_the_built_stem() -> None:
    shape = STEM.shape(num_channels=3, image_size=32)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        stem = STEM.build(num_channels=3)
        map_BCHW = stem(torch.empty(1, 3, 32, 32))
    assert (counter.get_total_flops(), map_BCHW.numel()) == (shape.forward_flops, shape.result_elements)
    for name, parameter in stem.named_parameters():
        initial_value(parameter, name=name, shape=parameter.shape, seed=0)


def test_strides_are_two_unless_told() -> None:
    assert ConvStemConfig(widths=(8, 8, 8)).stride == 8
    assert ConvStemConfig(widths=(8, 8), strides=(2, 2)).architecture() == ConvStemConfig(widths=(8, 8)).architecture()


def test_one_stride_per_convolution() -> None:
    with pytest.raises(ValidationError, match="2 strides for the 3 convolutions"):
        ConvStemConfig(widths=(8, 8, 8), strides=(2, 2))
