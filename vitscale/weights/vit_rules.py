"""The rules of plain vision transformers: timm's, Hugging Face's and Google's.

Hugging Face names are those on disk (transformers v4), which v5 reads and writes too. Names and layouts of the two Google formats:
google-research/vision_transformer (vit_jax/models_vit.py, models_resnet.py) and google-research/big_vision (models/vit.py).
"""

from vitscale.weights.forms import (
    CLASS_AND_MEAN,
    FLAT,
    HWIO,
    KERNEL_HWIO,
    OIHW,
    OUT_KERNEL,
    TRANSPOSED,
    WITHOUT_BATCH,
    Sizes,
    head_biases,
    head_kernels,
    split_at,
    stacked,
)
from vitscale.weights.rule import BLOCK, POSITIONS, Rule, both, one, token_and_table

_POOL, _STEM = "backbone.attn_pool", "backbone.stem"
_DENSE, _NORM = ("/kernel", "/bias"), ("/scale", "/bias")


def timm(sizes: Sizes) -> list[Rule]:
    """timm's VisionTransformer and VisionTransformerDistilled, which have our names."""
    modules = ("norm1", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "norm2", "mlp.fc1", "mlp.norm", "mlp.fc2")
    pool_modules = ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
    return [
        *token_and_table("cls_token", "pos_embed"),
        one("backbone.dist_token", "dist_token"),
        one("backbone.reg_token", "reg_token"),
        *both("backbone.patch_embed", "patch_embed.proj", form=OIHW),
        *both("backbone.embedding_norm", "norm_pre"),
        *_timm_stem(sizes),
        *(rule for module in modules for rule in both(f"{BLOCK}.{module}", f"blocks.{{i}}.{module}")),
        *(one(f"{BLOCK}.{module}.gamma", f"blocks.{{i}}.{module}.gamma") for module in ("ls1", "ls2")),
        *both("backbone.norm", "fc_norm" if sizes.is_pooled_norm else "norm"),
        one(f"{_POOL}.latent", "attn_pool.latent"),
        *(rule for module in pool_modules for rule in both(f"{_POOL}.{module}", f"attn_pool.{module}")),
        *both("head.fc", "head"),
        *both("head_dist.fc", "head_dist"),
    ]


def _timm_stem(sizes: Sizes) -> list[Rule]:
    """timm's ResNetV2 as the backbone of a HybridEmbed; the root alone has no name of its own there."""
    at = "patch_embed.backbone"
    root = f"{at}.stem" if sizes.stem_units else at
    rules = [one(f"{_STEM}.root.conv.weight", f"{root}.conv.weight"), *both(f"{_STEM}.root.norm", f"{root}.norm")]
    for stage, unit in _units(sizes):
        ours, theirs = f"{_STEM}.stages.{stage}.{unit}", f"{at}.stages.{stage}.blocks.{unit}"
        parts = [(f"conv{n}", f"norm{n}", f"conv{n}", f"norm{n}") for n in (1, 2, 3)]
        for conv, norm, their_conv, their_norm in (*parts, ("conv_proj", "norm_proj", "downsample.conv", "downsample.norm")):
            rules += [one(f"{ours}.{conv}.weight", f"{theirs}.{their_conv}.weight"), *both(f"{ours}.{norm}", f"{theirs}.{their_norm}")]
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
    kernel = one(f"{conv}.weight", f"{their_conv}/kernel", form=KERNEL_HWIO)
    return [kernel, *both(norm, their_norm, form=FLAT, bias_form=FLAT, ends=_NORM)]


def _units(sizes: Sizes) -> list[tuple[int, int]]:
    """Stage and unit of every bottleneck of a stem."""
    return [(stage, unit) for stage, count in enumerate(sizes.stem_units or ()) for unit in range(count)]


