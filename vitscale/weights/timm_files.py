"""State dicts with timm's names: timm's own, and those of MAE, DeiT, DINO and DINOv2, which share most of them; and the model they mean."""

# D width, C channels, P patch side, N tokens

import re
from collections.abc import Mapping
from typing import Any

from vitscale.models.variants import SIZES
from vitscale.nn.mlp import Gelu
from vitscale.nn.resample import PositionMode
from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.weights.family import Described, Entry, Family, Settings, count_blocks, image_side, is_square, resnet_stem, shape_of
from vitscale.weights.forms import Shape

KERNEL = "patch_embed.proj.weight"
_ROOTS = ("patch_embed.backbone.stem.conv.weight", "patch_embed.backbone.conv.weight")
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
POOLING = {"token": "cls", "avg": "mean", "map": "map"}
_ORIGINALS = (
    (re.compile(r"^register_tokens$"), "reg_token"),
    (re.compile(r"^blocks\.\d+\.(\d+)\."), r"blocks.\1."),
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),
)
"""Names of facebookresearch/dinov2, whose larger models keep blocks in chunks, and of DeiT III to those of timm."""


def _entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    entries = {}
    for source, shape in shapes.items():
        name = source
        for pattern, replacement in _ORIGINALS:
            name = pattern.sub(replacement, name)
        entries[name] = Entry(source=source, shape=shape)
    return entries


