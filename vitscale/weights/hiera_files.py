"""timm's Hiera: the model that its names and shapes mean."""

# D width, C channels, P side of the overlapping patches

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vitscale.models.hiera_settings import HIERA_VARIANTS
from vitscale.weights.family import Described, Family, Settings, count_blocks, plain_entries, shape_of
from vitscale.weights.forms import Shape
from vitscale.weights.timm_files import KERNEL


def _describe(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    config = settings.get("config.json", {})
    arguments = config.get("model_args") or {}
    trained = config.get("pretrained_cfg") or {}
    width, channels, side, _ = shape_of(shapes, KERNEL, num_dims=4, where=where)
    depth = count_blocks(shapes, "blocks.{i}.norm2.weight")
    widths = Counter(shape_of(shapes, f"blocks.{index}.norm2.weight", num_dims=1, where=where)[0] for index in range(depth))
    depths = [widths[each] for each in sorted(widths)]
    hidden = shape_of(shapes, "blocks.0.mlp.fc1.weight", num_dims=2, where=where)[0]
    stride = (side + 1) // 2
    has_two_tables = "pos_embed_win" in shapes
    model: dict[str, Any] = {
        "kind": "hiera",
        "num_channels": channels,
        "patch_size": stride,
        "width": width,
        "depths": depths,
        "mlp_ratio": hidden / width,
        "window_stages": sum(arguments.get("mask_unit_attn", (True, True))),
        "shortcut": "project" if any(f"blocks.{index}.proj.weight" in shapes for index in range(depth)) else "concatenate",
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
    }
    heads = arguments.get("num_heads") or _usual_heads(width, depths)
    if heads:
        model["num_heads"] = heads
    told = arguments.get("img_size") or (trained.get("input_size") or [None])[1:]
    if has_two_tables:
        model |= {"window_positions": True, "position_grid": shape_of(shapes, "pos_embed", num_dims=4, where=where)[-1]}
        model |= {"image_size": told[-1]} if told and told[-1] else {}
    else:
        model["image_size"] = math.isqrt(shape_of(shapes, "pos_embed", num_dims=3, where=where)[1]) * stride
    if trained.get("mean") and trained.get("std"):
        model |= {"image_mean": list(map(float, trained["mean"])), "image_std": list(map(float, trained["std"]))}
    return Described(
        layout="timm_hiera",
        model=model,
        head={"num_classes": shapes["head.fc.weight"][0]} if "head.fc.weight" in shapes else None,
        positions="timm",
        class_row=False,
        assumed=(
            "layer norms add 1e-6, and GELU is exact",
            f"attention stays within mask units in the first {model['window_stages']} stages",
        ),
    )


def _usual_heads(width: int, depths: list[int]) -> int | None:
    """The heads of the first stage of the published model of that width and depths."""
    found = {variant.num_heads for variant in HIERA_VARIANTS.values() if (variant.width, list(variant.depths)) == (width, depths)}
    return found.pop() if len(found) == 1 else None


TIMM_HIERA = Family(
    claims=lambda shapes: KERNEL in shapes and "head.norm.weight" in shapes and "blocks.0.norm2.weight" in shapes,
    entries=plain_entries,
    describe=_describe,
)
