"""The forward pass of a foreign file by its project's own formulas, straight from its names and shapes, one block at a time.

The yardstick of an import or export where the other project is not installed, or where both models do not fit in memory. It
shares nothing with our model or with the conversion of names: each layout is written down once more, as its project does it.
"""

# B batch, C channels, P patch side, N tokens, D width, H heads, K head width, M MLP width

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.weights.names import Layout

Read = Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """What the tensors do not tell."""

    layout: Layout
    depth: int
    num_heads: int
    gelu: Literal["exact", "tanh"]
    layer_norm_eps: float


def reference_output(image_BCHW: Tensor, *, settings: ReferenceSettings, names: Collection[str], read: Read) -> Tensor:
    """Logits (B, classes), or pooled features (B, D) where the file has no head, of normalised images.

    `names` and `read` are those of the layout.
    """
    google = settings.layout in ("vit_jax", "big_vision")
    return (_google if google else _torch)(image_BCHW, settings=settings, names=names, read=read)


def _google(image_BCHW: Tensor, *, settings: ReferenceSettings, names: Collection[str], read: Read) -> Tensor:
    big_vision = settings.layout == "big_vision"
    attention, second, mlp = ("_0", "_1", "_0") if big_vision else ("_1", "_2", "_3")
    table = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    kernel_PPCD = read("embedding/kernel")
    side = kernel_PPCD.shape[0]
    patches_BCGGPP = image_BCHW.unfold(2, side, side).unfold(3, side, side)
    x_BGGD = torch.einsum("bcghpq,pqcd->bghd", patches_BCGGPP, kernel_PPCD) + read("embedding/bias")
    x_BND = x_BGGD.flatten(1, 2)
    has_class = "cls" in names
    positions_1ND = read(table) if table in names else _sincos(x_BGGD)
    if has_class:
        class_B1D = read("cls").expand(len(x_BND), -1, -1)
        # A table with rows for the patches only is added before the class token comes in front.
        if positions_1ND.shape[1] == x_BND.shape[1]:
            x_BND = torch.cat([class_B1D, x_BND + positions_1ND], dim=1)
        else:
            x_BND = torch.cat([class_B1D, x_BND], dim=1) + positions_1ND
    else:
        x_BND = x_BND + positions_1ND
    for block in range(settings.depth):
        at = f"Transformer/encoderblock_{block}"
        y_BND = _norm(x_BND, read(f"{at}/LayerNorm_0/scale"), read(f"{at}/LayerNorm_0/bias"), settings)
        x_BND = x_BND + _google_attention(y_BND, at=f"{at}/MultiHeadDotProductAttention{attention}", read=read)
        y_BND = _norm(x_BND, read(f"{at}/LayerNorm{second}/scale"), read(f"{at}/LayerNorm{second}/bias"), settings)
        dense = f"{at}/MlpBlock{mlp}/Dense"
        hidden_BNM = _gelu(y_BND @ read(f"{dense}_0/kernel") + read(f"{dense}_0/bias"), settings)
        x_BND = x_BND + hidden_BNM @ read(f"{dense}_1/kernel") + read(f"{dense}_1/bias")
    x_BND = _norm(x_BND, read("Transformer/encoder_norm/scale"), read("Transformer/encoder_norm/bias"), settings)
    x_BD = x_BND[:, 0] if has_class else x_BND.mean(dim=1)
    if "pre_logits/kernel" in names:
        x_BD = torch.tanh(x_BD @ read("pre_logits/kernel") + read("pre_logits/bias"))
    return x_BD @ read("head/kernel") + read("head/bias") if "head/kernel" in names else x_BD


