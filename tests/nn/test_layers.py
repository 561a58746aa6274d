import pytest
import torch

from vitscale.nn.init import constant, materialise
from vitscale.nn.layers import LayerScale, layer_norm, linear, norm_layer


def test_linear_starts_from_its_recipes() -> None:
    layer = materialise(linear(in_width=3, out_width=2, weight=constant(2.0), bias=constant(1.0)), seed=0)
    assert layer(torch.ones(1, 3)).tolist() == [[7.0, 7.0]]
    assert materialise(linear(in_width=3, out_width=2, weight=constant(2.0)), seed=0).bias.tolist() == [0.0, 0.0]


def test_layer_norm_starts_as_plain_normalisation_with_its_eps() -> None:
    norm, x = materialise(layer_norm(4, eps=0.5), seed=0), torch.randn(2, 4)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 0.5).sqrt()
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm, x = materialise(norm_layer("rms", width=4, eps=0.5), seed=0), torch.randn(2, 4) + 3
    torch.testing.assert_close(norm(x), x / (x.square().mean(1, keepdim=True) + 0.5).sqrt())
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


def test_layer_scale_starts_at_its_value() -> None:
    assert materialise(LayerScale(3, init=1e-2), seed=0)(torch.ones(1, 3)).tolist() == [[pytest.approx(0.01)] * 3]


def test_a_linear_layer_may_have_no_bias() -> None:
    assert linear(in_width=3, out_width=2, weight=constant(2.0), has_bias=False).bias is None
