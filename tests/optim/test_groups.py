"""Weight decay reaches kernels and nothing else."""

from vitscale.optim.groups import parameter_groups

SHAPES = [
    ("backbone.patch_embed.weight", (96, 49)),
    ("backbone.patch_embed.bias", (96,)),
    ("backbone.cls_token", (1, 1, 96)),
    ("backbone.pos_embed", (1, 17, 96)),
    ("backbone.window_pos_embed", (1, 64, 96)),
    ("backbone.blocks.0.norm1.weight", (96,)),
    ("backbone.blocks.0.attn.qkv.weight", (288, 96)),
    ("backbone.blocks.0.attn.position_bias.table", (169, 3)),
    ("backbone.blocks.0.attn.position_bias.fc1.weight", (512, 2)),
    ("backbone.blocks.0.attn.rope.frequencies", (2, 3, 16)),
    ("backbone.shared_position_bias.table", (732, 12)),
    ("backbone.factorised_positions.rows", (14, 96)),
    ("head.fc.weight", (10, 96)),
    ("head.fc.bias", (10,)),
]


def test_kernels_decay_and_the_rest_does_not() -> None:
    decayed, undecayed = parameter_groups(SHAPES, weight_decay=0.05)
    assert decayed.names == ("backbone.patch_embed.weight", "backbone.blocks.0.attn.qkv.weight", "head.fc.weight")
    assert decayed.weight_decay == 0.05
    assert undecayed.weight_decay == 0.0
    assert set(decayed.names) | set(undecayed.names) == {name for name, _ in SHAPES}


def test_a_group_without_members_is_left_out() -> None:
    (only,) = parameter_groups([("norm.weight", (8,))], weight_decay=0.05)
    assert only.names == ("norm.weight",)
    assert only.weight_decay == 0.0
