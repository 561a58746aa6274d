"""Rules of BEiT, EVA-02 and DINOv3; tests/train/test_weight_families.py lets the projects' own code read the names."""

import pytest

from vitscale.weights.forms import Sizes
from vitscale.weights.kin_rules import hf_beit, hf_dinov3, timm_eva


@pytest.mark.parametrize(("is_split", "mlp", "qkv"), [(False, "fc1.weight", "qkv.weight"), (True, "fc1_g.weight", "q_proj.weight")])
def test_what_is_apart_in_the_file_is_apart_in_the_rules(is_split: bool, mlp: str, qkv: str) -> None:
    rules = timm_eva(Sizes(num_channels=3, num_heads=4, is_split_mlp=is_split, is_split_qkv=is_split))
    first = {}
    for rule in rules:
        first.setdefault(rule.ours[0], rule.theirs[0])
    assert first["backbone.blocks.{i}.mlp.fc1.weight"] == f"blocks.{{i}}.mlp.{mlp}"
    assert first["backbone.blocks.{i}.attn.qkv.weight"] == f"blocks.{{i}}.attn.{qkv}"


def test_the_norm_of_beit_is_that_of_its_pooler_where_the_mean_is_normalised() -> None:
    for is_pooled, expected in ((True, "beit.pooler.layernorm.bias"), (False, "beit.layernorm.bias")):
        names = {rule.ours[0]: rule.theirs[0] for rule in hf_beit(Sizes(num_channels=3, num_heads=4, is_pooled_norm=is_pooled))}
        assert names["backbone.norm.bias"] == expected


def test_dinov3_has_a_gate_only_where_it_is_gated() -> None:
    for is_gated, expected in ((True, 2), (False, 1)):
        rules = {rule.ours[0]: rule.theirs for rule in hf_dinov3(Sizes(num_channels=3, num_heads=4, is_gated=is_gated))}
        assert len(rules["backbone.blocks.{i}.mlp.fc1.weight"]) == expected
