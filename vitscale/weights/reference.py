"""The forward pass of a foreign file by its project's own formulas, straight from its names and shapes, one block at a time.

The yardstick of an import or export where the other project is not installed, or where both models do not fit in memory. It
shares nothing with our model or with the conversion of names: each layout is written down once more, as its project does it.
"""

# B batch, C channels, P patch side, N tokens, D width, H heads, K head width, M MLP width

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.nn.mlp import Gelu
from vitscale.nn.pooling import Pooling
from vitscale.weights.reference_stem import stem_output
from vitscale.weights.rules import Layout

Read = Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """What the tensors do not tell."""

    layout: Layout
    depth: int
    num_heads: int
    gelu: Gelu
    layer_norm_eps: float
    pooling: Pooling = "cls"


def has_formulas(layout: Layout) -> bool:
    """Whether the layout is one of those written down here."""
    return layout in ("vit_jax", "big_vision") or layout in _NAMES


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
    features_BCHW = stem_output(image_BCHW, names=names, read=read)
    patches_BCGGPP = features_BCHW.unfold(2, side, side).unfold(3, side, side)
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
    x_BD = _map_head(x_BND, read=read, settings=settings) if "MAPHead_0/probe" in names else x_BND[:, 0] if has_class else x_BND.mean(dim=1)
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


def _google_attention(y_BND: Tensor, *, at: str, read: Read, query_BQD: Tensor | None = None) -> Tensor:
    """Of the tokens to each other, or of a query to them."""
    sources = {"query": y_BND if query_BQD is None else query_BQD, "key": y_BND, "value": y_BND}
    q_BQHK, k_BNHK, v_BNHK = (
        torch.einsum("bnd,dhk->bnhk", source, read(f"{at}/{part}/kernel")) + read(f"{at}/{part}/bias") for part, source in sources.items()
    )
    scores_BHQN = torch.einsum("bqhk,bnhk->bhqn", q_BQHK * q_BQHK.shape[-1] ** -0.5, k_BNHK)
    mixed_BQHK = torch.einsum("bhqn,bnhk->bqhk", scores_BHQN.softmax(dim=-1), v_BNHK)
    return torch.einsum("bnhk,hkd->bnd", mixed_BQHK, read(f"{at}/out/kernel")) + read(f"{at}/out/bias")


