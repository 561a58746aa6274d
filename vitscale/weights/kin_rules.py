"""The rules of plain vision transformers with relative or rotary positions: BEiT, EVA-02 and DINOv3, in timm and Hugging Face."""

from vitscale.weights.forms import OIHW, Sizes, stacked
from vitscale.weights.rule import BLOCK, Rule, both, one, token_and_table
from vitscale.weights.vit_rules import hf_embeddings


def timm_beit(sizes: Sizes) -> list[Rule]:
    """timm's Beit."""
    return [
        *_timm(sizes),
        one(f"{BLOCK}.attn.position_bias.table", "blocks.{i}.attn.relative_position_bias_table"),
        one("backbone.shared_position_bias.table", "rel_pos_bias.relative_position_bias_table"),
    ]


def timm_eva(sizes: Sizes) -> list[Rule]:
    """timm's Eva, which holds EVA-02 and DINOv3: projections of queries, keys and values, and both halves of gated MLPs, are apart
    in some sizes."""
    halves = ("blocks.{i}.mlp.fc1_g", "blocks.{i}.mlp.fc1_x")
    parts = tuple(f"blocks.{{i}}.attn.{part}_proj" for part in "qkv")
    gated = both(f"{BLOCK}.mlp.fc1", *halves, form=stacked(2), bias_form=stacked(2)) if sizes.is_split_mlp else []
    qkv = [
        *both(f"{BLOCK}.attn.qkv", *parts, form=stacked(3), bias_form=stacked(3)),
        *(one(f"{BLOCK}.attn.qkv.{part}_bias", f"blocks.{{i}}.attn.{part}_proj.bias") for part in "qv"),
    ]
    return [*gated, *(qkv if sizes.is_split_qkv else []), *_timm(sizes)]


def _timm(sizes: Sizes) -> list[Rule]:
    modules = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.norm", "mlp.fc2")
    return [
        *token_and_table("cls_token", "pos_embed"),
        one("backbone.reg_token", "reg_token"),
        *both("backbone.patch_embed", "patch_embed.proj", form=OIHW),
        *(rule for module in modules for rule in both(f"{BLOCK}.{module}", f"blocks.{{i}}.{module}")),
        *(one(f"{BLOCK}.attn.qkv.{part}_bias", f"blocks.{{i}}.attn.{part}_bias") for part in "qv"),
        *(one(f"{BLOCK}.ls{number}.gamma", f"blocks.{{i}}.gamma_{number}") for number in (1, 2)),
        *both("backbone.norm", "fc_norm" if sizes.is_pooled_norm else "norm"),
        *both("head.fc", "head"),
    ]


def hf_beit(sizes: Sizes) -> list[Rule]:
    """transformers' BEiT."""
    block = "beit.encoder.layer.{i}"
    attention = f"{block}.attention.attention"
    parts = tuple(f"{attention}.{part}" for part in ("query", "key", "value"))
    table = "relative_position_bias.relative_position_bias_table"
    return [
        *hf_embeddings("beit"),
        *both(f"{BLOCK}.norm1", f"{block}.layernorm_before"),
        *both(f"{BLOCK}.attn.qkv", *parts, form=stacked(3), bias_form=stacked(3)),
        one(f"{BLOCK}.attn.qkv.q_bias", f"{attention}.query.bias"),
        one(f"{BLOCK}.attn.qkv.v_bias", f"{attention}.value.bias"),
        one(f"{BLOCK}.attn.position_bias.table", f"{attention}.{table}"),
        one("backbone.shared_position_bias.table", f"beit.encoder.{table}"),
        *both(f"{BLOCK}.attn.proj", f"{block}.attention.output.dense"),
        *both(f"{BLOCK}.norm2", f"{block}.layernorm_after"),
        *both(f"{BLOCK}.mlp.fc1", f"{block}.intermediate.dense"),
        *both(f"{BLOCK}.mlp.fc2", f"{block}.output.dense"),
        *(one(f"{BLOCK}.ls{number}.gamma", f"{block}.lambda_{number}") for number in (1, 2)),
        *both("backbone.norm", "beit.pooler.layernorm" if sizes.is_pooled_norm else "beit.layernorm"),
        *both("head.fc", "classifier"),
    ]


def hf_dinov3(sizes: Sizes) -> list[Rule]:
    """transformers' DINOv3, which has no classifier."""
    block = "layer.{i}"
    parts = tuple(f"{block}.attention.{part}_proj" for part in "qkv")
    gated = (f"{block}.mlp.gate_proj", f"{block}.mlp.up_proj")
    return [
        *both("backbone.patch_embed", "embeddings.patch_embeddings", form=OIHW),
        one("backbone.cls_token", "embeddings.cls_token"),
        one("backbone.reg_token", "embeddings.register_tokens"),
        *both(f"{BLOCK}.norm1", f"{block}.norm1"),
        *both(f"{BLOCK}.attn.qkv", *parts, form=stacked(3), bias_form=stacked(3)),
        *(one(f"{BLOCK}.attn.qkv.{part}_bias", f"{block}.attention.{part}_proj.bias") for part in "qv"),
        *both(f"{BLOCK}.attn.proj", f"{block}.attention.o_proj"),
        *(one(f"{BLOCK}.ls{number}.gamma", f"{block}.layer_scale{number}.lambda1") for number in (1, 2)),
        *both(f"{BLOCK}.norm2", f"{block}.norm2"),
        *(
            both(f"{BLOCK}.mlp.fc1", *gated, form=stacked(2), bias_form=stacked(2))
            if sizes.is_gated
            else both(f"{BLOCK}.mlp.fc1", f"{block}.mlp.up_proj")
        ),
        *both(f"{BLOCK}.mlp.fc2", f"{block}.mlp.down_proj"),
        *both("backbone.norm", "norm"),
    ]
