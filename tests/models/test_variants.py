import pytest
import torch
from timm import create_model

from vitscale.models import ViTConfig
from vitscale.models.variants import MODELS_BY_NAME, SIZES, known_patches, parse_variant
from vitscale.nn.init import materialise


def test_name_is_size_and_patch() -> None:
    variant = parse_variant("So400m/14")
    assert (variant.size, variant.patch_size) == (SIZES["So400m"], 14)


@pytest.mark.parametrize("name", ["S", "S/", "S/0", "S/x", "S/-4", "s/16", "", "/16"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"known|slash"):
        parse_variant(name)


def test_heads_divide_every_width() -> None:
    assert all(size.width % size.num_heads == 0 for size in SIZES.values())


# The same architectures in timm, without a classifier or a neck.
TIMM = {
    "DeiT-Ti/16": "deit_tiny_patch16_224",
    "DeiT-distilled-S/16": "deit_small_distilled_patch16_224",
    "DeiT3-M/16": "deit3_medium_patch16_224",
    "DINOv2-S/14": "vit_small_patch14_dinov2",
    "R+Ti/16": "vit_tiny_r_s16_p8_224",
    "R26+S/32": "vit_small_r26_s32_224",
    "SigLIP2-B/16": "vit_base_patch16_siglip_224",
    "CLIP-B/32": "vit_base_patch32_clip_quickgelu_224",
    "DINOv3-B/16": "vit_base_patch16_dinov3_qkvb",
    "EVA-02-B/14": "eva02_base_patch14_224",
    "BEiT-B/16": "beit_base_patch16_224",
    "SAM-B/16": "samvit_base_patch16",
}

# Parameters of those that take timm long to make: its 1.0.31 had as many, of DINOv3 with the biases of queries and values (qkvb).
COUNTS = {
    "DINOv2-g/14": 1_134_769_664,
    "SigLIP2-So400m/14": 427_680_704,
    "CLIP-B/16": 85_799_424,
    "CLIP-L/14": 303_179_776,
    "OpenCLIP-H/14": 630_766_080,
    "OpenCLIP-g/14": 1_011_203_840,
    "OpenCLIP-G/14": 1_842_777_344,
    "DINOv3-S/16": 21_596_160,
    "DINOv3-S+/16": 28_692_480,
    "DINOv3-L/16": 303_128_576,
    "DINOv3-H+/16": 840_591_360,
    "DINOv3-7B/16": 6_716_030_976,
    "BEiT-L/16": 303_405_568,
    "MAE-B/16": 85_798_656,
    "EVA-02-Ti/14": 5_502_144,
    "EVA-02-S/14": 21_621_120,
    "EVA-02-L/14": 303_268_800,
    "R26+B/32": 101_383_976 - 769_000,
    "R50+B/16": 98_659_112 - 769_000,
    "R50+L/32": 328_994_856 - 1_025_000,
}


@pytest.mark.parametrize("name", TIMM)
def test_published_models_have_as_many_parameters_as_timms(name: str) -> None:
    with torch.device("meta"):
        ours = ViTConfig(variant=name, image_size=224).build()
        theirs = create_model(TIMM[name], num_classes=0, img_size=224, **({"neck_chans": 0} if name.startswith("SAM") else {}))
    assert num_parameters(ours) == num_parameters(theirs)


@pytest.mark.parametrize("name", COUNTS)
def test_published_models_have_as_many_parameters_as_timms_had(name: str) -> None:
    with torch.device("meta"):
        assert num_parameters(ViTConfig(variant=name, image_size=224).build()) == COUNTS[name]


@pytest.mark.parametrize(("name", "millions"), [("SAM-B/16", 88.9), ("SAM-L/16", 307.4), ("ViTDet-H/16", 636.1)])
def test_encoders_of_1024_pixels_have_as_many_parameters_as_timms_had(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert num_parameters(ViTConfig(variant=name, image_size=1024).build()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", MODELS_BY_NAME)
def test_every_published_model_is_a_sound_configuration(name: str) -> None:
    for patch in known_patches(name):
        model = ViTConfig(variant=f"{name}/{patch}", image_size=4 * patch)
        assert model.shape.patch_size == (MODELS_BY_NAME[name].stride or patch)
        for key, value in MODELS_BY_NAME[name].settings.items():
            assert getattr(model, key) == value


@pytest.mark.parametrize(("name", "start"), [("DeiT3-B/16", 1e-4), ("DINOv2-B/14", 1e-5), ("DINOv3-B/16", 1e-5), ("BEiT-L/16", 1e-5)])
def test_layer_scale_starts_where_the_models_own_project_starts_it(name: str, start: float) -> None:
    with torch.device("meta"):
        block = ViTConfig(variant=name, image_size=112, depth=1).build().blocks[0]
    assert materialise(block, seed=0).ls2.gamma.unique().tolist() == pytest.approx([start])


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
