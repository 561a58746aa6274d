"""The families of plain vision transformers in the code of other projects, with our weights: what parity is measured against."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Format
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTMAEConfig,
    ViTMAEModel,
)

from tests.family_settings import BEIT, BEIT_SHARED, CLIP, DINO_V3, EVA_02, MAE, MIXED, SAM, SIGLIP_2
from tests.oracles import HuggingFaceOracle, TimmOracle, random_classifier
from tests.splines import beit_table
from vitscale.config import decode
from vitscale.models import ViTConfig
from vitscale.nn.resample import Grid
from vitscale.objectives import Supervised

PATCH = 8
OWN_GRID = Grid(4, 4)
OTHER_GRID = Grid(3, 6)
"""What the models are made for, and another size that is no square."""

_SMALL = {"image_size": 32, "patch_size": PATCH, "num_channels": 2, "width": 32, "depth": 2, "mlp_width": 72, "num_heads": 2}

Rules = Sequence[tuple[str, str]]
"""What our parameters are called elsewhere: patterns and what takes their place, in turn. Several names, with spaces between, hold the
rows of ours one after the other; `name#a:b` is rows a to b of theirs, `name#,i` the i-th slice along its second dimension."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family in a project's code. `resize` makes the oracle's model ready for another grid where it does not take any."""

    name: str
    project: str
    values: dict[str, Any]
    oracle: Callable[[Supervised], "Oracle | TimmOracle | HuggingFaceOracle"]
    resize: Callable[[nn.Module, Grid], None] | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.project})"

    @property
    def config(self) -> ViTConfig:
        """Settings of a tiny model."""
        return decode(ViTConfig, values=_SMALL | self.values, source=str(self))


@dataclass(frozen=True, kw_only=True)
class Deltas:
    """How far two implementations are apart: logits absolutely, gradients relative to the largest of their parameter."""

    largest_logit: float
    logits: float
    gradient: float


class Oracle:
    """Another project's model with our weights; `pooled` makes features of images where the model has no head: a copy of ours is used."""

    def __init__(self, model: nn.Module, ours: Supervised, *, rules: Rules, pooled: Callable[[Tensor], Tensor] | None = None) -> None:
        self.model = model
        self.rules = rules
        self.pooled = pooled
        self.head = copy.deepcopy(ours.head)
        self._parameters = dict(model.named_parameters())
        if pooled is not None:
            self._parameters |= {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        filled = set()
        with torch.no_grad():
            for name, value in ours.named_parameters():
                targets = self._targets(name)
                for target, part in zip(targets, value.chunk(len(targets)), strict=True):
                    place = self._place(target, of="data")
                    place.copy_(part.reshape(place.shape))
                    filled.add(target.partition("#")[0])
        left = {name for name, parameter in self._parameters.items() if parameter.requires_grad and "mask_token" not in name} - filled
        assert not left, f"left as they were drawn: {left}"

    def logits(self, image_BCHW: Tensor) -> Tensor:
        return self.model(image_BCHW) if self.pooled is None else self.head(self.pooled(image_BCHW))

    def gradient(self, name: str) -> Tensor:
        return torch.cat([self._place(target, of="grad").flatten() for target in self._targets(name)])

    def _targets(self, name: str) -> list[str]:
        names = [name.removeprefix("backbone.")]
        for pattern, replacement in self.rules:
            names = [
                re.sub(pattern, new, found)
                for found in names
                for new in (replacement.split() if re.search(pattern, found) else [replacement])
            ]
        return names

    def _place(self, target: str, *, of: str) -> Tensor:
        name, _, where = target.partition("#")
        whole: Tensor = getattr(self._parameters[name], of)
        rows, _, column = where.partition(",")
        if column:
            return whole[:, int(column)]
        return whole[slice(*map(int, rows.split(":")))] if rows else whole


def measured(family: Family, *, grid: Grid) -> Deltas:
    """Logits and gradients of a cross-entropy of images of a size, ours against the family's."""
    ours = random_classifier(family.config, num_classes=5)
    theirs = family.oracle(ours)
    if grid != OWN_GRID and family.resize is not None:
        family.resize(theirs.model, grid)
    image_BCHW = torch.randn(2, 2, PATCH * grid.rows, PATCH * grid.columns, generator=torch.Generator().manual_seed(1))
    label_B = torch.tensor([1, 4])
    our_BK = torch.stack(ours._logits(image_BCHW, draws=None)).mean(0)
    their_BK = theirs.logits(image_BCHW)
    for logits_BK in (our_BK, their_BK):
        F.cross_entropy(logits_BK, label_B).backward()
    gradients = []
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("position_bias.table") and grid != OWN_GRID and family.resize is not None:
            continue  # theirs has become a parameter of the other size
        expected = theirs.gradient(name)
        assert expected.abs().max() > 0, name
        gradients.append((parameter.grad.flatten() - expected.flatten()).abs().max() / expected.abs().max())
    return Deltas(
        largest_logit=float(their_BK.detach().abs().max()),
        logits=float((our_BK - their_BK).detach().abs().max()),
        gradient=float(max(gradients)),
    )


_TIMM = (("^patch_embed", "patch_embed.proj"), (r"^head\.fc", "head"))
_TIMM_SIZES = {"patch_size": PATCH, "in_chans": 2, "num_classes": 5, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 72 / 32}
_TIMM_NORM = {"norm_layer": partial(nn.LayerNorm, eps=1e-6)}
_TIMM_BIASES = ((r"attn\.qkv\.([qv])_bias", r"attn.\1_bias"), (r"ls([12])\.gamma", r"gamma_\1"))


def _timm(ours: Supervised, *, config: dict[str, Any]) -> TimmOracle:
    oracle = TimmOracle(decode(ViTConfig, values=_SMALL | config, source="timm"), ours)
    oracle.model.dynamic_img_size = True
    embed = oracle.model.patch_embed
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
    return oracle


def _timm_family(name: str, **values: Any) -> Family:
    return Family(name=name, project="timm", values=values, oracle=partial(_timm, config=values))


def _eva_02(ours: Supervised) -> Oracle:
    how: dict[str, Any] = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3)}
    model = Eva(img_size=32, **_TIMM_SIZES, **_TIMM_NORM, **how, dynamic_img_size=True, global_pool="avg")
    rules = (
        *_TIMM,
        (r"attn\.qkv\.weight", "attn.q_proj.weight attn.k_proj.weight attn.v_proj.weight"),
        (r"attn\.qkv\.([qv])_bias", r"attn.\1_proj.bias"),
        (r"mlp\.fc1", "mlp.fc1_g mlp.fc1_x"),
        (r"^norm\.", "fc_norm."),
    )
    return Oracle(model, ours, rules=rules)


