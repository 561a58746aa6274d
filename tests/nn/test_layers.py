import torch

from vitscale.nn.init import constant, materialise
from vitscale.nn.layers import layer_norm, linear


def test_linear_starts_from_its_recipes() -> None:
    layer = materialise(linear(in_width=3, out_width=2, weight=constant(2.0), bias=constant(1.0)), seed=0)
    assert layer(torch.ones(1, 3)).tolist() == [[7.0, 7.0]]
    assert materialise(linear(in_width=3, out_width=2, weight=constant(2.0)), seed=0).bias.tolist() == [0.0, 0.0]


def test_layer_norm_starts_as_plain_normalisation_with_its_eps() -> None:
    norm, x = materialise(layer_norm(4, eps=0.5), seed=0), torch.randn(2, 4)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 0.5).sqrt()
    torch.testing.assert_close(norm(x), expected)
