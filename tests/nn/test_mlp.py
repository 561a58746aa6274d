import pytest
import torch
from timm.layers import QuickGELU
from torch import nn
from transformers import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2SwiGLUFFN

from vitscale.nn.init import materialise
from vitscale.nn.mlp import Mlp, gated_width


@pytest.mark.parametrize(("gelu", "approximate"), [("exact", "none"), ("tanh", "tanh")])
def test_is_linear_gelu_linear(gelu: str, approximate: str) -> None:
    mlp = materialise(Mlp(width=6, hidden_width=10, gelu=gelu), seed=0)
    x_BND = 2 * torch.randn(2, 3, 6)
    assert torch.equal(mlp(x_BND), nn.Sequential(mlp.fc1, nn.GELU(approximate=approximate), mlp.fc2)(x_BND))


def test_the_quick_form_equals_timms_and_keeps_as_much_for_backward() -> None:
    kept = {}
    for gelu in ("quick", "exact"):
        mlp = materialise(Mlp(width=6, hidden_width=10, gelu=gelu), seed=0)
        sizes: list[int] = []
        x_BND = 2 * torch.randn(2, 3, 6)
        with torch.autograd.graph.saved_tensors_hooks(lambda value, sizes=sizes: sizes.append(value.numel()) or value, lambda value: value):
            ours_BND = mlp(x_BND)
        kept[gelu] = sum(sizes)
        act = QuickGELU() if gelu == "quick" else nn.GELU()
        torch.testing.assert_close(ours_BND, nn.Sequential(mlp.fc1, act, mlp.fc2)(x_BND), rtol=1e-6, atol=1e-6)
    assert kept["quick"] == kept["exact"]


def test_the_two_forms_differ() -> None:
    exact, tanh = (materialise(Mlp(width=6, hidden_width=10, gelu=gelu), seed=0) for gelu in ("exact", "tanh"))
    x_BND = 2 * torch.randn(2, 3, 6)
    assert 0 < (exact(x_BND) - tanh(x_BND)).abs().max() < 1e-2


@pytest.mark.parametrize("has_bias", [True, False])
def test_gated_equals_dinov2s_in_transformers(has_bias: bool) -> None:
    theirs = Dinov2SwiGLUFFN(Dinov2Config(hidden_size=12, mlp_ratio=4))
    ours = materialise(Mlp(width=12, hidden_width=gated_width(48, kind="swiglu"), gelu="exact", is_gated=True, has_bias=has_bias), seed=0)
    (gate, value), out = (torch.chunk(ours.fc1.weight, 2), ours.fc2.weight)
    state = {"gate_proj.weight": gate, "up_proj.weight": value, "down_proj.weight": out}
    if has_bias:
        gate, value = torch.chunk(ours.fc1.bias, 2)
        state |= {"gate_proj.bias": gate, "up_proj.bias": value, "down_proj.bias": ours.fc2.bias}
    else:
        state |= {name: torch.zeros_like(value) for name, value in theirs.named_parameters() if name.endswith("bias")}
    theirs.load_state_dict(state)
    x_BND = torch.randn(2, 3, 12)
    torch.testing.assert_close(ours(x_BND), theirs(x_BND))


def test_the_halves_of_a_gated_mlp_start_as_separate_glorot_matrices() -> None:
    weight = materialise(Mlp(width=64, hidden_width=64, gelu="exact", is_gated=True), seed=0).fc1.weight
    bound = (6 / 128) ** 0.5  # of a (64, 64) matrix
    for part in weight.chunk(2):
        assert 0.98 * bound < part.abs().max() <= bound


# dinov2's ViT-g/14; dinov3's ViT-S+, H+ and 7B; the size of EVA-02-B.
@pytest.mark.parametrize(
    ("kind", "width", "expected"),
    [("swiglu", 6144, 4096), ("swiglu64", 2304, 1536), ("swiglu64", 7680, 5120), ("swiglu64", 12288, 8192), ("swiglu", 3072, 2048)],
)
def test_gated_widths_are_the_published_ones(kind: str, width: int, expected: int) -> None:
    assert gated_width(width, kind=kind) == expected


def test_the_hidden_norm_normalises_before_the_last_layer() -> None:
    mlp = materialise(Mlp(width=6, hidden_width=10, gelu="exact", hidden_norm="layer"), seed=0)
    x_BND = torch.randn(2, 3, 6)
    torch.testing.assert_close(mlp(x_BND), nn.Sequential(mlp.fc1, nn.GELU(), nn.LayerNorm(10, eps=1e-6), mlp.fc2)(x_BND))
