"""Rules of plain models; tests/train/test_weight_families.py lets the projects' own code read the names."""

from vitscale.weights.forms import Sizes
from vitscale.weights.vit_rules import big_vision, hf_dinov2, hf_vit, vit_jax

SIZES = Sizes(num_channels=3, num_heads=4, stem_units=(1, 2))


def test_the_units_of_a_stem_are_counted_from_one() -> None:
    names = {rule.ours[0]: rule.theirs[0] for rule in vit_jax(SIZES)}
    assert names["backbone.stem.root.conv.weight"] == "conv_root/kernel"
    assert names["backbone.stem.stages.1.0.norm_proj.bias"] == "block2/unit1/gn_proj/bias"
    assert names["backbone.stem.stages.1.1.conv2.weight"] == "block2/unit2/conv2/kernel"
    assert not any("stem" in rule.ours[0] for rule in big_vision(SIZES))


def test_heads_and_mlps_have_their_own_names() -> None:
    assert {rule.theirs[0] for rule in hf_vit("deit", "cls", "dist")} >= {"cls.weight", "dist.bias", "deit.layernorm.weight"}
    gated = {rule.theirs[0] for rule in hf_dinov2("dinov2", Sizes(num_channels=3, num_heads=4, is_gated=True))}
    assert "dinov2.encoder.layer.{i}.mlp.weights_out.bias" in gated