def _timm_dino_v3(ours: Supervised, *, is_gated: bool) -> Oracle:
    how: dict[str, Any] = {"init_values": 0.1, "num_reg_tokens": 4, "use_abs_pos_emb": False, "use_fc_norm": False}
    rope: dict[str, Any] = {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True}
    mlp = {"swiglu_mlp": True, "swiglu_align_to": 8} if is_gated else {}
    norm = {"norm_layer": partial(nn.LayerNorm, eps=1e-5)}
    model = Eva(img_size=32, **_TIMM_SIZES, **norm, **how, **rope, **mlp, dynamic_img_size=True, global_pool="token")
    return Oracle(model, ours, rules=(*_TIMM, *_TIMM_BIASES, *([(r"mlp\.fc1", "mlp.fc1_g mlp.fc1_x")] if is_gated else [])))


def _rope_mixed(ours: Supervised) -> Oracle:
    how: dict[str, Any] = {"attn_type": "rope", "use_abs_pos_emb": False, "use_rot_pos_emb": True, "rope_type": "mixed"}
    rope: dict[str, Any] = {"rope_grid_indexing": "xy", "rope_temperature": 10.0}
    model = Eva(img_size=32, **_TIMM_SIZES, **_TIMM_NORM, **how, **rope, dynamic_img_size=True, global_pool="token")
    return Oracle(model, ours, rules=(*_TIMM, (r"^blocks\.(\d)\.attn\.rope\.frequencies", r"rope.freqs#,\1")))


def _timm_beit(ours: Supervised) -> Oracle:
    is_shared = ours.backbone.shared_position_bias is not None
    how: dict[str, Any] = {"init_values": 0.1, "use_abs_pos_emb": False, "use_rel_pos_bias": not is_shared}
    model = Beit(img_size=32, **_TIMM_SIZES, **_TIMM_NORM, **how, use_shared_rel_pos_bias=is_shared)
    rules = (
        *_TIMM,
        *_TIMM_BIASES,
        (r"^norm\.", "fc_norm."),
        (r"^shared_position_bias\.table", "rel_pos_bias.relative_position_bias_table"),
        (r"position_bias\.table", "relative_position_bias_table"),
    )
    return Oracle(model, ours, rules=rules)


def _resize_timm_beit(model: nn.Module, grid: Grid) -> None:
    assert isinstance(model, Beit)
    model.set_input_size(img_size=tuple(PATCH * side for side in grid))


