"""Swin and SwinV2 as timm and Hugging Face transformers keep them, and the model that their files mean."""

# D width, C channels, P patch side, L entries of a table, H heads

import math
import re
from collections.abc import Mapping
from typing import Any

from vitscale.config import CheckpointError
from vitscale.weights.family import Described, Entry, Family, Settings, plain_entries, shape_of, told_image_size
from vitscale.weights.forms import Shape

_TIMM_KERNEL = "patch_embed.proj.weight"
_HF_KERNEL = "embeddings.patch_embeddings.projection.weight"
_HF_ROOTS = ("swin", "swinv2")
_COMPUTED = ("*relative_position_index", "*attn_mask", "*relative_coords_table", "*.pooler.*")
"""Tables that both projects compute from the window, and older files keep."""


def _timm_entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """As timm has them since 1.0: merges before their stage and `head.fc`; microsoft's own files have them after it and `head`."""
    is_original = "layers.0.downsample.reduction.weight" in shapes
    entries = {}
    for source, shape in shapes.items():
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + is_original}.downsample", source)
        entries[re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)] = Entry(source=source, shape=shape)
    return entries


def _describe_timm(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    config = settings.get("config.json", {})
    arguments = config.get("model_args") or {}
    told = {**arguments, "image_size": told_image_size(config)}
    named = re.search(r"window(\d+)", str(config.get("architecture", "")))
    if named and "window_size" not in told:
        told["window_size"] = int(named[1])
    model = _model(
        shapes, told=told, kernel=_TIMM_KERNEL, block="layers.{stage}.blocks.{place}", attention="attn", fc1="mlp.fc1", where=where
    )
    trained = config.get("pretrained_cfg") or {}
    if trained.get("mean") and trained.get("std"):
        model |= {"image_mean": list(map(float, trained["mean"])), "image_std": list(map(float, trained["std"]))}
    return Described(
        layout="timm_swin",
        model=model | {"window_padding": "after_shift"},
        head={"num_classes": shapes["head.fc.weight"][0]} if "head.fc.weight" in shapes else None,
        positions="timm" if model["version"] == 1 else None,
        class_row=False,
        set_aside=_COMPUTED,
        assumed=("layer norms add 1e-5, and GELU is exact",),
    )


def _hf_entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    root = _hf_root(shapes)
    if root is not None and f"{root}.{_HF_KERNEL}" in shapes:
        return plain_entries(shapes)
    return {f"{root}.{name}": Entry(source=name, shape=shape) for name, shape in shapes.items()}


def _hf_root(shapes: Mapping[str, Shape]) -> str | None:
    root = next((root for root in _HF_ROOTS if f"{root}.{_HF_KERNEL}" in shapes), None)
    if root is not None or _HF_KERNEL not in shapes or not any(name.startswith("encoder.layers.0.blocks.") for name in shapes):
        return root
    return "swinv2" if any("continuous_position_bias_mlp" in name for name in shapes) else "swin"


def _describe_hf(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    root = _hf_root(shapes)
    assert root is not None, "claimed names"
    config = settings.get("config.json")
    if config is None or config.get("model_type") != root:
        found = "there is none" if config is None else f"it is of type {config.get('model_type')!r}"
        raise CheckpointError(
            f"{where}: these are tensors of Hugging Face's {root}, whose config.json is needed, and {found}: give its folder"
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"{where}: config.json names the activation {config['hidden_act']!r}; known for Swin: gelu")
    block = f"{root}.encoder.layers.{{stage}}.blocks.{{place}}"
    told = {"window_size": 7, "image_size": 224, **config}
    model = _model(
        shapes, told=told, kernel=f"{root}.{_HF_KERNEL}", block=block, attention="attention.self", fc1="intermediate.dense", where=where
    )
    images = settings.get("preprocessor_config.json", {})
    if images.get("image_mean"):
        model |= {"image_mean": list(map(float, images["image_mean"])), "image_std": list(map(float, images["image_std"]))}
    return Described(
        layout="hf_swin" if root == "swin" else "hf_swinv2",
        model=model | {"window_padding": "before_shift", "layer_norm_eps": float(config.get("layer_norm_eps", 1e-5))},
        head={"num_classes": shapes["classifier.weight"][0]} if shapes.get("classifier.weight") else None,
        positions="hf" if root == "swin" else None,
        class_row=False,
        set_aside=_COMPUTED,
        assumed=() if images.get("image_mean") else ("images are scaled to [-1, 1]; there is no preprocessor_config.json",),
    )


def _model(
    shapes: Mapping[str, Shape], *, told: Mapping[str, Any], kernel: str, block: str, attention: str, fc1: str, where: str
) -> dict[str, Any]:
    """The settings that tensors tell, and windows and sizes as told elsewhere. `block` has the numbers of stage and place in it."""
    width, channels, patch_size, _ = shape_of(shapes, kernel, num_dims=4, where=where)
    depths: list[int] = []
    heads: list[int] = []
    version = 2 if any("logit_scale" in name for name in shapes) else 1
    marker = "logit_scale" if version == 2 else "relative_position_bias_table"
    while (name := f"{block.format(stage=len(depths), place=0)}.{attention}.{marker}") in shapes:
        heads.append(shapes[name][0 if version == 2 else -1])
        stage, depth = len(depths), 0
        while f"{block.format(stage=stage, place=depth)}.{attention}.{marker}" in shapes:
            depth += 1
        depths.append(depth)
    first = block.format(stage=0, place=0)
    hidden = shape_of(shapes, f"{first}.{fc1}.weight", num_dims=2, where=where)[0]
    model: dict[str, Any] = {
        "kind": "swin",
        "version": version,
        "num_channels": channels,
        "patch_size": patch_size,
        "width": width,
        "depths": depths,
        "num_heads": heads,
        "mlp_ratio": hidden / width,
    }
    if version == 1:
        model["window_size"] = (math.isqrt(shapes[f"{first}.{attention}.{marker}"][0]) + 1) // 2
    elif told.get("window_size"):
        model["window_size"] = told["window_size"]
    pretrained = told.get("pretrained_window_sizes")
    if version == 2 and pretrained and any(pretrained):
        model["pretrained_window_sizes"] = list(pretrained)
    return model | ({"image_size": told["image_size"]} if told.get("image_size") else {})


def _claims_timm(shapes: Mapping[str, Shape]) -> bool:
    return _TIMM_KERNEL in shapes and any(name.startswith("layers.0.blocks.0.attn.") for name in shapes)


TIMM_SWIN = Family(claims=_claims_timm, entries=_timm_entries, describe=_describe_timm)
HF_SWIN = Family(claims=lambda shapes: _hf_root(shapes) is not None, entries=_hf_entries, describe=_describe_hf)
