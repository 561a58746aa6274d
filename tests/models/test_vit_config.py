from vitscale.models import ViT, ViTConfig
from vitscale.models.halting_vit import HaltingViT
from vitscale.models.merging_vit import MergingViT

TINY = {"variant": "mu/8", "image_size": 16}


def test_settings_decide_on_the_class() -> None:
    assert type(ViTConfig(**TINY).build()) is ViT
    assert type(ViTConfig.model_validate({**TINY, "token_merging": {"per_block": 1}}).build()) is MergingViT
    assert type(ViTConfig.model_validate({**TINY, "halting": {}}).build()) is HaltingViT