def _sincos(x_BGGD: Tensor) -> Tensor:
    """big_vision's fixed table (1, N, D), which is in no file."""
    _, rows, columns, width = x_BGGD.shape
    omega_Q = 10000.0 ** -(torch.arange(width // 4) / (width // 4 - 1))
    y_N, x_N = (axis.flatten().float() for axis in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    angles = (torch.outer(x_N, omega_Q), torch.outer(y_N, omega_Q))
    return torch.cat([part for angle_NQ in angles for part in (angle_NQ.sin(), angle_NQ.cos())], dim=1).unsqueeze(0)


def _google_attention(y_BND: Tensor, *, at: str, read: Read) -> Tensor:
    q_BNHK, k_BNHK, v_BNHK = (
        torch.einsum("bnd,dhk->bnhk", y_BND, read(f"{at}/{part}/kernel")) + read(f"{at}/{part}/bias") for part in ("query", "key", "value")
    )
    scores_BHNN = torch.einsum("bqhk,bnhk->bhqn", q_BNHK * q_BNHK.shape[-1] ** -0.5, k_BNHK)
    mixed_BNHK = torch.einsum("bhqn,bnhk->bqhk", scores_BHNN.softmax(dim=-1), v_BNHK)
    return torch.einsum("bnhk,hkd->bnd", mixed_BNHK, read(f"{at}/out/kernel")) + read(f"{at}/out/bias")


def _torch(image_BCHW: Tensor, *, settings: ReferenceSettings, names: Collection[str], read: Read) -> Tensor:
    hf = settings.layout == "hf"
    token, table = ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings") if hf else ("cls_token", "pos_embed")
    patch = "vit.embeddings.patch_embeddings.projection" if hf else "patch_embed.proj"
    kernel_DCPP = read(f"{patch}.weight")
    x_BND = F.conv2d(image_BCHW, kernel_DCPP, read(f"{patch}.bias"), stride=kernel_DCPP.shape[-1]).flatten(2).transpose(1, 2)
    has_class = token in names
    positions_1ND = read(table)
    has_row = has_class and positions_1ND.shape[1] == x_BND.shape[1] + 1
    if not has_row:
        x_BND = x_BND + positions_1ND
    if has_class:
        x_BND = torch.cat([read(token).expand(len(x_BND), -1, -1), x_BND], dim=1)
    if has_row:
        x_BND = x_BND + positions_1ND
    for block in range(settings.depth):
        at = f"vit.encoder.layer.{block}" if hf else f"blocks.{block}"
        norm1, norm2 = (f"{at}.layernorm_before", f"{at}.layernorm_after") if hf else (f"{at}.norm1", f"{at}.norm2")
        fc1, fc2 = (f"{at}.intermediate.dense", f"{at}.output.dense") if hf else (f"{at}.mlp.fc1", f"{at}.mlp.fc2")
        y_BND = _norm(x_BND, read(f"{norm1}.weight"), read(f"{norm1}.bias"), settings)
        x_BND = x_BND + _torch_attention(y_BND, at=at, hf=hf, num_heads=settings.num_heads, read=read)
        y_BND = _norm(x_BND, read(f"{norm2}.weight"), read(f"{norm2}.bias"), settings)
        x_BND = x_BND + _linear(_gelu(_linear(y_BND, fc1, read), settings), fc2, read)
    norm = "vit.layernorm" if hf else "norm"
    x_BND = _norm(x_BND, read(f"{norm}.weight"), read(f"{norm}.bias"), settings)
    x_BD = x_BND[:, 0] if has_class else x_BND.mean(dim=1)
    head = "classifier" if hf else "head"
    return _linear(x_BD, head, read) if f"{head}.weight" in names else x_BD


def _torch_attention(y_BND: Tensor, *, at: str, hf: bool, num_heads: int, read: Read) -> Tensor:
    if hf:
        parts = [_linear(y_BND, f"{at}.attention.attention.{part}", read) for part in ("query", "key", "value")]
    else:
        parts = list(_linear(y_BND, f"{at}.attn.qkv", read).chunk(3, dim=-1))
    q_BHNK, k_BHNK, v_BHNK = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in parts)
    weights_BHNN = (q_BHNK @ k_BHNK.transpose(2, 3) / q_BHNK.shape[-1] ** 0.5).softmax(dim=-1)
    mixed_BND = (weights_BHNN @ v_BHNK).transpose(1, 2).flatten(2)
    return _linear(mixed_BND, f"{at}.attention.output.dense" if hf else f"{at}.attn.proj", read)


def _linear(x: Tensor, name: str, read: Read) -> Tensor:
    return x @ read(f"{name}.weight").T + read(f"{name}.bias")


def _norm(x: Tensor, scale: Tensor, bias: Tensor, settings: ReferenceSettings) -> Tensor:
    mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
    return (x - mean) * torch.rsqrt(variance + settings.layer_norm_eps) * scale + bias


def _gelu(x: Tensor, settings: ReferenceSettings) -> Tensor:
    if settings.gelu == "tanh":
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))
