"""Rules of Swin: blocks are numbered within their stage there, and through all stages here."""

import pytest

from vitscale.weights.forms import Sizes
from vitscale.weights.names import plan_conversions
from vitscale.weights.rules import Layout

SHAPES = {"backbone.blocks.4.norm1.weight": (8,), "backbone.merges.0.reduction.weight": (16, 32)}


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("timm_swin", ["layers.1.blocks.2.norm1.weight", "layers.1.downsample.reduction.weight"]),
        ("hf_swin", ["swin.encoder.layers.1.blocks.2.layernorm_before.weight", "swin.encoder.layers.0.downsample.reduction.weight"]),
        ("hf_swinv2", ["swinv2.encoder.layers.1.blocks.2.layernorm_before.weight", "swinv2.encoder.layers.0.downsample.reduction.weight"]),
    ],
)
def test_the_fifth_block_is_the_third_of_its_stage(layout: Layout, expected: list[str]) -> None:
    conversions = plan_conversions(SHAPES, layout=layout, sizes=Sizes(num_channels=3, num_heads=1, stage_depths=(2, 6)))
    assert [name for conversion in conversions for name in conversion.theirs] == expected
