"""The biases that attention adds to its scores for the places of two tokens, by kind."""

from typing import Annotated

from pydantic import Field

from vitscale.nn.decomposed_bias import DecomposedBias, DecomposedBiasConfig
from vitscale.nn.log_spaced_bias import LogSpacedBias, LogSpacedBiasConfig
from vitscale.nn.relative_bias import RelativeBias, RelativeBiasConfig
from vitscale.nn.resample import Grid, RelativeRule

PositionBiasConfig = Annotated[RelativeBiasConfig | LogSpacedBiasConfig | DecomposedBiasConfig, Field(discriminator="kind")]
PositionBias = RelativeBias | LogSpacedBias | DecomposedBias


def position_bias(
    config: PositionBiasConfig, *, grid: Grid, num_heads: int, head_width: int, has_prefix: bool, rule: RelativeRule | None
) -> PositionBias:
    """The bias of attention that spans `grid`; away from it a table of offsets is resampled by `rule`."""
    match config:
        case RelativeBiasConfig():
            assert rule is not None, "validation asks for a rule where there is a table of offsets"
            return config.build(grid=grid, num_heads=num_heads, has_prefix=has_prefix, rule=rule)
        case LogSpacedBiasConfig():
            return config.build(num_heads=num_heads)
        case DecomposedBiasConfig():
            return config.build(grid=grid, head_width=head_width)
