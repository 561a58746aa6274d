"""The same weights in timm and in Hugging Face transformers, where they are installed: the yardstick of imports and exports."""

# B batch, C channels, H height, W width

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitscale.models import ViTConfig

Library = Literal["timm", "transformers"]


class NotUsable(Exception):
    """The library cannot be imported here, or its own classes cannot hold the model; the message says why."""


def load_library(name: Library) -> ModuleType:
    """The imported library. Raises `NotUsable` with the reason."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotUsable(f"{name} is not installed ({error})") from None
    except RuntimeError as error:  # torchvision's operators that do not fit this torch
        raise NotUsable(f"{name} cannot be imported ({str(error).splitlines()[0]})") from None


def timm_arguments(model: ViTConfig) -> dict[str, Any]:
    """What timm's `VisionTransformer` is built with to compute what `model` does; values of JSON only."""
    shape = model.shape
    return {
        "img_size": shape.image_size,
        "patch_size": shape.patch_size,
        "in_chans": shape.num_channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": (shape.mlp_width + 0.5) / shape.width,  # timm cuts the product off to a whole number
        "class_token": shape.class_token,
        "global_pool": "token" if shape.class_token else "avg",
        "fc_norm": False,
        "act_layer": "gelu" if model.gelu == "exact" else "gelu_tanh",
    }


def timm_with_state(model: ViTConfig, *, state: Mapping[str, Tensor], num_classes: int) -> Callable[[Tensor], Tensor]:
    """timm's model with tensors of its names. Raises `NotUsable`."""
    module = _timm_model(model, num_classes=num_classes, class_row=not _lacks_class_row(model, state))
    module.load_state_dict(dict(state))
    return _run(module)


def timm_with_npz(model: ViTConfig, *, path: Path, num_classes: int, class_row: bool) -> Callable[[Tensor], Tensor]:
    """timm's model with a Google file, read by timm's own `load_checkpoint`; `class_row` says whether its table of positions has
    a row for the class token. Raises `NotUsable`."""
    with np.load(path, allow_pickle=False) as archive:
        if any("pre_logits/" in name for name in archive.files):
            raise NotUsable("it drops the layer pre_logits")
        if not any(name.endswith("pos_embedding") for name in archive.files):
            raise NotUsable("it reads no file without a table of positions")
        if archive[archive.files[0]].dtype.kind == "V":
            raise NotUsable("it reads no arrays of bfloat16 without jax")
    module = _timm_model(model, num_classes=num_classes, class_row=class_row)
    load_library("timm").models.load_checkpoint(module, str(path))
    return _run(module)


def timm_from_folder(folder: Path) -> Callable[[Tensor], Tensor]:
    """What `timm.create_model("local-dir:...", pretrained=True)` makes of an exported folder. Raises `NotUsable`."""
    return _run(load_library("timm").create_model(f"local-dir:{folder}", pretrained=True))


def transformers_from_folder(folder: Path) -> Callable[[Tensor], Tensor]:
    """What `AutoModelForImageClassification.from_pretrained` makes of a folder. Raises `NotUsable`."""
    library = load_library("transformers")
    module = library.AutoModelForImageClassification.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    run = _run(module)
    return lambda image_BCHW: run(image_BCHW).logits  # type: ignore[attr-defined]


def _timm_model(model: ViTConfig, *, num_classes: int, class_row: bool) -> nn.Module:
    timm = load_library("timm")
    norm = partial(nn.LayerNorm, eps=model.layer_norm_eps)
    arguments = timm_arguments(model) | {"num_classes": num_classes, "norm_layer": norm, "no_embed_class": not class_row}
    module: nn.Module = timm.models.vision_transformer.VisionTransformer(**arguments)
    return module


def _lacks_class_row(model: ViTConfig, state: Mapping[str, Tensor]) -> bool:
    return model.shape.class_token and state["pos_embed"].shape[1] == model.shape.grid**2


def _run(module: nn.Module) -> Callable[[Tensor], Tensor]:
    module = module.float().eval()

    def run(image_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = module(image_BCHW)
        return result

    return run
