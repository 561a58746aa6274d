"""config.json as transformers read it; tests/train/test_weight_families.py lets them."""

from vitscale.models import SwinConfig, ViTConfig
from vitscale.weights.hf_config import hf_config


def test_what_is_no_default_is_written() -> None:
    found = hf_config(ViTConfig(variant="DINOv3-7B/16", image_size=32), layout="hf_dinov3_vit", num_classes=0)
    expected = {"model_type": "dinov3_vit", "query_bias": False, "use_gated_mlp": True, "intermediate_size": 8192, "rope_theta": 100.0}
    assert found | expected == found


def test_siglip_has_its_sizes_in_a_part_of_their_own_where_it_classifies() -> None:
    model = ViTConfig(image_size=12, patch_size=4, width=32, depth=2, num_heads=4, pooling="mean", gelu="tanh")
    found = hf_config(model, layout="hf_siglip", num_classes=3)
    assert (found["model_type"], found["vision_config"]["hidden_act"], len(found["label2id"])) == ("siglip", "gelu_pytorch_tanh", 3)
    assert hf_config(model, layout="hf_siglip", num_classes=0)["vision_use_head"] is False


def test_swins_stages() -> None:
    found = hf_config(SwinConfig(variant="SwinV2-T", image_size=256), layout="hf_swinv2", num_classes=0)
    assert (found["architectures"], found["window_size"], found["depths"]) == (["Swinv2Model"], 8, [2, 2, 6, 2])
