"""What every tensor of ours is called elsewhere, and in which form: one table of rules for each layout.

Hugging Face names are those on disk (transformers v4), which v5 reads and writes too. Names and layouts of the two Google formats:
google-research/vision_transformer (vit_jax/models_vit.py) and google-research/big_vision (models/vit.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vitscale.weights.forms import (
    CLASS_AND_MEAN,
    FLAT,
    HWIO,
    KERNEL_HWIO,
    OIHW,
    OUT_KERNEL,
    SAME,
    TOKEN_AND_TABLE,
    TRANSPOSED,
    WITHOUT_BATCH,
    Form,
    Sizes,
    head_biases,
    head_kernels,
    split_at,
    stacked,
)

Layout = Literal["timm", "hf_vit", "hf_deit", "hf_dinov2", "hf_dinov2_with_registers", "hf_siglip", "vit_jax", "big_vision"]

CLASS_TOKEN, POSITIONS = "backbone.cls_token", "backbone.pos_embed"
_BLOCK, _POOL, _STEM = "backbone.blocks.{i}", "backbone.attn_pool", "backbone.stem"
_DENSE, _NORM = ("/kernel", "/bias"), ("/scale", "/bias")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How tensors of ours, `{i}` being the block's number, are called elsewhere and in which form."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form


def rules_of(layout: Layout, *, sizes: Sizes) -> list[Rule]:
    """The rules of a layout for models of such sizes. Those for what a model does not have are of no effect."""
    return _RULES[layout](sizes)


def _both(
    ours: str | tuple[str, ...],
    *theirs: str,
    form: Form = SAME,
    bias_form: Form = SAME,
    ends: tuple[str, str] = (".weight", ".bias"),
) -> list[Rule]:
    """The rules of a module's weight and bias; `ends` is what they add to the names of their modules."""
    modules = (ours,) if isinstance(ours, str) else ours
    return [
        Rule(ours=tuple(f"{name}.{leaf}" for name in modules), theirs=tuple(f"{name}{end}" for name in theirs), form=leaf_form)
        for leaf, end, leaf_form in (("weight", ends[0], form), ("bias", ends[1], bias_form))
    ]


def _one(ours: str, theirs: str, *, form: Form = SAME) -> Rule:
    return Rule(ours=(ours,), theirs=(theirs,), form=form)


def _token_and_table(token: str, table: str) -> list[Rule]:
    return [
        Rule(ours=(CLASS_TOKEN, POSITIONS), theirs=(token, table), form=TOKEN_AND_TABLE),
        _one(CLASS_TOKEN, token),
        _one(POSITIONS, table),
    ]


def _timm(sizes: Sizes) -> list[Rule]:
    """timm's VisionTransformer and VisionTransformerDistilled, which have our names."""
    modules = ("norm1", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "norm2", "mlp.fc1", "mlp.norm", "mlp.fc2")
    pool_modules = ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
    return [
        *_token_and_table("cls_token", "pos_embed"),
        _one("backbone.dist_token", "dist_token"),
        _one("backbone.reg_token", "reg_token"),
        *_both("backbone.patch_embed", "patch_embed.proj", form=OIHW),
        *_timm_stem(sizes),
        *(rule for module in modules for rule in _both(f"{_BLOCK}.{module}", f"blocks.{{i}}.{module}")),
        *(_one(f"{_BLOCK}.{module}.gamma", f"blocks.{{i}}.{module}.gamma") for module in ("ls1", "ls2")),
        *_both("backbone.norm", "fc_norm" if sizes.is_pooled_norm else "norm"),
        _one(f"{_POOL}.latent", "attn_pool.latent"),
        *(rule for module in pool_modules for rule in _both(f"{_POOL}.{module}", f"attn_pool.{module}")),
        *_both("head.fc", "head"),
        *_both("head_dist.fc", "head_dist"),
    ]


def _timm_stem(sizes: Sizes) -> list[Rule]:
    """timm's ResNetV2 as the backbone of a HybridEmbed; the root alone has no name of its own there."""
    at = "patch_embed.backbone"
    root = f"{at}.stem" if sizes.stem_units else at
    rules = [_one(f"{_STEM}.root.conv.weight", f"{root}.conv.weight"), *_both(f"{_STEM}.root.norm", f"{root}.norm")]
    for stage, unit in _units(sizes):
        ours, theirs = f"{_STEM}.stages.{stage}.{unit}", f"{at}.stages.{stage}.blocks.{unit}"
        parts = [(f"conv{n}", f"norm{n}", f"conv{n}", f"norm{n}") for n in (1, 2, 3)]
        for conv, norm, their_conv, their_norm in (*parts, ("conv_proj", "norm_proj", "downsample.conv", "downsample.norm")):
            rules += [_one(f"{ours}.{conv}.weight", f"{theirs}.{their_conv}.weight"), *_both(f"{ours}.{norm}", f"{theirs}.{their_norm}")]
    return rules


