"""What timm's classes are built with to compute what a model here does: values of JSON only."""

from typing import Any

from vitscale.models import HieraConfig, SwinConfig, ViTConfig
from vitscale.nn.relative_bias import RelativeBiasConfig
from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.nn.rope import Dinov3RopeConfig, Eva02RopeConfig
from vitscale.weights.rules import HeldConfig, Layout
from vitscale.weights.targets import timm_hybrid


def timm_arguments(model: HeldConfig, *, layout: Layout, class_row: bool) -> dict[str, Any]:
    """The arguments of the class that the layout is of. `class_row` says whether the table of positions has a row for the class
    token."""
    if isinstance(model, HieraConfig):
        return _hiera(model)
    if isinstance(model, SwinConfig):
        return _swin(model)
    common = _sizes(model)
    if layout == "timm_beit":
        return common | _beit(model)
    if layout == "timm_eva":
        return common | _eva(model, class_row=class_row)
    return common | _vit(model, class_row=class_row)


def timm_architecture(model: HeldConfig, *, layout: Layout) -> str:
    """A name that timm has registered for a model whose parts are classes and so no argument in JSON; its sizes are of no effect."""
    if isinstance(model, HieraConfig):
        return "hiera_tiny_224"
    if isinstance(model, SwinConfig):
        return "swin_tiny_patch4_window7_224" if model.version == 1 else "swinv2_tiny_window8_256"
    if layout == "timm_beit":
        return "beit_base_patch16_224"
    if layout == "timm_eva":
        # The one adds 1e-5 in its norms, the other 1e-6.
        return "vit_base_patch16_dinov3" if model.layer_norm_eps == 1e-5 else "eva02_base_patch14_224"
    if isinstance(model.stem, ResNetStemConfig):
        hybrid = timm_hybrid(model.stem)
        assert hybrid is not None, "a layout was chosen that holds the stem"
        return hybrid
    if model.distillation_token:
        return "deit_base_distilled_patch16_224"
    if model.shape.is_gated:
        return "vit_giant_patch14_dinov2"
    # The one adds 1e-5 in its norms, the other 1e-6.
    return "vit_base_patch16_clip_224" if model.layer_norm_eps == 1e-5 else "vit_base_patch16_224"


def _sizes(model: ViTConfig) -> dict[str, Any]:
    shape = model.shape
    return {
        "img_size": shape.image_size,
        "patch_size": shape.kernel_side,
        "in_chans": shape.num_channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        # timm cuts the product off to a whole number.
        "mlp_ratio": (shape.mlp_width + 0.5) / shape.width,
        "qkv_bias": model.qkv_bias != "none",
        "init_values": model.layer_scale,
        "global_pool": {"cls": "token", "mean": "avg", "map": "map"}[model.pooling],
    }


def _vit(model: ViTConfig, *, class_row: bool) -> dict[str, Any]:
    shape = model.shape
    arguments: dict[str, Any] = {
        # Here timm counts gate and value as the hidden width.
        "mlp_ratio": (shape.mlp_width * (2 if shape.is_gated else 1) + 0.5) / shape.width,
        "class_token": shape.class_token,
        "reg_tokens": shape.num_registers,
        "no_embed_class": not class_row,
        "pos_embed": "none" if model.positions == "none" else "learn",
        "fc_norm": model.norm_place == "pooled",
        "proj_bias": model.proj_bias,
        "qk_norm": model.qk_norm,
        "scale_mlp_norm": model.mlp_norm,
        "pre_norm": model.embedding_norm,
        "norm_layer": None if model.norm == "layer" else "rmsnorm",
    }
    if not shape.is_gated:
        arguments["act_layer"] = {"exact": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}[model.gelu]
    return arguments


def _beit(model: ViTConfig) -> dict[str, Any]:
    is_relative = isinstance(model.position_bias, RelativeBiasConfig)
    is_shared = isinstance(model.position_bias, RelativeBiasConfig) and model.position_bias.shared
    return {
        "use_abs_pos_emb": model.positions != "none",
        "use_rel_pos_bias": is_relative and not is_shared,
        "use_shared_rel_pos_bias": is_shared,
        "use_fc_norm": model.norm_place == "pooled",
    }


def _eva(model: ViTConfig, *, class_row: bool) -> dict[str, Any]:
    shape, rotary = model.shape, model.rotary
    arguments: dict[str, Any] = {
        "class_token": shape.class_token,
        "num_reg_tokens": shape.num_registers,
        "no_embed_class": not class_row,
        "use_abs_pos_emb": model.positions != "none",
        "use_fc_norm": model.norm_place == "pooled",
        "use_post_transformer_norm": model.norm_place == "tokens",
        "qkv_fused": True,
        "swiglu_mlp": shape.is_gated,
        "swiglu_align_to": 0,
        "scale_mlp": model.mlp_norm,
        "use_rot_pos_emb": rotary is not None,
        "dynamic_img_size": False,
    }
    if isinstance(rotary, Dinov3RopeConfig):
        arguments |= {"rope_type": "dinov3", "rope_temperature": rotary.base, "rope_rotate_half": True, "ref_feat_shape": None}
    if isinstance(rotary, Eva02RopeConfig):
        side = rotary.pretrained_grid or shape.grid
        arguments |= {"rope_type": "cat", "rope_temperature": rotary.base, "rope_rotate_half": False, "ref_feat_shape": [side, side]}
    return arguments


def _swin(model: SwinConfig) -> dict[str, Any]:
    shape = model.shape
    pretrained = {"pretrained_window_sizes": list(model.pretrained_window_sizes or (0,) * len(shape.stages))} if model.version == 2 else {}
    return {
        "img_size": shape.image_size,
        "patch_size": shape.patch_size,
        "in_chans": shape.num_channels,
        "embed_dim": shape.stages[0].width,
        "depths": [stage.depth for stage in shape.stages],
        "num_heads": [stage.num_heads for stage in shape.stages],
        "window_size": model.window_size or (7 if model.version == 1 else 8),
        "mlp_ratio": model.mlp_ratio,
        **pretrained,
    }


def _hiera(model: HieraConfig) -> dict[str, Any]:
    shape = model.shape
    widths = [spec.width for spec in shape.specs]
    depths = [widths.count(width) for width in sorted(set(widths))]
    return {
        "img_size": [shape.image_size, shape.image_size],
        "in_chans": shape.num_channels,
        "embed_dim": widths[0],
        "num_heads": shape.specs[0].num_heads,
        "stages": depths,
        "q_pool": shape.num_poolings,
        "mask_unit_size": [shape.unit_side, shape.unit_side],
        "mask_unit_attn": [stage < model.window_stages for stage in range(len(depths))],
        "use_expand_proj": model.shortcut == "project",
        "patch_kernel": [shape.kernel_side, shape.kernel_side],
        "patch_stride": [shape.patch_stride, shape.patch_stride],
        "patch_padding": [shape.kernel_side // 2, shape.kernel_side // 2],
        "mlp_ratio": model.mlp_ratio,
        "init_values": model.layer_scale,
        "abs_win_pos_embed": model.window_positions,
        "global_pos_size": [model.position_grid or shape.grid] * 2,
    }
