import pytest
import torch
from timm import create_model

from vitscale.models import ViTConfig
from vitscale.models.variants import MODELS_BY_NAME, SIZES, known_patches, parse_variant


def test_name_is_size_and_patch() -> None:
    variant = parse_variant("So400m/14")
    assert (variant.size, variant.patch_size) == (SIZES["So400m"], 14)


@pytest.mark.parametrize("name", ["S", "S/", "S/0", "S/x", "S/-4", "s/16", "", "/16"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"known|slash"):
        parse_variant(name)


def test_heads_divide_every_width() -> None:
    assert all(size.width % size.num_heads == 0 for size in SIZES.values())


# The same architectures in timm, without a classifier.
TIMM = {
    "DeiT-Ti/16": "deit_tiny_patch16_224",
    "DeiT-distilled-S/16": "deit_small_distilled_patch16_224",
    "DeiT3-M/16": "deit3_medium_patch16_224",
    "DINOv2-S/14": "vit_small_patch14_dinov2",
    "DINOv2-g/14": "vit_giant_patch14_dinov2",
    "SigLIP2-B/16": "vit_base_patch16_siglip_224",
    "SigLIP2-So400m/14": "vit_so400m_patch14_siglip_224",
}


@pytest.mark.parametrize("name", TIMM)
def test_published_models_have_as_many_parameters_as_timms(name: str) -> None:
    with torch.device("meta"):
        ours = ViTConfig(variant=name, image_size=224).build()
        theirs = create_model(TIMM[name], num_classes=0, img_size=224)
    assert sum(parameter.numel() for parameter in ours.parameters()) == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize("name", MODELS_BY_NAME)
def test_every_published_model_is_a_sound_configuration(name: str) -> None:
    for patch in known_patches(name):
        model = ViTConfig(variant=f"{name}/{patch}", image_size=4 * patch)
        assert model.shape.patch_size == patch
        for key, value in MODELS_BY_NAME[name].settings.items():
            assert getattr(model, key) == value
