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
from vitscale.nn.pooling import Pooling
from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.weights.companions import timm_architecture, timm_arguments

Library = Literal["timm", "transformers"]
Run = Callable[[Tensor], Tensor]
"""Normalised images (B, C, H, W) to logits, or to pooled features of a model without a head."""


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


def timm_with_state(model: ViTConfig, *, state: Mapping[str, Tensor], num_classes: int, class_row: bool) -> Run:
    """timm's model with tensors of its names. `class_row` says whether the table of positions has a row for the class token.

    Raises `NotUsable`.
    """
    tensors = dict(state)
    if class_row and model.num_registers:
        # timm's register tokens have rows where the class token has one; the sum is the same with the row in the token.
        tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
        tensors["pos_embed"], class_row = tensors["pos_embed"][:, 1:], False
    module = _timm_model(model, num_classes=num_classes, class_row=class_row)
    module.load_state_dict(tensors)
    return _run(module)


def timm_with_npz(model: ViTConfig, *, path: Path, num_classes: int, class_row: bool) -> Run:
    """timm's model with a Google file, read by timm's own `load_checkpoint`; `class_row` says whether its table of positions has
    a row for the class token. Raises `NotUsable`."""
    if isinstance(model.stem, ResNetStemConfig):
        raise NotUsable("its hybrids add other numbers to variances than Google's")
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


def timm_from_folder(folder: Path) -> Run:
    """What `timm.create_model("local-dir:...", pretrained=True)` makes of an exported folder. Raises `NotUsable`."""
    return _run(load_library("timm").create_model(f"local-dir:{folder}", pretrained=True))


def transformers_from_folder(folder: Path, *, pooling: Pooling, has_head: bool) -> Run:
    """What `from_pretrained` makes of a folder: logits of its classifier, or of a bare model what `pooling` makes of its tokens.

    Raises `NotUsable`.
    """
    library = load_library("transformers")
    loader = library.AutoModelForImageClassification if has_head else library.AutoModel
    module = loader.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    module.config.mask_ratio = 0.0  # MAE's encoder leaves patches out otherwise
    run = _run(getattr(module, "vision_model", module) if not has_head else module)
    return lambda image_BCHW: _output(run(image_BCHW), pooling=pooling)


def _output(result: Any, *, pooling: Pooling) -> Tensor:
    if hasattr(result, "logits"):
        found = result.logits
    elif pooling == "map":
        found = result.pooler_output
    else:
        found = result.last_hidden_state[:, 0] if pooling == "cls" else result.last_hidden_state.mean(dim=1)
    assert isinstance(found, Tensor), type(found)
    return found


def _timm_model(model: ViTConfig, *, num_classes: int, class_row: bool) -> nn.Module:
    timm = load_library("timm")
    gated = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU} if model.shape.is_gated else {}
    norm = partial(nn.LayerNorm if model.norm == "layer" else nn.RMSNorm, eps=model.layer_norm_eps)
    arguments = timm_arguments(model, class_row=class_row) | {"num_classes": num_classes, "norm_layer": norm} | gated
    if isinstance(model.stem, ResNetStemConfig):
        hybrid: nn.Module = timm.create_model(timm_architecture(model), **arguments)
        return hybrid
    family = timm.models.deit.VisionTransformerDistilled if model.distillation_token else timm.models.vision_transformer.VisionTransformer
    module: nn.Module = family(**arguments)
    return module


def _run(module: nn.Module) -> Callable[[Tensor], Any]:
    module = module.float().eval()

    def run(image_BCHW: Tensor) -> Any:
        with torch.no_grad():
            return module(image_BCHW)

    return run
