"""The rules of Swin and SwinV2 in timm and Hugging Face, which number blocks within their stage, `{stage}` and `{place}`."""

from vitscale.weights.forms import OIHW, PER_HEAD, Sizes, stacked
from vitscale.weights.rule import BLOCK, Rule, both, one


def timm_swin(sizes: Sizes) -> list[Rule]:  # noqa: ARG001  (a table of rules)
    """timm's SwinTransformer and SwinTransformerV2."""
    block = "layers.{stage}.blocks.{place}"
    modules = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return [
        *both("backbone.patch_embed", "patch_embed.proj", form=OIHW),
        *both("backbone.patch_norm", "patch_embed.norm"),
        *(rule for module in modules for rule in both(f"{BLOCK}.{module}", f"{block}.{module}")),
        *(one(f"{BLOCK}.attn.qkv.{part}_bias", f"{block}.attn.{part}_bias") for part in "qv"),
        one(f"{BLOCK}.attn.logit_scale", f"{block}.attn.logit_scale", form=PER_HEAD),
        one(f"{BLOCK}.attn.position_bias.table", f"{block}.attn.relative_position_bias_table"),
        *both(f"{BLOCK}.attn.position_bias.fc1", f"{block}.attn.cpb_mlp.0"),
        *both(f"{BLOCK}.attn.position_bias.fc2", f"{block}.attn.cpb_mlp.2"),
        *(rule for part in ("norm", "reduction") for rule in both(f"backbone.merges.{{i}}.{part}", f"layers.{{next}}.downsample.{part}")),
        *both("backbone.norm", "norm"),
        *both("head.fc", "head.fc"),
    ]


def hf_swin(sizes: Sizes) -> list[Rule]:  # noqa: ARG001  (a table of rules)
    """transformers' Swin."""
    attention = f"{_HF_BLOCK.format(root='swin')}.attention.self"
    return [
        *_hf("swin"),
        one(f"{BLOCK}.attn.position_bias.table", f"{attention}.relative_position_bias_table"),
    ]


def hf_swinv2(sizes: Sizes) -> list[Rule]:  # noqa: ARG001  (a table of rules)
    """transformers' SwinV2."""
    attention = f"{_HF_BLOCK.format(root='swinv2')}.attention.self"
    return [
        *_hf("swinv2"),
        one(f"{BLOCK}.attn.qkv.q_bias", f"{attention}.query.bias"),
        one(f"{BLOCK}.attn.qkv.v_bias", f"{attention}.value.bias"),
        one(f"{BLOCK}.attn.logit_scale", f"{attention}.logit_scale", form=PER_HEAD),
        *both(f"{BLOCK}.attn.position_bias.fc1", f"{attention}.continuous_position_bias_mlp.0"),
        *both(f"{BLOCK}.attn.position_bias.fc2", f"{attention}.continuous_position_bias_mlp.2"),
    ]


_HF_BLOCK = "{root}.encoder.layers.{{stage}}.blocks.{{place}}"


def _hf(root: str) -> list[Rule]:
    block = _HF_BLOCK.format(root=root)
    parts = tuple(f"{block}.attention.self.{part}" for part in ("query", "key", "value"))
    merge = f"{root}.encoder.layers.{{i}}.downsample"
    return [
        *both("backbone.patch_embed", f"{root}.embeddings.patch_embeddings.projection", form=OIHW),
        *both("backbone.patch_norm", f"{root}.embeddings.norm"),
        *both(f"{BLOCK}.norm1", f"{block}.layernorm_before"),
        *both(f"{BLOCK}.attn.qkv", *parts, form=stacked(3), bias_form=stacked(3)),
        *both(f"{BLOCK}.attn.proj", f"{block}.attention.output.dense"),
        *both(f"{BLOCK}.norm2", f"{block}.layernorm_after"),
        *both(f"{BLOCK}.mlp.fc1", f"{block}.intermediate.dense"),
        *both(f"{BLOCK}.mlp.fc2", f"{block}.output.dense"),
        *(rule for part in ("norm", "reduction") for rule in both(f"backbone.merges.{{i}}.{part}", f"{merge}.{part}")),
        *both("backbone.norm", f"{root}.layernorm"),
        *both("head.fc", "classifier"),
    ]
