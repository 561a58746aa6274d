"""Names: our model with timm's and Hugging Face's weights gives their logits, and every conversion can be undone."""

import pytest
import torch
from torch import Tensor, nn

from vitscale.config import CheckpointError
from vitscale.models import ViTConfig
from vitscale.nn.init import initial_value
from vitscale.objectives.supervised import SupervisedConfig
from vitscale.weights.names import Layout, from_foreign, to_foreign

NUM_CHANNELS = 3
MODEL = ViTConfig(image_size=12, num_channels=NUM_CHANNELS, patch_size=4, width=16, depth=12, num_heads=4, mlp_width=24)


def _ours() -> nn.Module:
    return SupervisedConfig(num_classes=5).build(MODEL.build())


def _random(state: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=generator) * 0.3 for name, value in state.items()}


def _timm() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=12, patch_size=4, embed_dim=16, depth=12, num_heads=4, mlp_ratio=1.5, num_classes=5)


def _hugging_face() -> nn.Module:
    from transformers import ViTConfig as HuggingFaceConfig
    from transformers import ViTForImageClassification

    return ViTForImageClassification(
        HuggingFaceConfig(
            image_size=12,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=12,
            num_attention_heads=4,
            intermediate_size=24,
            num_labels=5,
            layer_norm_eps=1e-6,
        )
    )


def test_timms_weights_give_timms_logits() -> None:
    theirs, ours = _timm().eval(), _ours().eval()
    weights = _random(theirs.state_dict())
    theirs.load_state_dict(weights)
    ours.load_state_dict(from_foreign(weights, layout="timm"))
    _same_logits(ours, lambda image: theirs(image))


def test_hugging_faces_weights_on_disk_give_their_logits(tmp_path: object) -> None:
    from safetensors.torch import load_file

    theirs, ours = _hugging_face().eval(), _ours().eval()
    theirs.load_state_dict(_random(theirs.state_dict()))
    theirs.save_pretrained(str(tmp_path))
    ours.load_state_dict(from_foreign(load_file(f"{tmp_path}/model.safetensors"), layout="hf"))
    _same_logits(ours, lambda image: theirs(image).logits)


def _same_logits(ours: nn.Module, theirs: object) -> None:
    image = torch.randn(2, NUM_CHANNELS, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(image)  # type: ignore[operator]
        logits = ours.head(ours.backbone(image).pooled_BD)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("layout", ["timm", "hf"])
def test_there_and_back_is_the_identity(layout: Layout) -> None:
    weights = _random(_ours().state_dict())
    back = from_foreign(to_foreign(weights, layout=layout, num_channels=NUM_CHANNELS), layout=layout)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], value) for name, value in weights.items())


def test_exported_names_and_shapes_are_timms() -> None:
    exported = to_foreign(_random(_ours().state_dict()), layout="timm", num_channels=NUM_CHANNELS)
    assert {name: value.shape for name, value in exported.items()} == {name: value.shape for name, value in _timm().state_dict().items()}


def test_exported_names_and_shapes_are_those_on_hugging_faces_disk(tmp_path: object) -> None:
    from safetensors.torch import load_file

    _hugging_face().save_pretrained(str(tmp_path))
    stored = load_file(f"{tmp_path}/model.safetensors")
    exported = to_foreign(_random(_ours().state_dict()), layout="hf", num_channels=NUM_CHANNELS)
    assert {name: value.shape for name, value in exported.items()} == {name: value.shape for name, value in stored.items()}


@pytest.mark.parametrize("layout", ["timm", "hf"])
def test_what_has_no_counterpart_is_refused(layout: Layout) -> None:
    weights = {"head.pre_logits.weight": torch.zeros(2, 2), "backbone.norm.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=rf"to {layout} names: head\.pre_logits\.weight has no counterpart"):
        to_foreign(weights, layout=layout, num_channels=1)
    foreign = {f"blocks.0.ls{i}.gamma": torch.zeros(2) for i in range(7)}
    with pytest.raises(CheckpointError, match=rf"from {layout} names: .*ls4\.gamma and 2 more"):
        from_foreign(foreign, layout=layout)


def test_a_query_without_key_and_value_is_refused() -> None:
    names = [f"vit.encoder.layer.3.attention.attention.{part}.weight" for part in ("query", "value")]
    with pytest.raises(CheckpointError, match=r"layer\.3\.attention\.attention\.query\.weight"):
        from_foreign({name: torch.zeros(2, 2) for name in names}, layout="hf")


def test_rows_of_qkv_are_query_key_value() -> None:
    parts = {part: torch.full((2, 2), float(i)) for i, part in enumerate(("query", "key", "value"))}
    foreign = {f"vit.encoder.layer.11.attention.attention.{part}.weight": parts[part] for part in ("value", "query", "key")}
    converted = from_foreign(foreign, layout="hf")
    assert torch.equal(converted["backbone.blocks.11.attn.qkv.weight"], torch.cat([parts["query"], parts["key"], parts["value"]]))


def test_the_models_own_names_all_convert() -> None:
    with torch.device("meta"):
        parameters = dict(_ours().named_parameters())
    assert all(hasattr(parameter, "init") for parameter in parameters.values())
    values = {name: initial_value(p, name=name, shape=p.shape, seed=0) for name, p in parameters.items()}
    assert len(to_foreign(values, layout="timm", num_channels=NUM_CHANNELS)) == len(parameters)
