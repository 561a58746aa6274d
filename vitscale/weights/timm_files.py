"""State dicts with timm's names: timm's own, and those of MAE, DeiT and DINO, which share them; and the model they mean."""

# D width, C channels, P patch side, N tokens

from collections.abc import Mapping
from typing import Any

from vitscale.models.variants import SIZES
from vitscale.nn.resample import PositionMode
from vitscale.weights.family import Described, Family, Settings, count_blocks, image_side, is_square, plain_entries, shape_of
from vitscale.weights.names import Shape

_KERNEL = "patch_embed.proj.weight"
_IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_ACTIVATIONS = {"gelu": "exact", "gelu_tanh": "tanh"}


def _describe(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    config = settings.get("config.json", {})
    arguments = config.get("model_args") or {}
    width, channels, patch_size, _ = shape_of(shapes, _KERNEL, num_dims=4, where=where)
    hidden = shape_of(shapes, "blocks.0.mlp.fc1.weight", num_dims=2, where=where)
    num_tokens = shape_of(shapes, "pos_embed", num_dims=3, where=where)[1]
    has_class = "cls_token" in shapes
    has_own_row = has_class and is_square(num_tokens - 1)
    is_mae = "mask_token" in shapes or any(name.startswith("decoder_") for name in shapes)
    model: dict[str, Any] = {
        "kind": "vit",
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": image_side(num_tokens - int(has_own_row), patch_size=patch_size, where=where),
        "width": width,
        "depth": count_blocks(shapes, "blocks.{i}.mlp.fc1.weight"),
        "mlp_width": hidden[0],
        "layer_norm_eps": 1e-6,
        "gelu": _ACTIVATIONS.get(arguments.get("act_layer", "gelu"), "exact"),
        "pooling": "cls" if has_class else "mean",
    }
    assumed = ["layer norms add 1e-6, timm's default"]
    heads = arguments.get("num_heads") or _usual_heads(width)
    if heads:
        model["num_heads"] = heads
        if "num_heads" not in arguments:
            assumed.append(f"{heads} attention heads, as in every named size of width {width}; the file does not say")
    if "act_layer" not in arguments:
        assumed.append("GELU is exact, timm's default")
    model |= _image_statistics(config, channels=channels, is_mae=is_mae, assumed=assumed)
    mode: PositionMode = "mae" if is_mae else "timm"
    return Described(
        layout="timm",
        model=model,
        head={"num_classes": shapes["head.weight"][0]} if shapes.get("head.weight") else None,
        positions=mode,
        class_position="none" if has_class and not has_own_row else "own",
        assumed=tuple(assumed),
    )


def _usual_heads(width: int) -> int | None:
    """The heads of the named sizes of a width, where they agree; big_vision's mu is for tests, and tells nothing."""
    found = {size.num_heads for name, size in SIZES.items() if size.width == width and name != "mu"}
    return found.pop() if len(found) == 1 else None


def _image_statistics(config: Mapping[str, Any], *, channels: int, is_mae: bool, assumed: list[str]) -> dict[str, Any]:
    trained = config.get("pretrained_cfg") or {}
    if trained.get("mean") and trained.get("std"):
        return {"image_mean": list(map(float, trained["mean"])), "image_std": list(map(float, trained["std"]))}
    if is_mae and channels == 3:
        assumed.append("images are normalised as MAE's are, with ImageNet's mean and deviation")
        return _IMAGENET
    assumed.append("images are scaled to [-1, 1]; where they were normalised otherwise, give model.image_mean and model.image_std")
    return {"image_mean": [0.5], "image_std": [0.5]}


TIMM = Family(claims=lambda shapes: _KERNEL in shapes, entries=plain_entries, describe=_describe)
