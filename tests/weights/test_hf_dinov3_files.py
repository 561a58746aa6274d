"""DINOv3 of transformers: what names and config.json tell, and what is refused."""

import pytest

from vitscale.config import CheckpointError
from vitscale.weights.hf_dinov3_files import HF_DINOV3

SHAPES = {
    "embeddings.patch_embeddings.weight": (32, 3, 16, 16),
    "embeddings.register_tokens": (1, 4, 32),
    "layer.0.norm1.weight": (32,),
    "layer.0.attention.q_proj.bias": (32,),
    "layer.0.mlp.up_proj.weight": (48, 32),
    "layer.0.mlp.gate_proj.weight": (48, 32),
}


def test_switches_come_from_names_and_heads_from_the_config() -> None:
    assert HF_DINOV3.claims(SHAPES)
    found = HF_DINOV3.describe(SHAPES, settings={"config.json": {"model_type": "dinov3_vit", "num_attention_heads": 2}}, where="w")
    expected = {"mlp": "swiglu", "mlp_width": 48, "qkv_bias": "no_key", "proj_bias": False, "num_registers": 4, "num_heads": 2, "depth": 1}
    assert found.model | expected == found.model
    assert found.model["image_mean"] == [0.485, 0.456, 0.406]


def test_names_in_memory_lose_their_root() -> None:
    assert set(HF_DINOV3.entries({"model.layer.0.norm1.weight": (1,)})) == {"layer.0.norm1.weight"}


@pytest.mark.parametrize(("config", "message"), [({}, "there is none"), ({"model_type": "vit"}, "of type 'vit'")])
def test_another_config_is_refused(config: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        HF_DINOV3.describe(SHAPES, settings={"config.json": config} if config else {}, where="w")