def _resize_beit_by_its_splines(model: nn.Module, grid: Grid) -> None:
    tables = {name: value.detach().clone() for name, value in model.named_parameters() if name.endswith("position_bias_table")}
    _resize_timm_beit(model, grid)
    for name, table_LH in tables.items():
        splined = torch.from_numpy(beit_table(table_LH[:-3].double().numpy(), source=OWN_GRID, target=grid))
        model.get_parameter(name).data.copy_(torch.cat([splined.float(), table_LH[-3:]]))


def _sam(ours: Supervised) -> Oracle:
    how: dict[str, Any] = {"use_rel_pos": True, "window_size": 3, "global_attn_indexes": (1,), "neck_chans": 0}
    model = VisionTransformerSAM(img_size=32, **_TIMM_SIZES, **_TIMM_NORM, **how)
    rules = ((r"^patch_embed", "patch_embed.proj"), (r"^norm\.", "neck."), (r"position_bias\.rows", "rel_pos_h"))
    return Oracle(model, ours, rules=(*rules, (r"position_bias\.columns", "rel_pos_w"), (r"^head\.fc", "head.fc")))


_HF_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": PATCH,
    "num_channels": 2,
    "layer_norm_eps": 1e-6,
}
_HF_MLP = {"intermediate_size": 72}
_HF_QKV = (
    (r"attn\.qkv\.(weight|bias)", r"attention.q_proj.\1 attention.k_proj.\1 attention.v_proj.\1"),
    (r"attn\.qkv\.([qv])_bias", r"attention.\1_proj.bias"),
    (r"attn\.proj", "attention.o_proj"),
)
_HF_EMBEDDINGS = (
    ("^patch_embed", "embeddings.patch_embeddings.projection"),
    ("^cls_token", "embeddings.cls_token"),
    ("^dist_token", "embeddings.distillation_token"),
    ("^reg_token", "embeddings.register_tokens"),
    ("^pos_embed", "embeddings.position_embeddings"),
    (r"^norm\.", "layernorm."),
)
_HF_VIT = (
    *_HF_EMBEDDINGS,
    *_HF_QKV,
    (r"^blocks\.", "layers."),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
)
_HF_DINO = (*_HF_EMBEDDINGS, *_HF_QKV, (r"^blocks\.", "encoder.layer."), (r"ls([12])\.gamma", r"layer_scale\1.lambda1"))
_HF_GATED = ((r"mlp\.fc1", "mlp.gate_proj mlp.up_proj"), (r"mlp\.fc2", "mlp.down_proj"))


def _deit(ours: Supervised) -> Oracle:
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**_HF_SIZES, **_HF_MLP, num_labels=5)).eval()
    rules = (
        *_HF_VIT,
        (r"^head\.fc", "cls_classifier"),
        (r"^head_dist\.fc", "distillation_classifier"),
        (r"^(?=embeddings|layers|layernorm)", "deit."),
    )
    oracle = Oracle(model, ours, rules=rules)
    oracle.logits = lambda image_BCHW: model(image_BCHW, interpolate_pos_encoding=True).logits  # type: ignore[method-assign]
    return oracle


def _beit(ours: Supervised) -> Oracle:
    config = BeitConfig(**_HF_SIZES, **_HF_MLP, use_relative_position_bias=True, layer_scale_init_value=0.1, use_mean_pooling=True)
    model = BeitModel(config).eval()
    rules = (
        *_HF_VIT,
        (r"^layernorm", "pooler.layernorm"),
        (r"ls([12])\.gamma", r"lambda_\1"),
        (r"attn\.position_bias\.table", "relative_position_bias.relative_position_bias_table"),
    )
    return Oracle(model, ours, rules=rules, pooled=lambda image_BCHW: model(image_BCHW).pooler_output)


def _mae(ours: Supervised) -> Oracle:
    model = ViTMAEModel(ViTMAEConfig(**_HF_SIZES, **_HF_MLP, mask_ratio=0.0)).eval()
    model.embeddings.position_embeddings.requires_grad_()

    def pooled(image_BCHW: Tensor) -> Tensor:
        num_patches = image_BCHW[0, 0].numel() // PATCH**2
        order_BP = torch.arange(float(num_patches)).expand(image_BCHW.shape[0], -1)
        return model(image_BCHW, noise=order_BP, interpolate_pos_encoding=True).last_hidden_state[:, 1:].mean(1)

    return Oracle(model, ours, rules=_HF_VIT, pooled=pooled)