def _map_head(x_BND: Tensor, *, read: Read, settings: ReferenceSettings) -> Tensor:
    """big_vision's MAPHead."""
    at = "MAPHead_0"
    probe_B1D = read(f"{at}/probe").expand(len(x_BND), -1, -1)
    y_B1D = _google_attention(x_BND, at=f"{at}/MultiHeadDotProductAttention_0", read=read, query_BQD=probe_B1D)
    normed_B1D = _norm(y_B1D, read(f"{at}/LayerNorm_0/scale"), read(f"{at}/LayerNorm_0/bias"), settings)
    dense = f"{at}/MlpBlock_0/Dense"
    hidden_B1M = _gelu(normed_B1D @ read(f"{dense}_0/kernel") + read(f"{dense}_0/bias"), settings)
    return (y_B1D + hidden_B1M @ read(f"{dense}_1/kernel") + read(f"{dense}_1/bias"))[:, 0]


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What a project that keeps torch's modules calls them; `{i}` is the block's number. What a file lacks is not computed."""

    patch: str
    tokens: tuple[str, str]
    """Class and distillation token, which have positions of their own where the table has rows for them."""
    registers: str
    table: str
    block: str
    norms: tuple[str, str]
    attention: tuple[str, ...]
    """Queries, keys and values, apart or in one."""
    out: str
    mlp: tuple[str, str]
    scales: tuple[str, str] = ("", "")
    norm: tuple[str, ...]
    """Before pooling; after it where the second is there."""
    pool: str = ""
    before: str = ""
    """The norm before the blocks."""
    heads: tuple[str, ...]


def _hf(root: str, *heads: str, **changes: object) -> _Names:
    at = f"{root}.embeddings"
    names = _Names(
        patch=f"{at}.patch_embeddings.projection",
        tokens=(f"{at}.cls_token", f"{at}.distillation_token"),
        registers=f"{at}.register_tokens",
        table=f"{at}.position_embeddings",
        block=f"{root}.encoder.layer.{{i}}",
        norms=("layernorm_before", "layernorm_after"),
        attention=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
        out="attention.output.dense",
        mlp=("intermediate.dense", "output.dense"),
        norm=(f"{root}.layernorm",),
        heads=heads,
    )
    return replace(names, **changes)  # type: ignore[arg-type]


def _dinov2(root: str) -> _Names:
    scales = ("layer_scale1.lambda1", "layer_scale2.lambda1")
    return _hf(root, "classifier", norms=("norm1", "norm2"), mlp=("mlp.fc1", "mlp.fc2"), scales=scales)


_SIGLIP = _hf(
    "vision_model",
    "classifier",
    patch="vision_model.embeddings.patch_embedding",
    table="vision_model.embeddings.position_embedding.weight",
    block="vision_model.encoder.layers.{i}",
    norms=("layer_norm1", "layer_norm2"),
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    norm=("vision_model.post_layernorm",),
    pool="vision_model.head",
)

_NAMES: dict[Layout, _Names] = {
    "timm": _Names(
        patch="patch_embed.proj",
        tokens=("cls_token", "dist_token"),
        registers="reg_token",
        table="pos_embed",
        block="blocks.{i}",
        norms=("norm1", "norm2"),
        attention=("attn.qkv",),
        out="attn.proj",
        mlp=("mlp.fc1", "mlp.fc2"),
        scales=("ls1.gamma", "ls2.gamma"),
        norm=("norm", "fc_norm"),
        pool="attn_pool",
        before="norm_pre",
        heads=("head", "head_dist"),
    ),
    "hf_vit": _hf("vit", "classifier"),
    "hf_deit": _hf("deit", "cls_classifier", "distillation_classifier"),
    "hf_dinov2": _dinov2("dinov2"),
    "hf_dinov2_with_registers": _dinov2("dinov2_with_registers"),
    "hf_siglip": _SIGLIP,
    "hf_clip": replace(_SIGLIP, tokens=("vision_model.embeddings.class_embedding", ""), before="vision_model.pre_layrnorm"),
    "open_clip": _Names(
        patch="visual.conv1",
        tokens=("visual.class_embedding", ""),
        registers="",
        table="visual.positional_embedding",
        before="visual.ln_pre",
        block="visual.transformer.resblocks.{i}",
        norms=("ln_1", "ln_2"),
        attention=("attn.in_proj",),
        out="attn.out_proj",
        mlp=("mlp.c_fc", "mlp.c_proj"),
        norm=("visual.ln_post",),
        heads=("visual.proj",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """The tensors of a file, and what the formulas make of them. A layer without a tensor for its bias has none."""

    settings: ReferenceSettings
    names: Collection[str]
    read: Read

    def has(self, module: str) -> bool:
        """Whether the file has that module, or tensor."""
        return module in self.names or f"{module}.weight" in self.names

    def linear(self, x: Tensor, module: str) -> Tensor:
        # torch's attention has its queries, keys and values as `in_proj_weight`.
        end = "_" if f"{module}_weight" in self.names else "."
        y = x @ self.read(f"{module}{end}weight").T
        return y + self.read(f"{module}{end}bias") if f"{module}{end}bias" in self.names else y

    def norm(self, x: Tensor, module: str) -> Tensor:
        """LayerNorm; RMSNorm where there is no bias."""
        scale = self.read(f"{module}.weight")
        if f"{module}.bias" in self.names:
            return _norm(x, scale, self.read(f"{module}.bias"), self.settings)
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + self.settings.layer_norm_eps) * scale

    def scaled(self, x: Tensor, name: str) -> Tensor:
        return x * self.read(name) if name in self.names else x


def _torch(image_BCHW: Tensor, *, settings: ReferenceSettings, names: Collection[str], read: Read) -> Tensor:
    called, file = _NAMES[settings.layout], _Tensors(settings=settings, names=names, read=read)
    x_BND, num_prefix = _torch_tokens(image_BCHW, called=called, file=file)
    for block in range(settings.depth):
        at = called.block.format(i=block)
        y_BND = _torch_attention(file.norm(x_BND, f"{at}.{called.norms[0]}"), at=at, called=called, file=file)
        x_BND = x_BND + file.scaled(y_BND, f"{at}.{called.scales[0]}")
        y_BND = _torch_mlp(file.norm(x_BND, f"{at}.{called.norms[1]}"), at=at, called=called, file=file)
        x_BND = x_BND + file.scaled(y_BND, f"{at}.{called.scales[1]}")
    after_pooling = file.has(called.norm[-1]) and len(called.norm) == 2
    if not after_pooling:
        x_BND = file.norm(x_BND, called.norm[0])
    pooled = [_torch_pooled(x_BND, num_prefix=num_prefix, called=called, file=file)]
    if file.has(called.tokens[1]):
        pooled.append(x_BND[:, 1])
    if after_pooling:
        pooled = [file.norm(x_BD, called.norm[-1]) for x_BD in pooled]
    if not file.has(called.heads[0]):
        return pooled[0]
    return torch.stack([_torch_logits(x_BD, x_BND, head, num_prefix, file) for x_BD, head in zip(pooled, called.heads, strict=False)]).mean(
        0
    )


def _torch_logits(x_BD: Tensor, x_BND: Tensor, head: str, num_prefix: int, file: _Tensors) -> Tensor:
    """transformers' DINOv2 gives its classifier the mean of the patches as well."""
    if file.settings.layout.startswith("hf_dinov2"):
        x_BD = torch.cat([x_BD, x_BND[:, num_prefix:].mean(dim=1)], dim=1)
    return x_BD @ file.read(head) if head in file.names else file.linear(x_BD, head)


