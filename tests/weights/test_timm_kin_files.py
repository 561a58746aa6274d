"""Files of BEiT, EVA-02 and DINOv3 with timm's names and their authors' own: what the shapes tell."""

from typing import Any

from vitscale.weights.family import Described, Entry
from vitscale.weights.forms import Shape
from vitscale.weights.timm_kin_files import TIMM_KIN

COMMON: dict[str, Shape] = {
    "patch_embed.proj.weight": (32, 3, 16, 16),
    "cls_token": (1, 1, 32),
    "blocks.0.norm1.weight": (32,),
    "blocks.0.mlp.fc2.weight": (32, 64),
}


def described(shapes: dict[str, Shape], **config: Any) -> Described:
    assert TIMM_KIN.claims(shapes)
    entries = TIMM_KIN.entries(shapes)
    return TIMM_KIN.describe(
        {name: entry.shape for name, entry in entries.items()}, settings={"config.json": config} if config else {}, where="w"
    )


def test_beits_table_tells_heads_and_image() -> None:
    table = {"blocks.0.attn.relative_position_bias_table": (27**2 + 3, 4), "blocks.0.mlp.fc1.weight": (64, 32), "fc_norm.weight": (32,)}
    found = described(COMMON | table)
    expected = {"num_heads": 4, "image_size": 224, "pooling": "mean", "norm_place": "pooled", "positions": "none"}
    assert found.model | expected == found.model
    assert (found.layout, found.positions, found.model["position_bias"]) == ("timm_beit", "beit", {"kind": "relative", "shared": False})


def test_metas_dinov3_is_read_under_timms_names() -> None:
    """Gated, with one bias of queries, keys and values, of which that of the keys is masked."""
    names: dict[str, Shape] = {
        "storage_tokens": (1, 4, 32), "rope_embed.periods": (4,), "blocks.0.ls1.gamma": (32,), "blocks.0.attn.qkv.bias": (96,),
        "blocks.0.mlp.w1.weight": (64, 32), "blocks.0.mlp.w2.weight": (64, 32), "blocks.0.mlp.w3.weight": (32, 64),
    }  # fmt: skip
    own = {name: shape for name, shape in COMMON.items() if "fc2" not in name} | names
    entries = TIMM_KIN.entries(own)
    assert entries["blocks.0.attn.v_bias"] == Entry(source="blocks.0.attn.qkv.bias", shape=(32,), rows=(64, 96))
    assert {"reg_token", "blocks.0.gamma_1", "blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.fc2.weight"} <= set(entries)
    found = described(own)
    expected = {
        "num_registers": 4,
        "qkv_bias": "no_key",
        "mlp": "swiglu",
        "layer_norm_eps": 1e-5,
        "rotary": {"kind": "dinov3", "base": 100.0},
    }
    assert found.model | expected == found.model
    assert found.is_split_mlp
    assert "image_size" not in found.model


def test_eva_02_keeps_its_parts_apart() -> None:
    parts: dict[str, Shape] = {
        "pos_embed": (1, 17, 32), "blocks.0.attn.q_proj.weight": (32, 32), "blocks.0.attn.q_bias": (32,),
        "blocks.0.mlp.w1.weight": (64, 32), "blocks.0.mlp.ffn_ln.weight": (64,), "blocks.0.attn.rope.freqs_cos": (16, 8),
    }  # fmt: skip
    found = described(COMMON | parts)
    expected = {"mlp_norm": True, "image_size": 64, "rotary": {"kind": "eva02", "base": 10000.0, "pretrained_grid": 16}}
    assert found.model | expected == found.model
    assert (found.is_split_qkv, found.class_row) == (True, True)
    assert "blocks.0.attn.q_proj.bias" in TIMM_KIN.entries(COMMON | parts)
