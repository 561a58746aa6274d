"""What timm's classes are built with; tests/train/test_weight_families.py builds them."""

from vitscale.models import ViTConfig
from vitscale.weights.timm_arguments import timm_architecture, timm_arguments


def test_the_mlp_keeps_its_width_in_timms_ratio() -> None:
    for width, mlp_width in ((1792, 15360), (1408, 6144), (1152, 4304), (32, 48), (48, 49)):
        model = ViTConfig(image_size=32, patch_size=16, width=width, depth=1, num_heads=1, mlp_width=mlp_width)
        assert int(width * timm_arguments(model, layout="timm", class_row=True)["mlp_ratio"]) == mlp_width
        gated = ViTConfig(image_size=32, patch_size=16, width=width, depth=1, num_heads=1, mlp_width=mlp_width, mlp="swiglu")
        assert int(width * timm_arguments(gated, layout="timm", class_row=True)["mlp_ratio"]) == 2 * mlp_width


def test_the_epsilon_of_eva_is_that_of_a_registered_name() -> None:
    dinov3 = ViTConfig(variant="DINOv3-S/16", image_size=32)
    assert timm_architecture(dinov3, layout="timm_eva") == "vit_base_patch16_dinov3"
    assert timm_architecture(ViTConfig(variant="EVA-02-S/14", image_size=28), layout="timm_eva") == "eva02_base_patch14_224"
    assert timm_arguments(dinov3, layout="timm_eva", class_row=False)["rope_temperature"] == 100.0