def _describe(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    config = settings.get("config.json", {})
    arguments = config.get("model_args") or {}
    width, channels, patch_size, _ = shape_of(shapes, KERNEL, num_dims=4, where=where)
    stem = _stem(shapes, where=where)
    if stem is not None:
        patch_size, channels = patch_size * stem.stride, shapes[_root(shapes)][1]
    is_clip = "norm_pre.weight" in shapes
    assumed = ["norms add 1e-5, as in timm's towers of CLIP" if is_clip else "norms add 1e-6, timm's default"]
    model: dict[str, Any] = {
        "kind": "vit",
        "num_channels": channels,
        "patch_size": patch_size,
        "width": width,
        "depth": count_blocks(shapes, "blocks.{i}.norm1.weight"),
        "layer_norm_eps": 1e-5 if is_clip else 1e-6,
        "embedding_norm": is_clip,
        "patch_bias": not is_clip,
    }
    if stem is not None:
        model["stem"] = stem.model_dump(mode="json")
    model |= _tokens(shapes, arguments, patch_size=patch_size, where=where) | _pooling(shapes, config) | _blocks(shapes, where=where)
    heads = arguments.get("num_heads") or usual_heads(width)
    if heads:
        model["num_heads"] = heads
        if "num_heads" not in arguments:
            assumed.append(f"{heads} attention heads, as in every named size of width {width}; the file does not say")
    if model["mlp"] == "gelu":
        model["gelu"] = _gelu(config)
        if "act_layer" not in arguments:
            assumed.append(_GELU_ASSUMED[model["gelu"]])
    project = _project(shapes)
    model |= _image_statistics(config, channels=channels, project=project, assumed=assumed)
    return Described(
        layout="timm",
        model=model,
        head={"num_classes": shapes["head.weight"][0]} if shapes.get("head.weight") else None,
        positions=project,
        class_row=model["prefix_positions"],
        assumed=tuple(assumed),
    )


def _root(shapes: Mapping[str, Shape]) -> str:
    """The name of the first kernel of a stem; empty where there is none."""
    return next((name for name in _ROOTS if name in shapes), "")


def _stem(shapes: Mapping[str, Shape], *, where: str) -> ResNetStemConfig | None:
    """The ResNetV2 before the patches."""
    root = _root(shapes)
    if not root:
        return None
    width = shape_of(shapes, root, num_dims=4, where=where)[0]
    units: list[int] = []
    while count := count_blocks(shapes, f"patch_embed.backbone.stages.{len(units)}.blocks.{{i}}.conv3.weight"):
        units.append(count)
    return resnet_stem(units=units, width=width, epsilons="timm", where=where)


def _tokens(shapes: Mapping[str, Shape], arguments: Mapping[str, Any], *, patch_size: int, where: str) -> dict[str, Any]:
    """Prefix tokens, the table of positions and with it the size of images."""
    is_distilled, has_class = "dist_token" in shapes, "cls_token" in shapes
    if arguments.get("pos_embed") == "none" and "pos_embed" not in shapes:
        size = {"image_size": arguments["img_size"]} if "img_size" in arguments else {}
        return {"positions": "none", "class_token": has_class, "num_registers": count_registers(shapes), "prefix_positions": True, **size}
    num_tokens = shape_of(shapes, "pos_embed", num_dims=3, where=where)[1]
    has_rows = is_distilled or (has_class and is_square(num_tokens - 1))
    num_rows = int(is_distilled) + int(has_rows)
    return {
        "image_size": image_side(num_tokens - num_rows, patch_size=patch_size, where=where),
        "class_token": has_class,
        "distillation_token": is_distilled,
        "num_registers": count_registers(shapes),
        "prefix_positions": has_rows or not has_class,
    }


def count_registers(shapes: Mapping[str, Shape]) -> int:
    """Register tokens of timm's names."""
    tokens = shapes.get("reg_token", ())
    return tokens[1] if len(tokens) == 3 else 0


def _pooling(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> dict[str, Any]:
    told = (config.get("model_args") or {}).get("global_pool") or config.get("global_pool")
    has_fc_norm = "fc_norm.weight" in shapes
    if "attn_pool.latent" in shapes:
        pooling = "map"
    elif told in POOLING:
        pooling = POOLING[told]
    else:
        pooling = "cls" if "cls_token" in shapes and not has_fc_norm else "mean"
    return {"pooling": pooling, "norm_place": "pooled" if has_fc_norm else "tokens"}


def _blocks(shapes: Mapping[str, Shape], *, where: str) -> dict[str, Any]:
    """The switches of the blocks, which the names of the first tell."""
    hidden = shape_of(shapes, "blocks.0.mlp.fc1.weight", num_dims=2, where=where)[0]
    out = shape_of(shapes, "blocks.0.mlp.fc2.weight", num_dims=2, where=where)[1]
    is_gated = hidden == 2 * out
    return {
        "mlp": "swiglu" if is_gated else "gelu",
        "mlp_width": out if is_gated else hidden,
        "mlp_norm": "blocks.0.mlp.norm.weight" in shapes,
        "norm": "layer" if "blocks.0.norm1.bias" in shapes else "rms",
        "qkv_bias": "all" if "blocks.0.attn.qkv.bias" in shapes else "none",
        "proj_bias": "blocks.0.attn.proj.bias" in shapes,
        "mlp_bias": "blocks.0.mlp.fc1.bias" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
    }


def usual_heads(width: int) -> int | None:
    """The heads of the named sizes of a width, where they agree; big_vision's mu is for tests, and tells nothing."""
    found = {size.num_heads for name, size in SIZES.items() if size.width == width and name != "mu"}
    return found.pop() if len(found) == 1 else None


_GELU_ASSUMED: dict[Gelu, str] = {
    "exact": "GELU is exact, timm's default",
    "tanh": "GELU is its tanh form, as SigLIP has it",
    "quick": "GELU is its quick form, as the name of the architecture says",
}


def _gelu(config: Mapping[str, Any]) -> Gelu:
    """By its name in timm, else by that of the architecture."""
    told, name = (config.get("model_args") or {}).get("act_layer"), str(config.get("architecture", ""))
    if told == "gelu_tanh" or (told is None and "siglip" in name):
        return "tanh"
    return "quick" if told == "quick_gelu" or (told is None and "quickgelu" in name) else "exact"


def _project(shapes: Mapping[str, Shape]) -> PositionMode:
    """Whose way to resample positions is that of the file."""
    if any(name.startswith("decoder_") for name in shapes) or len(shapes.get("mask_token", ())) == 3:
        return "mae"
    if "mask_token" in shapes:
        return "dinov2_reg" if "reg_token" in shapes else "dinov2"
    return "timm"


def _image_statistics(config: Mapping[str, Any], *, channels: int, project: PositionMode, assumed: list[str]) -> dict[str, Any]:
    trained = config.get("pretrained_cfg") or {}
    if trained.get("mean") and trained.get("std"):
        return {"image_mean": list(map(float, trained["mean"])), "image_std": list(map(float, trained["std"]))}
    if project != "timm" and channels == 3:
        assumed.append(f"images are normalised as {'MAE' if project == 'mae' else 'DINOv2'}'s are, with ImageNet's mean and deviation")
        return IMAGENET
    assumed.append("images are scaled to [-1, 1]; where they were normalised otherwise, give model.image_mean and model.image_std")
    return {"image_mean": [0.5], "image_std": [0.5]}


TIMM = Family(claims=lambda shapes: KERNEL in shapes, entries=_entries, describe=_describe)