def _torch_tokens(image_BCHW: Tensor, *, called: _Names, file: _Tensors) -> tuple[Tensor, int]:
    """Tokens (B, N, D) with their positions, and how many are not patches."""
    kernel_DCPP = file.read(f"{called.patch}.weight")
    features_BCHW = stem_output(image_BCHW, names=file.names, read=file.read)
    bias_D = file.read(f"{called.patch}.bias") if f"{called.patch}.bias" in file.names else None
    x_BDGG = F.conv2d(features_BCHW, kernel_DCPP, bias_D, stride=kernel_DCPP.shape[-1])
    x_BND = x_BDGG.flatten(2).transpose(1, 2)
    num_patches = x_BND.shape[1]
    prefix = [file.read(name).view(1, 1, -1).expand(len(x_BND), -1, -1) for name in called.tokens if file.has(name)]
    registers = [file.read(called.registers).expand(len(x_BND), -1, -1)] if file.has(called.registers) else []
    if file.has(called.table):
        table_ND = file.read(called.table).flatten(0, -2)
        num_rows = len(table_ND) - num_patches
        prefix = [token + table_ND[row] if row < num_rows else token for row, token in enumerate(prefix)]
        x_BND = x_BND + table_ND[num_rows:]
    x_BND = torch.cat([*prefix, *registers, x_BND], dim=1)
    x_BND = file.norm(x_BND, called.before) if file.has(called.before) else x_BND
    return x_BND, x_BND.shape[1] - num_patches


def _torch_attention(y_BND: Tensor, *, at: str, called: _Names, file: _Tensors) -> Tensor:
    parts = [file.linear(y_BND, f"{at}.{part}") for part in called.attention]
    parts = parts if len(parts) == 3 else list(parts[0].chunk(3, dim=-1))
    q_BHNK, k_BHNK, v_BHNK = (part.unflatten(-1, (file.settings.num_heads, -1)).transpose(1, 2) for part in parts)
    if file.has(f"{at}.attn.q_norm"):
        q_BHNK, k_BHNK = file.norm(q_BHNK, f"{at}.attn.q_norm"), file.norm(k_BHNK, f"{at}.attn.k_norm")
    return file.linear(_attended(q_BHNK, k_BHNK, v_BHNK), f"{at}.{called.out}")


