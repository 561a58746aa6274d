"""open_clip and OpenAI's CLIP: what names and open_clip_config.json tell, and what is refused."""

from typing import Any

import pytest

from vitscale.config import CheckpointError
from vitscale.weights.open_clip_files import OPEN_CLIP

SHAPES = {
    "visual.class_embedding": (768,),
    "visual.positional_embedding": (10, 768),
    "visual.conv1.weight": (768, 3, 16, 16),
    "visual.proj": (768, 8),
    "visual.transformer.resblocks.0.ln_1.weight": (768,),
    "visual.transformer.resblocks.0.mlp.c_fc.weight": (3072, 768),
}
OPENAI: dict[str, tuple[int, ...]] = {"input_resolution": (), "context_length": (), "vocab_size": ()}


def described(shapes: dict[str, Any] = SHAPES, **config: Any) -> Any:
    return OPEN_CLIP.describe(shapes, settings={"open_clip_config.json": config} if config else {}, where="w")


def test_names_tell_the_sizes_and_openais_numbers_its_gelu() -> None:
    assert OPEN_CLIP.claims(SHAPES)
    found = described()
    expected = {"image_size": 48, "depth": 1, "num_heads": 12, "mlp_width": 3072, "gelu": "exact", "layer_norm_eps": 1e-5}
    assert found.model | expected == found.model
    assert found.head == {"num_classes": 8}
    assert any("model.gelu=quick" in words for words in found.assumed)
    assert described(SHAPES | OPENAI).model["gelu"] == "quick"


def test_a_config_tells_heads_gelu_and_how_images_are_normalised() -> None:
    images = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    found = described(model_cfg={"quick_gelu": True, "vision_cfg": {"head_width": 96}}, preprocess_cfg=images)
    expected = {"num_heads": 8, "gelu": "quick", "image_mean": images["mean"], "image_std": images["std"]}
    assert found.model | expected == found.model


@pytest.mark.parametrize("vision", [{"attentional_pool": True}, {"pool_type": "avg"}])
def test_other_pooling_is_refused(vision: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=f"has {next(iter(vision))}"):
        described(model_cfg={"vision_cfg": vision})