def hf_embeddings(root: str) -> list[Rule]:
    """What transformers' models that descend from its ViT have before the blocks."""
    at = f"{root}.embeddings"
    return [
        *token_and_table(f"{at}.cls_token", f"{at}.position_embeddings"),
        one("backbone.dist_token", f"{at}.distillation_token"),
        one("backbone.reg_token", f"{at}.register_tokens"),
        *both("backbone.patch_embed", f"{at}.patch_embeddings.projection", form=OIHW),
    ]


def _hf_attention(block: str) -> list[Rule]:
    parts = tuple(f"{block}.attention.attention.{part}" for part in ("query", "key", "value"))
    return [
        *both(f"{BLOCK}.attn.qkv", *parts, form=stacked(3), bias_form=stacked(3)),
        *both(f"{BLOCK}.attn.proj", f"{block}.attention.output.dense"),
    ]


def hf_vit(root: str, *heads: str) -> list[Rule]:
    """transformers' ViT and what has its names under another root."""
    block = f"{root}.encoder.layer.{{i}}"
    return [
        *hf_embeddings(root),
        *both(f"{BLOCK}.norm1", f"{block}.layernorm_before"),
        *_hf_attention(block),
        *both(f"{BLOCK}.norm2", f"{block}.layernorm_after"),
        *both(f"{BLOCK}.mlp.fc1", f"{block}.intermediate.dense"),
        *both(f"{BLOCK}.mlp.fc2", f"{block}.output.dense"),
        *both("backbone.norm", f"{root}.layernorm"),
        *(rule for ours, theirs in zip(("head.fc", "head_dist.fc"), heads, strict=False) for rule in both(ours, theirs)),
    ]


def hf_dinov2(root: str, sizes: Sizes) -> list[Rule]:
    """transformers' DINOv2, with and without registers."""
    block = f"{root}.encoder.layer.{{i}}"
    mlp = ("weights_in", "weights_out") if sizes.is_gated else ("fc1", "fc2")
    return [
        *hf_embeddings(root),
        *both(f"{BLOCK}.norm1", f"{block}.norm1"),
        *_hf_attention(block),
        one(f"{BLOCK}.ls1.gamma", f"{block}.layer_scale1.lambda1"),
        *both(f"{BLOCK}.norm2", f"{block}.norm2"),
        *both(f"{BLOCK}.mlp.fc1", f"{block}.mlp.{mlp[0]}"),
        *both(f"{BLOCK}.mlp.fc2", f"{block}.mlp.{mlp[1]}"),
        one(f"{BLOCK}.ls2.gamma", f"{block}.layer_scale2.lambda1"),
        *both("backbone.norm", f"{root}.layernorm"),
        *both("head.fc", "classifier", form=CLASS_AND_MEAN),
    ]


def hf_siglip(sizes: Sizes) -> list[Rule]:  # noqa: ARG001  (a table of rules)
    """transformers' SigLIP, its vision part."""
    root = "vision_model"
    block, head = f"{root}.encoder.layers.{{i}}", f"{root}.head"
    parts = tuple(f"{block}.self_attn.{part}_proj" for part in "qkv")
    inputs = (f"{_POOL}.q", f"{_POOL}.kv")
    return [
        one(POSITIONS, f"{root}.embeddings.position_embedding.weight", form=WITHOUT_BATCH),
        *both("backbone.patch_embed", f"{root}.embeddings.patch_embedding", form=OIHW),
        *both(f"{BLOCK}.norm1", f"{block}.layer_norm1"),
        *both(f"{BLOCK}.attn.qkv", *parts, form=stacked(3), bias_form=stacked(3)),
        *both(f"{BLOCK}.attn.proj", f"{block}.self_attn.out_proj"),
        *both(f"{BLOCK}.norm2", f"{block}.layer_norm2"),
        *both(f"{BLOCK}.mlp.fc1", f"{block}.mlp.fc1"),
        *both(f"{BLOCK}.mlp.fc2", f"{block}.mlp.fc2"),
        *both("backbone.norm", f"{root}.post_layernorm"),
        one(f"{_POOL}.latent", f"{head}.probe"),
        *both(inputs, f"{head}.attention.in_proj", form=split_at(1, 2), bias_form=split_at(1, 2), ends=("_weight", "_bias")),
        *both(f"{_POOL}.proj", f"{head}.attention.out_proj"),
        *both(f"{_POOL}.norm", f"{head}.layernorm"),
        *both(f"{_POOL}.mlp.fc1", f"{head}.mlp.fc1"),
        *both(f"{_POOL}.mlp.fc2", f"{head}.mlp.fc2"),
        *both("head.fc", "classifier"),
    ]


