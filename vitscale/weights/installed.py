"""The same weights in timm, in Hugging Face transformers and in onnxruntime, where installed: the yardstick of imports and exports."""

# B batch, C channels, H height, W width

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.weights.rules import HeldConfig, Layout
from vitscale.weights.timm_arguments import timm_architecture, timm_arguments

Library = Literal["timm", "transformers", "onnxruntime"]
BareOutput = Literal["pooler", "class", "mean"]
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


def timm_with_state(model: HeldConfig, *, layout: Layout, state: Mapping[str, Tensor], num_classes: int, class_row: bool) -> Run:
    """timm's model with tensors of its names. `class_row` says whether the table of positions has a row for the class token.

    Raises `NotUsable`.
    """
    tensors = dict(state)
    if class_row and "reg_token" in tensors and "pos_embed" in tensors:
        # timm's register tokens have rows where the class token has one; the sum is the same with the row in the token.
        tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
        tensors["pos_embed"], class_row = tensors["pos_embed"][:, 1:], False
    split = {
        "qkv_fused": not any(".q_proj." in name for name in tensors),
        "swiglu_align_to": int(any(".fc1_g." in name for name in tensors)),
    }
    module = _timm_model(model, layout=layout, num_classes=num_classes, class_row=class_row, changes=split if layout == "timm_eva" else {})
    # Tables of indexes, which it computes itself.
    missing = module.load_state_dict(tensors, strict=False)
    left = [name for name in missing.missing_keys if name in dict(module.named_parameters())]
    if left or missing.unexpected_keys:
        raise RuntimeError(f"missing {left[:3]}, unknown {missing.unexpected_keys[:3]}")
    return _run(module)


def timm_with_open_clip(model: HeldConfig, *, state: Mapping[str, Tensor], num_classes: int) -> Run:
    """timm's model with the image tower of an open_clip file, whose names timm itself converts. Raises `NotUsable`."""
    module = _timm_model(model, layout="timm", num_classes=num_classes, class_row=True, changes={})
    module.load_state_dict(load_library("timm").models.vision_transformer.checkpoint_filter_fn(dict(state), module))
    return _run(module)


def timm_with_npz(model: HeldConfig, *, path: Path, num_classes: int, class_row: bool) -> Run:
    """timm's model with a Google file, read by timm's own `load_checkpoint`; `class_row` says whether its table of positions has
    a row for the class token. Raises `NotUsable`."""
    with np.load(path, allow_pickle=False) as archive:
        if any("pre_logits/" in name for name in archive.files):
            raise NotUsable("it drops the layer pre_logits")
        if any("conv_root/" in name for name in archive.files):
            raise NotUsable("its hybrids add other numbers to variances than Google's")
        if not any(name.endswith("pos_embedding") for name in archive.files):
            raise NotUsable("it reads no file without a table of positions")
        if archive[archive.files[0]].dtype.kind == "V":
            raise NotUsable("it reads no arrays of bfloat16 without jax")
    module = _timm_model(model, layout="timm", num_classes=num_classes, class_row=class_row, changes={})
    load_library("timm").models.load_checkpoint(module, str(path))
    return _run(module)


def timm_from_folder(folder: Path) -> Run:
    """What `timm.create_model("local-dir:...", pretrained=True)` makes of an exported folder. Raises `NotUsable`."""
    return _run(load_library("timm").create_model(f"local-dir:{folder}", pretrained=True))


def bare_output(model: HeldConfig, *, layout: Layout) -> BareOutput:
    """Where transformers' model without a classifier has the features that are pooled here."""
    if layout in ("hf_beit", "hf_swin", "hf_swinv2", "hf_clip") or (model.kind == "vit" and model.pooling == "map"):
        return "pooler"
    return "class" if model.kind == "vit" and model.pooling == "cls" else "mean"


def transformers_from_folder(folder: Path, *, output: BareOutput, has_head: bool) -> Run:
    """What `from_pretrained` makes of a folder: logits of its classifier, or the features of a bare model.

    Raises `NotUsable`.
    """
    library = load_library("transformers")
    loader = library.AutoModelForImageClassification if has_head else library.AutoModel
    module = loader.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    module.config.mask_ratio = 0.0  # MAE's encoder leaves patches out otherwise
    run = _run(getattr(module, "vision_model", module) if not has_head else module)
    return lambda image_BCHW: _output(run(image_BCHW), output=output)


def onnxruntime_from_file(path: Path) -> Run:
    """What onnxruntime computes from a graph of one input and one output, on the CPU. Raises `NotUsable`."""
    library = load_library("onnxruntime")
    options = library.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    with _its_errors():
        session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(image_BCHW: Tensor) -> Tensor:
        with _its_errors():
            return torch.from_numpy(session.run(None, {name: image_BCHW.numpy()})[0])

    return run


@contextmanager
def _its_errors() -> Iterator[None]:
    """The exceptions of onnxruntime have no common base of their own."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(str(error)) from error


def _output(result: Any, *, output: BareOutput) -> Tensor:
    if hasattr(result, "logits"):
        found = result.logits
    elif output == "pooler":
        found = result.pooler_output
    else:
        found = result.last_hidden_state[:, 0] if output == "class" else result.last_hidden_state.mean(dim=1)
    assert isinstance(found, Tensor), type(found)
    return found


def _timm_model(model: HeldConfig, *, layout: Layout, num_classes: int, class_row: bool, changes: Mapping[str, Any]) -> nn.Module:
    models, layers = load_library("timm").models, load_library("timm").layers
    norm = nn.RMSNorm if model.kind == "vit" and model.norm == "rms" else nn.LayerNorm
    arguments: dict[str, Any] = timm_arguments(model, layout=layout, class_row=class_row) | {"num_classes": num_classes}
    arguments |= {"norm_layer": partial(norm, eps=model.layer_norm_eps), **changes}
    if model.kind == "hiera":
        family = models.hiera.Hiera
    elif model.kind == "swin":
        family = models.swin_transformer.SwinTransformer if model.version == 1 else models.swin_transformer_v2.SwinTransformerV2
    elif isinstance(model.stem, ResNetStemConfig):
        family = partial(load_library("timm").create_model, timm_architecture(model, layout=layout))
    elif layout == "timm_beit":
        family = models.beit.Beit
    elif layout == "timm_eva":
        family = models.eva.Eva
    else:
        family = models.deit.VisionTransformerDistilled if model.distillation_token else models.vision_transformer.VisionTransformer
        arguments |= {"mlp_layer": layers.SwiGLUPacked, "act_layer": nn.SiLU} if model.shape.is_gated else {}
    module: nn.Module = family(**arguments)
    return module


def _run(module: nn.Module) -> Callable[[Tensor], Any]:
    module = module.float().eval()

    def run(image_BCHW: Tensor) -> Any:
        with torch.no_grad():
            return module(image_BCHW)

    return run