def _vit_jax_stem(sizes: Sizes) -> list[Rule]:
    """vit_jax's names, whose stages and units count from 1."""
    rules = _vit_jax_conv(f"{_STEM}.root.conv", "conv_root", norm=f"{_STEM}.root.norm", their_norm="gn_root")
    for stage, unit in _units(sizes):
        ours, theirs = f"{_STEM}.stages.{stage}.{unit}", f"block{stage + 1}/unit{unit + 1}"
        for part in ("1", "2", "3", "_proj"):
            rules += _vit_jax_conv(f"{ours}.conv{part}", f"{theirs}/conv{part}", norm=f"{ours}.norm{part}", their_norm=f"{theirs}/gn{part}")
    return rules


def _vit_jax_conv(conv: str, their_conv: str, *, norm: str, their_norm: str) -> list[Rule]:
    kernel = _one(f"{conv}.weight", f"{their_conv}/kernel", form=KERNEL_HWIO)
    return [kernel, *_both(norm, their_norm, form=FLAT, bias_form=FLAT, ends=_NORM)]


def _units(sizes: Sizes) -> list[tuple[int, int]]:
    """Stage and unit of every bottleneck of a stem."""
    return [(stage, unit) for stage, count in enumerate(sizes.stem_units or ()) for unit in range(count)]


def _hf_embeddings(root: str) -> list[Rule]:
    at = f"{root}.embeddings"
    return [
        *_token_and_table(f"{at}.cls_token", f"{at}.position_embeddings"),
        _one("backbone.dist_token", f"{at}.distillation_token"),
        _one("backbone.reg_token", f"{at}.register_tokens"),
        *_both("backbone.patch_embed", f"{at}.patch_embeddings.projection", form=OIHW),
    ]


def _hf_attention(block: str) -> list[Rule]:
    parts = tuple(f"{block}.attention.attention.{part}" for part in ("query", "key", "value"))
    return [
        *_both(f"{_BLOCK}.attn.qkv", *parts, form=stacked(3), bias_form=stacked(3)),
        *_both(f"{_BLOCK}.attn.proj", f"{block}.attention.output.dense"),
    ]


def _hf_vit(root: str, *heads: str) -> list[Rule]:
    """transformers' ViT and what has its names under another root."""
    block = f"{root}.encoder.layer.{{i}}"
    return [
        *_hf_embeddings(root),
        *_both(f"{_BLOCK}.norm1", f"{block}.layernorm_before"),
        *_hf_attention(block),
        *_both(f"{_BLOCK}.norm2", f"{block}.layernorm_after"),
        *_both(f"{_BLOCK}.mlp.fc1", f"{block}.intermediate.dense"),
        *_both(f"{_BLOCK}.mlp.fc2", f"{block}.output.dense"),
        *_both("backbone.norm", f"{root}.layernorm"),
        *(rule for ours, theirs in zip(("head.fc", "head_dist.fc"), heads, strict=False) for rule in _both(ours, theirs)),
    ]


def _hf_dinov2(root: str, sizes: Sizes) -> list[Rule]:
    block = f"{root}.encoder.layer.{{i}}"
    mlp = ("weights_in", "weights_out") if sizes.is_gated else ("fc1", "fc2")
    return [
        *_hf_embeddings(root),
        *_both(f"{_BLOCK}.norm1", f"{block}.norm1"),
        *_hf_attention(block),
        _one(f"{_BLOCK}.ls1.gamma", f"{block}.layer_scale1.lambda1"),
        *_both(f"{_BLOCK}.norm2", f"{block}.norm2"),
        *_both(f"{_BLOCK}.mlp.fc1", f"{block}.mlp.{mlp[0]}"),
        *_both(f"{_BLOCK}.mlp.fc2", f"{block}.mlp.{mlp[1]}"),
        _one(f"{_BLOCK}.ls2.gamma", f"{block}.layer_scale2.lambda1"),
        *_both("backbone.norm", f"{root}.layernorm"),
        *_both("head.fc", "classifier", form=CLASS_AND_MEAN),
    ]


