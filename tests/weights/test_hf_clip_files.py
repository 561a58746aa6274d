"""CLIP of transformers: what names and config.json tell, and what is refused."""

import pytest

from vitscale.config import CheckpointError
from vitscale.weights.hf_clip_files import HF_CLIP

SHAPES = {
    "vision_model.embeddings.class_embedding": (32,),
    "vision_model.embeddings.patch_embedding.weight": (32, 3, 16, 16),
    "vision_model.encoder.layers.0.layer_norm1.weight": (32,),
    "vision_model.encoder.layers.0.mlp.fc1.weight": (48, 32),
    "visual_projection.weight": (8, 32),
}


@pytest.mark.parametrize("root", ["", "vision_model."])
def test_a_tower_may_be_alone(root: str) -> None:
    names = {f"{root}embeddings.class_embedding": (32,), f"{root}post_layernorm.bias": (32,)}
    assert HF_CLIP.claims(names)
    assert set(HF_CLIP.entries(names)) == {"vision_model.embeddings.class_embedding", "vision_model.post_layernorm.bias"}


def test_the_vision_part_of_the_config_tells_heads_and_gelu() -> None:
    config = {"model_type": "clip", "vision_config": {"num_attention_heads": 2, "image_size": 64, "hidden_act": "gelu"}}
    found = HF_CLIP.describe(SHAPES, settings={"config.json": config}, where="w")
    expected = {"num_heads": 2, "depth": 1, "gelu": "exact", "mlp_width": 48, "patch_bias": False, "embedding_norm": True}
    assert found.model | expected == found.model
    assert found.model["image_mean"][0] == 0.48145466
    assert "visual_projection.*" in found.set_aside
    assert any("projection" in words for words in found.assumed)


@pytest.mark.parametrize(("config", "message"), [({}, "there is none"), ({"model_type": "siglip"}, "of type 'siglip'")])
def test_another_config_is_refused(config: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        HF_CLIP.describe(SHAPES, settings={"config.json": config} if config else {}, where="w")