def _attended(q_BHQK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor) -> Tensor:
    weights_BHQN = (q_BHQK @ k_BHNK.transpose(2, 3) / q_BHQK.shape[-1] ** 0.5).softmax(dim=-1)
    mixed_BQD: Tensor = (weights_BHQN @ v_BHNK).transpose(1, 2).flatten(2)
    return mixed_BQD


def _torch_mlp(y_BND: Tensor, *, at: str, called: _Names, file: _Tensors) -> Tensor:
    if file.has(f"{at}.mlp.weights_in"):
        gate_BNM, value_BNM = file.linear(y_BND, f"{at}.mlp.weights_in").chunk(2, dim=-1)
        return file.linear(gate_BNM * gate_BNM.sigmoid() * value_BNM, f"{at}.mlp.weights_out")
    first, second = (f"{at}.{layer}" for layer in called.mlp)
    hidden_BNM = file.linear(y_BND, first)
    if hidden_BNM.shape[-1] == 2 * file.read(f"{second}.weight").shape[1]:
        gate_BNM, value_BNM = hidden_BNM.chunk(2, dim=-1)
        hidden_BNM = gate_BNM * gate_BNM.sigmoid() * value_BNM
    else:
        hidden_BNM = _gelu(hidden_BNM, file.settings)
    if file.has(f"{at}.mlp.norm"):
        hidden_BNM = file.norm(hidden_BNM, f"{at}.mlp.norm")
    return file.linear(hidden_BNM, second)


def _torch_pooled(x_BND: Tensor, *, num_prefix: int, called: _Names, file: _Tensors) -> Tensor:
    if file.settings.pooling == "cls":
        return x_BND[:, 0]
    if file.settings.pooling == "mean":
        return x_BND[:, num_prefix:].mean(dim=1)
    at = called.pool
    probe_B1D = (file.read(f"{at}.probe") if file.has(f"{at}.probe") else file.read(f"{at}.latent")).expand(len(x_BND), -1, -1)
    if file.has(f"{at}.attention.in_proj_weight"):
        weight_3DD, bias_3D = file.read(f"{at}.attention.in_proj_weight"), file.read(f"{at}.attention.in_proj_bias")
        inputs = (probe_B1D, x_BND, x_BND)
        parts = [x @ w.T + b for x, w, b in zip(inputs, weight_3DD.chunk(3), bias_3D.chunk(3), strict=True)]
        out, norm = f"{at}.attention.out_proj", f"{at}.layernorm"
    else:
        parts = [file.linear(probe_B1D, f"{at}.q"), *file.linear(x_BND, f"{at}.kv").chunk(2, dim=-1)]
        out, norm = f"{at}.proj", f"{at}.norm"
    q_BHQK, k_BHNK, v_BHNK = (part.unflatten(-1, (file.settings.num_heads, -1)).transpose(1, 2) for part in parts)
    y_BD: Tensor = file.linear(_attended(q_BHQK, k_BHNK, v_BHNK), out)[:, 0]
    hidden_BM = _gelu(file.linear(file.norm(y_BD, norm), f"{at}.mlp.fc1"), file.settings)
    return y_BD + file.linear(hidden_BM, f"{at}.mlp.fc2")


def _norm(x: Tensor, scale: Tensor, bias: Tensor, settings: ReferenceSettings) -> Tensor:
    mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
    return (x - mean) * torch.rsqrt(variance + settings.layer_norm_eps) * scale + bias


def _gelu(x: Tensor, settings: ReferenceSettings) -> Tensor:
    if settings.gelu == "tanh":
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    if settings.gelu == "quick":
        return x * torch.sigmoid(1.702 * x)
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))