def _hf_siglip(sizes: Sizes) -> list[Rule]:  # noqa: ARG001  (a table of rules)
    root = "vision_model"
    block, head = f"{root}.encoder.layers.{{i}}", f"{root}.head"
    parts = tuple(f"{block}.self_attn.{part}_proj" for part in "qkv")
    inputs = (f"{_POOL}.q", f"{_POOL}.kv")
    return [
        _one(POSITIONS, f"{root}.embeddings.position_embedding.weight", form=WITHOUT_BATCH),
        *_both("backbone.patch_embed", f"{root}.embeddings.patch_embedding", form=OIHW),
        *_both(f"{_BLOCK}.norm1", f"{block}.layer_norm1"),
        *_both(f"{_BLOCK}.attn.qkv", *parts, form=stacked(3), bias_form=stacked(3)),
        *_both(f"{_BLOCK}.attn.proj", f"{block}.self_attn.out_proj"),
        *_both(f"{_BLOCK}.norm2", f"{block}.layer_norm2"),
        *_both(f"{_BLOCK}.mlp.fc1", f"{block}.mlp.fc1"),
        *_both(f"{_BLOCK}.mlp.fc2", f"{block}.mlp.fc2"),
        *_both("backbone.norm", f"{root}.post_layernorm"),
        _one(f"{_POOL}.latent", f"{head}.probe"),
        *_both(inputs, f"{head}.attention.in_proj", form=split_at(1, 2), bias_form=split_at(1, 2), ends=("_weight", "_bias")),
        *_both(f"{_POOL}.proj", f"{head}.attention.out_proj"),
        *_both(f"{_POOL}.norm", f"{head}.layernorm"),
        *_both(f"{_POOL}.mlp.fc1", f"{head}.mlp.fc1"),
        *_both(f"{_POOL}.mlp.fc2", f"{head}.mlp.fc2"),
        *_both("head.fc", "classifier"),
    ]


def _google(*, attention: str, norm2: str, mlp: str, table: str) -> list[Rule]:
    """The rules of a Google file; flax numbers the modules of a block differently in the two projects."""
    block = "Transformer/encoderblock_{i}"
    heads = [f"{block}/{attention}/{part}" for part in ("query", "key", "value")]
    return [
        *_token_and_table("cls", table),
        *_both("backbone.patch_embed", "embedding", form=HWIO, ends=_DENSE),
        *_both(f"{_BLOCK}.norm1", f"{block}/LayerNorm_0", ends=_NORM),
        *_both(f"{_BLOCK}.attn.qkv", *heads, form=head_kernels(3), bias_form=head_biases(3), ends=_DENSE),
        *_both(f"{_BLOCK}.attn.proj", f"{block}/{attention}/out", form=OUT_KERNEL, ends=_DENSE),
        *_both(f"{_BLOCK}.norm2", f"{block}/{norm2}", ends=_NORM),
        *_both(f"{_BLOCK}.mlp.fc1", f"{block}/{mlp}/Dense_0", form=TRANSPOSED, ends=_DENSE),
        *_both(f"{_BLOCK}.mlp.fc2", f"{block}/{mlp}/Dense_1", form=TRANSPOSED, ends=_DENSE),
        *_both("backbone.norm", "Transformer/encoder_norm", ends=_NORM),
        *_both("head.pre_logits", "pre_logits", form=TRANSPOSED, ends=_DENSE),
        *_both("head.fc", "head", form=TRANSPOSED, ends=_DENSE),
    ]


def _map_head() -> list[Rule]:
    """big_vision's attention pooling."""
    at, attention = "MAPHead_0", "MAPHead_0/MultiHeadDotProductAttention_0"
    keys_and_values = (f"{attention}/key", f"{attention}/value")
    return [
        _one(f"{_POOL}.latent", f"{at}/probe"),
        *_both(f"{_POOL}.q", f"{attention}/query", form=head_kernels(1), bias_form=head_biases(1), ends=_DENSE),
        *_both(f"{_POOL}.kv", *keys_and_values, form=head_kernels(2), bias_form=head_biases(2), ends=_DENSE),
        *_both(f"{_POOL}.proj", f"{attention}/out", form=OUT_KERNEL, ends=_DENSE),
        *_both(f"{_POOL}.norm", f"{at}/LayerNorm_0", ends=_NORM),
        *_both(f"{_POOL}.mlp.fc1", f"{at}/MlpBlock_0/Dense_0", form=TRANSPOSED, ends=_DENSE),
        *_both(f"{_POOL}.mlp.fc2", f"{at}/MlpBlock_0/Dense_1", form=TRANSPOSED, ends=_DENSE),
    ]


def _vit_jax(sizes: Sizes) -> list[Rule]:
    table = "Transformer/posembed_input/pos_embedding"
    blocks = _google(attention="MultiHeadDotProductAttention_1", norm2="LayerNorm_2", mlp="MlpBlock_3", table=table)
    return [*_vit_jax_stem(sizes), *blocks]


def _big_vision(sizes: Sizes) -> list[Rule]:  # noqa: ARG001  (a table of rules)
    blocks = _google(attention="MultiHeadDotProductAttention_0", norm2="LayerNorm_1", mlp="MlpBlock_0", table="pos_embedding")
    return [*blocks, *_map_head()]


_RULES: dict[Layout, Callable[[Sizes], list[Rule]]] = {
    "timm": _timm,
    "hf_vit": lambda _: _hf_vit("vit", "classifier"),
    "hf_deit": lambda _: _hf_vit("deit", "cls_classifier", "distillation_classifier"),
    "hf_dinov2": lambda sizes: _hf_dinov2("dinov2", sizes),
    "hf_dinov2_with_registers": lambda sizes: _hf_dinov2("dinov2_with_registers", sizes),
    "hf_siglip": _hf_siglip,
    "vit_jax": _vit_jax,
    "big_vision": _big_vision,
}
