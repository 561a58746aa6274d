"""Weights of other projects for tests: random values under their names and in their shapes, written as they write them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, DEPTH, HEADS, MLP, PATCH, GRID, CHANNELS, CLASSES = 32, 2, 4, 48, 4, 3, 3, 5


def google_arrays(
    *, big_vision: bool = False, pooling: str = "cls", pre_logits: int | None = None, class_row: bool = True
) -> dict[str, Any]:
    """A ViT as vit_jax, or big_vision (without the prefix), stores it."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    attention, norm2, mlp = (
        ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
        if big_vision
        else ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
    )
    head_width = WIDTH // HEADS
    arrays = {"embedding/kernel": draw(PATCH, PATCH, CHANNELS, WIDTH), "embedding/bias": draw(WIDTH)}
    for block in range(DEPTH):
        at = f"Transformer/encoderblock_{block}"
        for norm in ("LayerNorm_0", norm2):
            arrays |= {f"{at}/{norm}/scale": 1 + draw(WIDTH), f"{at}/{norm}/bias": draw(WIDTH)}
        for part in ("query", "key", "value"):
            arrays |= {
                f"{at}/{attention}/{part}/kernel": draw(WIDTH, HEADS, head_width),
                f"{at}/{attention}/{part}/bias": draw(HEADS, head_width),
            }
        arrays |= {f"{at}/{attention}/out/kernel": draw(HEADS, head_width, WIDTH), f"{at}/{attention}/out/bias": draw(WIDTH)}
        arrays |= {f"{at}/{mlp}/Dense_0/kernel": draw(WIDTH, MLP), f"{at}/{mlp}/Dense_0/bias": draw(MLP)}
        arrays |= {f"{at}/{mlp}/Dense_1/kernel": draw(MLP, WIDTH), f"{at}/{mlp}/Dense_1/bias": draw(WIDTH)}
    arrays |= {"Transformer/encoder_norm/scale": 1 + draw(WIDTH), "Transformer/encoder_norm/bias": draw(WIDTH)}
    if pooling == "cls":
        arrays["cls"] = draw(1, 1, WIDTH)
    table = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    arrays[table] = draw(1, GRID**2 + int(pooling == "cls" and class_row), WIDTH)
    if pre_logits is not None:
        arrays |= {"pre_logits/kernel": draw(WIDTH, pre_logits), "pre_logits/bias": draw(pre_logits)}
    arrays |= {"head/kernel": draw(pre_logits or WIDTH, CLASSES), "head/bias": draw(CLASSES)}
    return arrays


def stacked(arrays: dict[str, Any]) -> dict[str, Any]:
    """The blocks as a scan stores them."""
    result = {name: value for name, value in arrays.items() if "encoderblock_" not in name}
    for name in arrays:
        if "encoderblock_0/" in name:
            blocks = [arrays[name.replace("encoderblock_0/", f"encoderblock_{block}/")] for block in range(DEPTH)]
            result[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(blocks)
    return result


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    """As numpy reads an array of bfloat16: two bytes of no type."""
    return torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")


def write_npz(path: Path, arrays: dict[str, Any], *, prefix: str = "") -> Path:
    """With a prefix before every name."""
    np.savez(path, **{f"{prefix}{name}": value for name, value in arrays.items()})
    return path


def torch_state(*, pooling: str = "cls", num_classes: int = CLASSES) -> dict[str, Tensor]:
    """A ViT with timm's names."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=PATCH * GRID, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=MLP / WIDTH,
        num_classes=num_classes, class_token=pooling == "cls", global_pool="token" if pooling == "cls" else "avg", fc_norm=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=generator) * 0.3 for name, value in model.state_dict().items()}


def open_clip_state() -> dict[str, Tensor]:
    """A CLIP with open_clip's names: an image tower, and what there is beside it."""
    block = {
        "ln_1.weight": (WIDTH,), "ln_1.bias": (WIDTH,), "ln_2.weight": (WIDTH,), "ln_2.bias": (WIDTH,),
        "attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,),
        "attn.out_proj.weight": (WIDTH, WIDTH), "attn.out_proj.bias": (WIDTH,),
        "mlp.c_fc.weight": (MLP, WIDTH), "mlp.c_fc.bias": (MLP,), "mlp.c_proj.weight": (WIDTH, MLP), "mlp.c_proj.bias": (WIDTH,),
    }  # fmt: skip
    tower: dict[str, tuple[int, ...]] = {
        "class_embedding": (WIDTH,), "positional_embedding": (GRID**2 + 1, WIDTH), "proj": (WIDTH, CLASSES),
        "conv1.weight": (WIDTH, CHANNELS, PATCH, PATCH),
        **{f"{norm}.{leaf}": (WIDTH,) for norm in ("ln_pre", "ln_post") for leaf in ("weight", "bias")},
        **{f"transformer.resblocks.{index}.{name}": shape for index in range(DEPTH) for name, shape in block.items()},
    }  # fmt: skip
    text: dict[str, tuple[int, ...]] = {
        "transformer.resblocks.0.ln_1.weight": (8,), "token_embedding.weight": (9, 8), "positional_embedding": (4, 8),
        "ln_final.weight": (8,), "text_projection": (8, CLASSES), "logit_scale": (),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    shapes = {f"visual.{name}": shape for name, shape in tower.items()} | text
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def write_timm(folder: Path, state: dict[str, Tensor], *, model_args: dict[str, Any] | None = None) -> Path:
    """A folder as timm saves one for the hub."""
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": model_args or {},
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_hugging_face(folder: Path, *, hidden_act: str = "gelu", layer_norm_eps: float = 1e-12, headless: bool = False) -> Path:
    """A folder as `save_pretrained` writes one."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(
        image_size=PATCH * GRID, patch_size=PATCH, hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=MLP, num_labels=CLASSES, hidden_act=hidden_act, layer_norm_eps=layer_norm_eps,
    )  # fmt: skip
    model = (ViTModel if headless else ViTForImageClassification)(config)
    generator = torch.Generator().manual_seed(0)
    model.load_state_dict({name: torch.randn(value.shape, generator=generator) * 0.3 for name, value in model.state_dict().items()})
    model.save_pretrained(str(folder))
    return folder


def npz_bytes(arrays: dict[str, Any]) -> bytes:
    """The bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