def _dino_v2(ours: Supervised, *, is_gated: bool = False, has_offset: bool = False) -> Oracle:
    mlp = {"mlp_ratio": 3, "use_swiglu_ffn": True} if is_gated else {"mlp_ratio": 2}  # a hidden width of 64
    model = Dinov2Model(Dinov2Config(**_HF_SIZES, **mlp)).eval()
    if has_offset:
        model.embeddings.interpolate_pos_encoding = partial(_dino_v2_positions, model.embeddings.position_embeddings)
    rules = (*_HF_DINO, *(_HF_GATED if is_gated else ()))
    return Oracle(model, ours, rules=rules, pooled=lambda image_BCHW: model(image_BCHW).pooler_output)


def _dino_v2_positions(table_1ND: Tensor, _embeddings: Tensor, height: int, width: int) -> Tensor:
    """The formula of facebookresearch/dinov2, `interpolate_pos_encoding` with interpolate_offset 0.1 and no antialiasing."""
    side = OWN_GRID.rows
    if height == width == PATCH * side:
        return table_1ND
    factors = [(length // PATCH + 0.1) / side for length in (height, width)]
    grid_1DRC = table_1ND[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resampled_1DRC = F.interpolate(grid_1DRC, scale_factor=factors, mode="bicubic")
    return torch.cat([table_1ND[:, :1], resampled_1DRC.flatten(2).transpose(1, 2)], dim=1)


def _dino_v2_registers(ours: Supervised) -> Oracle:
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_HF_SIZES, mlp_ratio=2, num_register_tokens=4)).eval()
    return Oracle(model, ours, rules=_HF_DINO, pooled=lambda image_BCHW: model(image_BCHW).pooler_output)


def _dino_v3(ours: Supervised, *, is_gated: bool) -> Oracle:
    sizes = _HF_SIZES | {"layer_norm_eps": 1e-5}
    mlp = {"use_gated_mlp": True, "hidden_act": "silu"} if is_gated else {}
    model = DINOv3ViTModel(DINOv3ViTConfig(**sizes, **_HF_MLP, **mlp, num_register_tokens=4)).eval()
    rules = (
        ("^patch_embed", "embeddings.patch_embeddings"),
        *_HF_EMBEDDINGS[1:-1],
        *_HF_QKV,
        (r"^blocks\.", "model.layer."),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
        *(_HF_GATED if is_gated else ((r"mlp\.fc1", "mlp.up_proj"), (r"mlp\.fc2", "mlp.down_proj"))),
    )
    return Oracle(model, ours, rules=rules, pooled=lambda image_BCHW: model(image_BCHW).pooler_output)


_SIGLIP = (
    ("^patch_embed", "embeddings.patch_embedding"),
    ("^pos_embed", "embeddings.position_embedding.weight"),
    (r"^norm\.", "post_layernorm."),
    (r"attn\.qkv\.(weight|bias)", r"self_attn.q_proj.\1 self_attn.k_proj.\1 self_attn.v_proj.\1"),
    (r"(blocks\..*)attn\.proj", r"\1self_attn.out_proj"),
    (r"^blocks\.(\d)\.norm", r"blocks.\1.layer_norm"),
    (r"^blocks\.", "encoder.layers."),
    (r"^attn_pool\.latent", "head.probe"),
    (r"^attn_pool\.q\.(weight|bias)", r"head.attention.in_proj_\1#0:32"),
    (r"^attn_pool\.kv\.(weight|bias)", r"head.attention.in_proj_\1#32:96"),
    (r"^attn_pool\.proj", "head.attention.out_proj"),
    (r"^attn_pool\.norm", "head.layernorm"),
    (r"^attn_pool\.", "head."),
)


def _siglip(ours: Supervised) -> Oracle:
    model = SiglipVisionModel(SiglipVisionConfig(**_HF_SIZES, **_HF_MLP)).eval()
    return Oracle(model, ours, rules=_SIGLIP, pooled=lambda image: model(image, interpolate_pos_encoding=True).pooler_output)


def _clip(ours: Supervised) -> Oracle:
    model = CLIPVisionModel(CLIPVisionConfig(**_HF_SIZES | {"layer_norm_eps": 1e-5}, **_HF_MLP)).eval()
    rules = (("^cls_token", "embeddings.class_embedding"), ("^embedding_norm", "pre_layrnorm"), *_SIGLIP)
    return Oracle(model, ours, rules=rules, pooled=lambda image: model(image, interpolate_pos_encoding=True).pooler_output)


def _siglip_2(ours: Supervised) -> Oracle:
    model = Siglip2VisionModel(Siglip2VisionConfig(**_HF_SIZES, **_HF_MLP, num_patches=16)).eval()

    def pooled(image_BCHW: Tensor) -> Tensor:
        # The order of a patch's pixels is that of the weights, ours.
        patches_BNP = F.unfold(image_BCHW, PATCH, stride=PATCH).transpose(1, 2)
        grid_B2 = (torch.tensor(image_BCHW.shape[2:]) // PATCH).expand(image_BCHW.shape[0], -1)
        return model(patches_BNP, torch.ones(patches_BNP.shape[:2], dtype=torch.long), grid_B2).pooler_output

    return Oracle(model, ours, rules=_SIGLIP, pooled=pooled)


def _transformers(name: str, oracle: Callable[[Supervised], Any], **values: Any) -> Family:
    return Family(name=name, project="transformers", values=values, oracle=oracle)


FAMILIES: tuple[Family, ...] = (
    _timm_family("ViT, class token"),
    _transformers("ViT, class token", lambda ours: HuggingFaceOracle(FAMILIES[0].config, ours), resampling="hf"),
    _timm_family("ViT, mean", pooling="mean"),
    _timm_family("ViT, attention pooling", pooling="map"),
    _timm_family("DeiT, distilled", distillation_token=True),
    _transformers("DeiT, distilled", _deit, distillation_token=True, resampling="deit"),
    _timm_family("DeiT III", prefix_positions=False, layer_scale=0.1),
    Family(name="BEiT", project="timm", values=BEIT, oracle=_timm_beit, resize=_resize_timm_beit),
    Family(
        name="BEiT, one table",
        project="timm",
        values=BEIT_SHARED,
        oracle=_timm_beit,
        resize=_resize_timm_beit,
    ),
    Family(
        name="BEiT",
        project="timm, table by BEiT's splines",
        values={**BEIT, "resampling": "beit"},
        oracle=_timm_beit,
        resize=_resize_beit_by_its_splines,
    ),
    _transformers("BEiT", _beit, **BEIT, resampling="hf"),
    _timm_family("MAE encoder", **MAE, norm_place="pooled"),
    _transformers("MAE encoder", _mae, **MAE, resampling="mae"),
    _timm_family("DINOv2", layer_scale=0.1),
    _transformers("DINOv2", _dino_v2, mlp_width=64, layer_scale=0.1, resampling="hf"),
    Family(
        name="DINOv2",
        project="transformers, positions by DINOv2's formula",
        values={"mlp_width": 64, "layer_scale": 0.1, "resampling": "dinov2"},
        oracle=partial(_dino_v2, has_offset=True),
    ),
    _timm_family("DINOv2, SwiGLU", layer_scale=0.1, mlp="swiglu"),
    _transformers("DINOv2, SwiGLU", partial(_dino_v2, is_gated=True), mlp="swiglu", mlp_width=64, layer_scale=0.1, resampling="hf"),
    _timm_family("DINOv2, registers", prefix_positions=False, num_registers=4, layer_scale=0.1),
    _transformers("DINOv2, registers", _dino_v2_registers, mlp_width=64, num_registers=4, layer_scale=0.1, resampling="dinov2_reg"),
    Family(name="DINOv3", project="timm", values=DINO_V3, oracle=partial(_timm_dino_v3, is_gated=False)),
    _transformers("DINOv3", partial(_dino_v3, is_gated=False), **DINO_V3),
    Family(name="DINOv3, SwiGLU", project="timm", values={**DINO_V3, "mlp": "swiglu"}, oracle=partial(_timm_dino_v3, is_gated=True)),
    _transformers("DINOv3, SwiGLU", partial(_dino_v3, is_gated=True), **DINO_V3, mlp="swiglu"),
    _timm_family("SigLIP 2", **SIGLIP_2),
    _transformers("SigLIP 2", _siglip_2, **SIGLIP_2, resampling="siglip2"),
    _transformers("SigLIP 2, fixed size", _siglip, **SIGLIP_2, resampling="hf"),
    _timm_family("CLIP", **CLIP, resampling="open_clip"),
    _transformers("CLIP", _clip, **CLIP, resampling="hf"),
    _timm_family("OpenCLIP", **CLIP | {"gelu": "exact"}, resampling="open_clip"),
    Family(name="EVA-02", project="timm", values=EVA_02, oracle=_eva_02),
    Family(name="SAM, ViTDet", project="timm", values=SAM, oracle=_sam),
    Family(name="RoPE-Mixed", project="timm", values=MIXED, oracle=_rope_mixed),
)
