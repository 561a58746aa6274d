"""Linear layers and layer norms whose parameters carry their init recipe."""

from torch import nn

from vitscale.nn.init import Init, constant, set_init, zeros


def linear(*, in_width: int, out_width: int, weight: Init, bias: Init | None = None) -> nn.Linear:
    """A linear layer with a bias (zeros unless told)."""
    layer = nn.Linear(in_width, out_width)
    set_init(layer.weight, weight)
    set_init(layer.bias, bias or zeros())
    return layer


def layer_norm(width: int, *, eps: float) -> nn.LayerNorm:
    """Layer normalisation over the last dimension, starting as the identity's scale and shift."""
    layer = nn.LayerNorm(width, eps=eps)
    set_init(layer.weight, constant(1.0))
    set_init(layer.bias, zeros())
    return layer
