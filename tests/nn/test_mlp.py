import pytest
import torch
from torch import nn

from vitscale.nn.init import materialise
from vitscale.nn.mlp import Mlp


@pytest.mark.parametrize(("gelu", "approximate"), [("exact", "none"), ("tanh", "tanh")])
def test_is_linear_gelu_linear(gelu: str, approximate: str) -> None:
    mlp = materialise(Mlp(width=6, hidden_width=10, gelu=gelu), seed=0)
    x_BND = 2 * torch.randn(2, 3, 6)
    assert torch.equal(mlp(x_BND), nn.Sequential(mlp.fc1, nn.GELU(approximate=approximate), mlp.fc2)(x_BND))


def test_the_two_forms_differ() -> None:
    exact, tanh = (materialise(Mlp(width=6, hidden_width=10, gelu=gelu), seed=0) for gelu in ("exact", "tanh"))
    x_BND = 2 * torch.randn(2, 3, 6)
    assert 0 < (exact(x_BND) - tanh(x_BND)).abs().max() < 1e-2
