"""State dicts with timm's names of BEiT, EVA-02 and DINOv3, and the originals of the last two; and the model they mean."""

# D width, C channels, P patch side, N tokens, L entries of a table, H heads

import math
import re
from collections.abc import Mapping
from typing import Any

from vitscale.weights.family import Described, Entry, Family, Settings, count_blocks, image_side, is_square, shape_of, told_image_size
from vitscale.weights.forms import Shape
from vitscale.weights.rules import Layout
from vitscale.weights.timm_files import IMAGENET, KERNEL, POOLING, count_registers, usual_heads

_TABLES = ("blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table")
_MARKS = (*_TABLES, "blocks.0.attn.q_bias", "blocks.0.attn.q_proj.weight", "blocks.0.mlp.fc1_g.weight", "storage_tokens")
_ORIGINALS = (
    (re.compile(r"^storage_tokens$"), "reg_token"),
    (re.compile(r"\.ls([12])\.gamma$"), r".gamma_\1"),
    (re.compile(r"\.mlp\.w1\."), ".mlp.fc1_g."),
    (re.compile(r"\.mlp\.w2\."), ".mlp.fc1_x."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"\.mlp\.ffn_ln\."), ".mlp.norm."),
)
"""Names of facebookresearch/dinov3 and baaivision/EVA to those of timm."""


def _claims(shapes: Mapping[str, Shape]) -> bool:
    has_no_table = "pos_embed" not in shapes and "blocks.0.gamma_1" in shapes
    return KERNEL in shapes and (has_no_table or any(mark in shapes for mark in _MARKS))


