"""Rules: no layout calls two tensors by one name; the libraries themselves read the names in tests/train/test_weight_families.py."""

from typing import get_args

import pytest

from vitscale.weights.forms import Sizes
from vitscale.weights.rule import CLASS_TOKEN, POSITIONS
from vitscale.weights.rules import Layout, rules_of


@pytest.mark.parametrize("layout", [layout for layout in get_args(Layout) if layout != "onnx"])
def test_every_name_is_given_once(layout: Layout) -> None:
    rules = rules_of(layout, sizes=Sizes(num_channels=3, num_heads=4))
    alone = [rule for rule in rules if rule.ours != (CLASS_TOKEN, POSITIONS)]
    ours = [name for rule in alone for name in rule.ours]
    # Biases of queries and values are ours as one tensor with that of the keys, or without.
    theirs = [name for rule in alone for name in rule.theirs if "bias" not in name]
    assert len(ours) == len(set(ours))
    assert len(theirs) == len(set(theirs))


def test_names_follow_the_switches_of_the_model() -> None:
    plain, changed = (
        {
            rule.ours[0]: rule.theirs[0]
            for rule in rules_of(layout, sizes=Sizes(num_channels=3, num_heads=4, is_gated=is_on, is_pooled_norm=is_on))
        }
        for layout, is_on in (("timm", False), ("timm", True))
    )
    assert (plain["backbone.norm.weight"], changed["backbone.norm.weight"]) == ("norm.weight", "fc_norm.weight")
    gated = rules_of("hf_dinov2", sizes=Sizes(num_channels=3, num_heads=4, is_gated=True))
    assert "dinov2.encoder.layer.{i}.mlp.weights_in.weight" in {name for rule in gated for name in rule.theirs}
