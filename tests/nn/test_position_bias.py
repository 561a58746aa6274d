import pytest

from vitscale.nn.decomposed_bias import DecomposedBiasConfig
from vitscale.nn.init import initial_value
from vitscale.nn.log_spaced_bias import LogSpacedBiasConfig
from vitscale.nn.position_bias import PositionBiasConfig, position_bias
from vitscale.nn.relative_bias import RelativeBiasConfig
from vitscale.nn.resample import Grid


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (RelativeBiasConfig(), {"table": (5 * 7 + 3, 6)}),
        (LogSpacedBiasConfig(hidden_width=9), {"fc1.weight": (9, 2), "fc1.bias": (9,), "fc2.weight": (6, 9)}),
        (DecomposedBiasConfig(), {"rows": (5, 8), "columns": (7, 8)}),
    ],
)
def test_every_kind_has_its_parameters_and_their_recipes(config: PositionBiasConfig, shapes: dict) -> None:
    bias = position_bias(config, grid=Grid(3, 4), num_heads=6, head_width=8, has_prefix=True, rule="bicubic")
    assert {name: tuple(parameter.shape) for name, parameter in bias.named_parameters()} == shapes
    assert list(bias.buffers()) == []
    for name, parameter in bias.named_parameters():
        initial_value(parameter, name=name, shape=parameter.shape, seed=0)