def _entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    entries = {}
    is_split = "blocks.0.attn.q_proj.weight" in shapes
    is_original = "storage_tokens" in shapes
    for source, shape in shapes.items():
        name = source
        for pattern, replacement in _ORIGINALS:
            name = pattern.sub(replacement, name)
        if is_split:
            name = re.sub(r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias", name)
        if is_original and name.endswith(".attn.qkv.bias"):
            # Of three biases, one below the other, DINOv3 masks the keys' out.
            width = shape[0] // 3
            for part, start in (("q", 0), ("v", 2 * width)):
                own = name.replace("qkv.bias", f"{part}_bias")
                entries[own] = Entry(source=source, shape=(width,), rows=(start, start + width))
        else:
            entries[name] = Entry(source=source, shape=shape)
    return entries


def _describe(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    config = settings.get("config.json", {})
    arguments = config.get("model_args") or {}
    width, channels, patch_size, _ = shape_of(shapes, KERNEL, num_dims=4, where=where)
    table = next((shapes[name] for name in _TABLES if name in shapes), None)
    layout: Layout = "timm_eva" if table is None else "timm_beit"
    is_dinov3 = table is None and "pos_embed" not in shapes
    has_class = "cls_token" in shapes
    blocks = _blocks(shapes, where=where)
    model: dict[str, Any] = {
        "kind": "vit",
        "num_channels": channels,
        "patch_size": patch_size,
        "width": width,
        "depth": count_blocks(shapes, "blocks.{i}.norm1.weight"),
        "layer_norm_eps": 1e-5 if is_dinov3 else 1e-6,
        "class_token": has_class,
        "num_registers": count_registers(shapes),
        "norm_place": "pooled" if "fc_norm.weight" in shapes else "tokens",
        "pooling": _pooling(shapes, config),
        **blocks,
    }
    assumed = [f"norms add {model['layer_norm_eps']:g}"]
    heads = arguments.get("num_heads") or (table[1] if table else usual_heads(width))
    if heads:
        model["num_heads"] = heads
    class_row = True
    if "pos_embed" in shapes:
        num_tokens = shape_of(shapes, "pos_embed", num_dims=3, where=where)[1]
        class_row = has_class and is_square(num_tokens - 1)
        model["image_size"] = image_side(num_tokens - int(class_row), patch_size=patch_size, where=where)
        model["prefix_positions"] = class_row or not has_class
    else:
        model["positions"] = "none"
        model |= _told_size(config)
    if table is not None:
        is_shared = _TABLES[1] in shapes
        model["position_bias"] = {"kind": "relative", "shared": is_shared}
        model["image_size"] = _side_of_table(table[0]) * patch_size
    else:
        model |= _rotary(arguments, config, is_dinov3=is_dinov3, is_gated=blocks["mlp"] != "gelu", assumed=assumed)
    trained = config.get("pretrained_cfg") or {}
    if trained.get("mean") and trained.get("std"):
        model |= {"image_mean": list(map(float, trained["mean"])), "image_std": list(map(float, trained["std"]))}
    elif is_dinov3 and channels == 3:
        assumed.append("images are normalised with ImageNet's mean and deviation, as DINOv3's are")
        model |= IMAGENET
    else:
        assumed.append("images are scaled to [-1, 1]; where they were normalised otherwise, give model.image_mean and model.image_std")
    return Described(
        layout=layout,
        model=model,
        head={"num_classes": shapes["head.weight"][0]} if shapes.get("head.weight") else None,
        positions="timm" if config else "beit",
        class_row=class_row,
        is_split_mlp="blocks.0.mlp.fc1_g.weight" in shapes,
        is_split_qkv="blocks.0.attn.q_proj.weight" in shapes,
        set_aside=("*relative_position_index", "*.k_bias", "*.qkv.bias_mask", "rope.*", "rope_embed.*", "*.rope.*", "local_cls_norm.*"),
        assumed=tuple(assumed),
    )


def _pooling(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> str:
    told = (config.get("model_args") or {}).get("global_pool") or config.get("global_pool")
    if told in POOLING:
        return POOLING[told]
    return "mean" if "fc_norm.weight" in shapes or "cls_token" not in shapes else "cls"


def _blocks(shapes: Mapping[str, Shape], *, where: str) -> dict[str, Any]:
    out = shape_of(shapes, "blocks.0.mlp.fc2.weight", num_dims=2, where=where)[1]
    is_split = "blocks.0.mlp.fc1_g.weight" in shapes
    is_gated = is_split or shape_of(shapes, "blocks.0.mlp.fc1.weight", num_dims=2, where=where)[0] == 2 * out
    has_bias = any(f"blocks.0.attn.{name}" in shapes for name in ("q_bias", "q_proj.bias"))
    return {
        "mlp": "swiglu" if is_gated else "gelu",
        "mlp_width": out,
        "mlp_norm": "blocks.0.mlp.norm.weight" in shapes,
        "qkv_bias": "no_key" if has_bias else "none",
        "layer_scale": 1e-5 if "blocks.0.gamma_1" in shapes else None,
    }


def _told_size(config: Mapping[str, Any]) -> dict[str, int]:
    """The size of images where no tensor tells it."""
    told = told_image_size(config)
    return {} if told is None else {"image_size": told}


def _side_of_table(num_entries: int) -> int:
    """Patches per side of the image whose offsets, and three entries for the class token, are so many."""
    return (math.isqrt(num_entries - 3) + 1) // 2


def _rotary(
    arguments: Mapping[str, Any], config: Mapping[str, Any], *, is_dinov3: bool, is_gated: bool, assumed: list[str]
) -> dict[str, Any]:
    if is_dinov3:
        return {"rotary": {"kind": "dinov3", "base": float(arguments.get("rope_temperature", 100.0))}}
    is_rotary = arguments.get("use_rot_pos_emb", is_gated or "eva02" in str(config.get("architecture", "")))
    if not is_rotary:
        return {}
    told = arguments.get("ref_feat_shape")
    side = told[0] if isinstance(told, list) else told or 16
    if told is None:
        assumed.append("rotary positions are those of 16 x 16 patches, as in every EVA-02")
    return {"rotary": {"kind": "eva02", "base": float(arguments.get("rope_temperature", 10000.0)), "pretrained_grid": side}}


TIMM_KIN = Family(claims=_claims, entries=_entries, describe=_describe)
