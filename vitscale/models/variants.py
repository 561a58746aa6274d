"""Vision transformers by name: plain sizes, and published models with all the settings that make them what they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitscale.models.settings import IMAGENET
from vitscale.nn.conv_stem import ConvStemConfig
from vitscale.nn.decomposed_bias import DecomposedBiasConfig
from vitscale.nn.relative_bias import RelativeBiasConfig
from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.nn.rope import Dinov3RopeConfig, Eva02RopeConfig

FREE_SETTINGS = ("mlp_width", "image_mean", "image_std", "resampling")
"""Settings that a variant only proposes: sizes, how images are normalised and positions resampled."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths and counts of a transformer; the patch size is the other half of a variant's name."""

    width: int
    depth: int
    mlp_width: int
    num_heads: int


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A size with a patch side, written as in the papers: `S/16`; of a published model also the settings that it has."""

    size: Size
    patch_size: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = FREE_SETTINGS
    """Those of the settings that it only proposes."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A published model: its size, the patch sides it was published with, and the settings of `ViTConfig` that it fixes, or only
    proposes where they are `free`."""

    size: Size
    patch_sizes: tuple[int, ...]
    settings: Mapping[str, Any]
    free: tuple[str, ...] = FREE_SETTINGS
    stride: int | None = None
    """Side of a patch in pixels, where the name gives another number."""


# Ti to G: Dosovitskiy et al. 2021, Touvron et al. 2021 and Zhai et al. 2022, as in big_vision's models/vit.py, `decode_variant`.
SIZES: dict[str, Size] = {
    "mu": Size(width=32, depth=1, mlp_width=128, num_heads=2),
    "Ti": Size(width=192, depth=12, mlp_width=768, num_heads=3),
    "S": Size(width=384, depth=12, mlp_width=1536, num_heads=6),
    "M": Size(width=512, depth=12, mlp_width=2048, num_heads=8),
    "B": Size(width=768, depth=12, mlp_width=3072, num_heads=12),
    "L": Size(width=1024, depth=24, mlp_width=4096, num_heads=16),
    "So400m": Size(width=1152, depth=27, mlp_width=4304, num_heads=16),
    "H": Size(width=1280, depth=32, mlp_width=5120, num_heads=16),
    "g": Size(width=1408, depth=40, mlp_width=6144, num_heads=16),
    "g-opt": Size(width=1536, depth=40, mlp_width=6144, num_heads=16),
    "G": Size(width=1664, depth=48, mlp_width=8192, num_heads=16),
    "G-opt": Size(width=1536, depth=48, mlp_width=8192, num_heads=16),
    "e": Size(width=1792, depth=56, mlp_width=15360, num_heads=16),
    # The size of DINOv3's 7B, whose gated MLP has three matrices of 8192; two of 12288 hold as many parameters.
    "7B": Size(width=4096, depth=40, mlp_width=12288, num_heads=32),
    # The size of ViT-22B (Dehghani et al. 2023) as a plain pre-norm model; ViT-22B below is the one of the paper.
    "22B": Size(width=6144, depth=48, mlp_width=24576, num_heads=48),
}


SIZE_PATCHES: dict[str, tuple[int, ...]] = {
    "B": (16, 32),
    "L": (16, 14),
    "So400m": (14,),
    "H": (14,),
    "g": (14,),
    "G": (14,),
    "e": (14,),
    "22B": (14,),
}
"""Patch sides that plain sizes are published with, where it is not 16."""

_DEIT = {**IMAGENET, "resampling": "deit"}
_DEIT_3 = {**_DEIT, "prefix_positions": False, "layer_scale": 1e-4}
_DINOV2 = {**IMAGENET, "layer_scale": 1e-5, "resampling": "dinov2"}
_REGISTERS = {"num_registers": 4, "resampling": "dinov2_reg"}
_SIGLIP = {"pooling": "map", "gelu": "tanh", "resampling": "siglip2"}
_MAE = {**IMAGENET, "class_token": True, "pooling": "mean", "norm_place": "pooled", "positions": "learned", "resampling": "mae"}
_CONV_18 = ConvStemConfig(widths=(64, 128, 128, 256, 256, 512), strides=(2, 2, 1, 2, 1, 2))
_GIANT_2 = Size(width=1536, depth=40, mlp_width=6144, num_heads=24)
_DINOV3 = {
    **IMAGENET,
    "positions": "none",
    "rotary": Dinov3RopeConfig(),
    "qkv_bias": "no_key",
    "layer_scale": 1e-5,
    "num_registers": 4,
    "layer_norm_eps": 1e-5,
}
_BEIT = {
    "positions": "none",
    "position_bias": RelativeBiasConfig(),
    "qkv_bias": "no_key",
    "class_token": True,
    "pooling": "mean",
    "norm_place": "pooled",
    "resampling": "beit",
}
CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
_CLIP_TOWER = {**CLIP, "embedding_norm": True, "patch_bias": False, "layer_norm_eps": 1e-5, "resampling": "open_clip"}
# Rotated by the coordinates of 224 pixels, whatever the size of the image.
_EVA_02 = {
    **CLIP,
    "mlp": "swiglu",
    "rotary": Eva02RopeConfig(pretrained_grid=16),
    "qkv_bias": "no_key",
    "class_token": True,
    "pooling": "mean",
    "norm_place": "pooled",
    "resampling": "beit",
}
_SAM = {**IMAGENET, "position_bias": DecomposedBiasConfig(), "window": 14, "pooling": "mean", "resampling": "mae"}


def _stem_settings(units: tuple[int, ...]) -> dict[str, Any]:
    return {"stem": ResNetStemConfig(units=units), "resampling": "google"}


def _hybrid(size: str, *, patch: int, units: tuple[int, ...]) -> Model:
    return Model(size=SIZES[size], patch_sizes=(patch,), settings=_stem_settings(units))


def _convolutional(*, width: int, depth: int, mlp_width: int, stem: ConvStemConfig) -> Model:
    size = Size(width=width, depth=depth, mlp_width=mlp_width, num_heads=width // 64)
    return Model(size=size, patch_sizes=(16,), settings={**IMAGENET, "stem": stem})


MODELS_BY_NAME: dict[str, Model] = {
    # Touvron et al. 2021; facebookresearch/deit, models.py. The distilled ones have a second token and a second head.
    **{f"DeiT-{size}": Model(size=SIZES[size], patch_sizes=(16,), settings=_DEIT) for size in ("Ti", "S", "B")},
    **{
        f"DeiT-distilled-{size}": Model(size=SIZES[size], patch_sizes=(16,), settings={**_DEIT, "distillation_token": True})
        for size in ("Ti", "S", "B")
    },
    # Touvron et al. 2022; facebookresearch/deit, models_v2.py (timm starts layer scale from 1e-6).
    **{
        f"DeiT3-{size}": Model(size=SIZES[size], patch_sizes=(14,) if size == "H" else (16,), settings=_DEIT_3)
        for size in ("S", "M", "B", "L", "H")
    },
    # Oquab et al. 2024, Darcet et al. 2024; facebookresearch/dinov2, models/vision_transformer.py.
    **{
        f"DINOv2{suffix}-{size}": Model(size=SIZES[size], patch_sizes=(14,), settings={**_DINOV2, **registers})
        for suffix, registers in (("", {}), ("-reg", _REGISTERS))
        for size in ("S", "B", "L")
    },
    "DINOv2-g": Model(size=_GIANT_2, patch_sizes=(14,), settings={**_DINOV2, "mlp": "swiglu"}),
    "DINOv2-reg-g": Model(size=_GIANT_2, patch_sizes=(14,), settings={**_DINOV2, **_REGISTERS, "mlp": "swiglu"}),
    # Tschannen et al. 2025; google-research/big_vision, models/vit.py and configs/proj/image_text.
    **{
        f"SigLIP2-{size}": Model(size=SIZES[size], patch_sizes=patches, settings=_SIGLIP)
        for size, patches in (("B", (16, 32)), ("L", (16,)), ("So400m", (14, 16)), ("g-opt", (16,)))
    },
    # He et al. 2022; facebookresearch/mae, models_vit.py with global_pool, as it is fine-tuned: its table starts
    # from the sines and cosines of the pre-training, and is trained on. Pre-training itself has them fixed.
    **{
        f"MAE-{size}": Model(
            size=SIZES[size], patch_sizes=(14,) if size == "H" else (16,), settings=_MAE, free=(*FREE_SETTINGS, "positions")
        )
        for size in ("B", "L", "H")
    },
    # Simeoni et al. 2025; facebookresearch/dinov3, hub/backbones.py. Hidden widths are those before two thirds are taken of them.
    **{f"DINOv3-{size}": Model(size=SIZES[size], patch_sizes=(16,), settings=_DINOV3) for size in ("S", "B", "L")},
    "DINOv3-S+": Model(size=replace(SIZES["S"], mlp_width=2304), patch_sizes=(16,), settings={**_DINOV3, "mlp": "swiglu"}),
    "DINOv3-H+": Model(size=replace(SIZES["H"], mlp_width=7680, num_heads=20), patch_sizes=(16,), settings={**_DINOV3, "mlp": "swiglu"}),
    "DINOv3-7B": Model(size=SIZES["7B"], patch_sizes=(16,), settings={**_DINOV3, "mlp": "swiglu64", "qkv_bias": "none"}),
    # Bao et al. 2022; microsoft/unilm, beit/modeling_finetune.py.
    **{
        f"BEiT-{size}": Model(size=SIZES[size], patch_sizes=(16,), settings={**_BEIT, "layer_scale": layer_scale})
        for size, layer_scale in (("B", 0.1), ("L", 1e-5))
    },
    # Fang et al. 2023; baaivision/EVA, EVA-02/asuka/modeling_finetune.py. The larger two normalise the hidden values of the MLP; the
    # hidden width of L is not aligned.
    **{f"EVA-02-{size}": Model(size=SIZES[size], patch_sizes=(14,), settings=_EVA_02) for size in ("Ti", "S")},
    "EVA-02-B": Model(size=SIZES["B"], patch_sizes=(14,), settings={**_EVA_02, "mlp_norm": True}),
    "EVA-02-L": Model(size=SIZES["L"], patch_sizes=(14,), settings={**_EVA_02, "mlp_norm": True, "mlp_width": 2730}),
    # Radford et al. 2021; openai/CLIP, clip/model.py. Cherti et al. 2023; mlfoundations/open_clip, src/open_clip/transformer.py and
    # model_configs. The image towers without the projection; those of open_clip are the ones with exact GELU, G is its bigG.
    **{
        f"{name}-{size}": Model(size=SIZES[size], patch_sizes=patches, settings={**_CLIP_TOWER, "gelu": gelu})
        for name, gelu, sizes in (("CLIP", "quick", ("B", "L")), ("OpenCLIP", "exact", ("B", "L", "H", "g", "G")))
        for size, patches in ((size, (32, 16) if size == "B" else (14,)) for size in sizes)
    },
    # Kirillov et al. 2023 and Li et al. 2022 (ViTDet): facebookresearch/segment-anything, build_sam.py, and detectron2,
    # projects/ViTDet. The encoders without neck and pyramid; how their tokens are pooled is free.
    **{
        f"{name}-{size}": Model(
            size=SIZES[size],
            patch_sizes=(16,),
            settings={**_SAM, "global_blocks": global_blocks},
            free=(*FREE_SETTINGS, "pooling"),
        )
        for name in ("SAM", "ViTDet")
        for size, global_blocks in (("B", (2, 5, 8, 11)), ("L", (5, 11, 17, 23)), ("H", (7, 15, 23, 31)))
    },
    # Dosovitskiy et al. 2021, Steiner et al. 2022; google-research/vision_transformer, vit_jax/configs/models.py.
    "R50+B": _hybrid("B", patch=16, units=(3, 4, 9)),
    "R26+S": _hybrid("S", patch=32, units=(2, 2, 2, 2)),
    "R26+B": _hybrid("B", patch=32, units=(2, 2, 2, 2)),
    "R50+L": _hybrid("L", patch=32, units=(3, 4, 6, 3)),
    # Its code pools after the root, so a patch of 8 x 8 features is one of 32 x 32 pixels, whatever the published name says.
    "R+Ti": Model(size=SIZES["Ti"], patch_sizes=(16,), settings=_stem_settings(()), stride=32),
    # Xiao et al. 2021, table 2; facebookresearch/pycls, models/vit.py. One block less than the models with patches.
    "ViTC-1GF": _convolutional(width=192, depth=11, mlp_width=576, stem=ConvStemConfig(widths=(24, 48, 96, 192))),
    "ViTC-4GF": _convolutional(width=384, depth=11, mlp_width=1152, stem=ConvStemConfig(widths=(48, 96, 192, 384))),
    "ViTC-18GF": _convolutional(width=768, depth=11, mlp_width=3072, stem=_CONV_18),
    "ViTC-36GF": _convolutional(width=1024, depth=13, mlp_width=4096, stem=_CONV_18),
    # Dehghani et al. 2023, section 2: norms without centring and bias, no bias in the projections of queries, keys and values.
    "ViT-22B": Model(
        size=SIZES["22B"],
        patch_sizes=(14,),
        settings={"parallel": True, "qk_norm": True, "qkv_bias": "none", "norm": "rms", "pooling": "map", "gelu": "tanh"},
    ),
}


def parse_variant(name: str) -> Variant:
    """`S/16` to the size S with patches of 16, `DINOv2-S/14` to that model. Raises `ValueError` that says what is known."""
    base, slash, patch = name.partition("/")
    model = MODELS_BY_NAME.get(base)
    if model is None and base not in SIZES:
        raise ValueError(f"{base!r} is not a known size or model; sizes: {', '.join(SIZES)}; models: {', '.join(MODELS_BY_NAME)}")
    if not slash or not patch.isdecimal() or int(patch) < 1:
        raise ValueError(f"{name!r} names no patch size; write it after a slash, for example {base}/{known_patches(base)[0]}")
    if model is None:
        return Variant(size=SIZES[base], patch_size=int(patch))
    stride = model.stride if model.stride is not None and int(patch) in model.patch_sizes else int(patch)
    return Variant(size=model.size, patch_size=stride, settings=model.settings, free=model.free)


def known_patches(name: str) -> tuple[int, ...]:
    """The patch sides that a size or model is published with."""
    return MODELS_BY_NAME[name].patch_sizes if name in MODELS_BY_NAME else SIZE_PATCHES.get(name, (16,))