def _google(*, attention: str, norm2: str, mlp: str, table: str) -> list[Rule]:
    """The rules of a Google file; flax numbers the modules of a block differently in the two projects."""
    block = "Transformer/encoderblock_{i}"
    heads = [f"{block}/{attention}/{part}" for part in ("query", "key", "value")]
    return [
        *token_and_table("cls", table),
        *both("backbone.patch_embed", "embedding", form=HWIO, ends=_DENSE),
        *both(f"{BLOCK}.norm1", f"{block}/LayerNorm_0", ends=_NORM),
        *both(f"{BLOCK}.attn.qkv", *heads, form=head_kernels(3), bias_form=head_biases(3), ends=_DENSE),
        *both(f"{BLOCK}.attn.proj", f"{block}/{attention}/out", form=OUT_KERNEL, ends=_DENSE),
        *both(f"{BLOCK}.norm2", f"{block}/{norm2}", ends=_NORM),
        *both(f"{BLOCK}.mlp.fc1", f"{block}/{mlp}/Dense_0", form=TRANSPOSED, ends=_DENSE),
        *both(f"{BLOCK}.mlp.fc2", f"{block}/{mlp}/Dense_1", form=TRANSPOSED, ends=_DENSE),
        *both("backbone.norm", "Transformer/encoder_norm", ends=_NORM),
        *both("head.pre_logits", "pre_logits", form=TRANSPOSED, ends=_DENSE),
        *both("head.fc", "head", form=TRANSPOSED, ends=_DENSE),
    ]


def _map_head() -> list[Rule]:
    """big_vision's attention pooling."""
    at, attention = "MAPHead_0", "MAPHead_0/MultiHeadDotProductAttention_0"
    keys_and_values = (f"{attention}/key", f"{attention}/value")
    return [
        one(f"{_POOL}.latent", f"{at}/probe"),
        *both(f"{_POOL}.q", f"{attention}/query", form=head_kernels(1), bias_form=head_biases(1), ends=_DENSE),
        *both(f"{_POOL}.kv", *keys_and_values, form=head_kernels(2), bias_form=head_biases(2), ends=_DENSE),
        *both(f"{_POOL}.proj", f"{attention}/out", form=OUT_KERNEL, ends=_DENSE),
        *both(f"{_POOL}.norm", f"{at}/LayerNorm_0", ends=_NORM),
        *both(f"{_POOL}.mlp.fc1", f"{at}/MlpBlock_0/Dense_0", form=TRANSPOSED, ends=_DENSE),
        *both(f"{_POOL}.mlp.fc2", f"{at}/MlpBlock_0/Dense_1", form=TRANSPOSED, ends=_DENSE),
    ]


def vit_jax(sizes: Sizes) -> list[Rule]:
    """google-research/vision_transformer, hybrids included."""
    table = "Transformer/posembed_input/pos_embedding"
    blocks = _google(attention="MultiHeadDotProductAttention_1", norm2="LayerNorm_2", mlp="MlpBlock_3", table=table)
    return [*_vit_jax_stem(sizes), *blocks]


def big_vision(sizes: Sizes) -> list[Rule]:  # noqa: ARG001  (a table of rules)
    """google-research/big_vision."""
    blocks = _google(attention="MultiHeadDotProductAttention_0", norm2="LayerNorm_1", mlp="MlpBlock_0", table="pos_embedding")
    return [*blocks, *_map_head()]
