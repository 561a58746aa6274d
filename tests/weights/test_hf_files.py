"""Hugging Face's files: names on disk, of a bare model and in memory; what config.json tells; what is refused."""

from typing import Any

import pytest

from vitscale.config import CheckpointError
from vitscale.weights.family import Described
from vitscale.weights.hf_files import HF

SHAPES = {"embeddings.patch_embeddings.projection.weight": (32, 3, 4, 4), "encoder.layer.0.intermediate.dense.weight": (48, 32)}
CONFIG = {"model_type": "vit", "image_size": 12, "num_attention_heads": 4, "layer_norm_eps": 1e-6}


def described(**config: Any) -> Described:
    shapes = {name: entry.shape for name, entry in HF.entries(SHAPES).items()}
    return HF.describe(shapes, settings={"config.json": CONFIG | config}, where="w")


def test_names_in_memory_become_names_on_disk() -> None:
    names = {
        "vit.layers.3.attention.q_proj.weight": "vit.encoder.layer.3.attention.attention.query.weight",
        "vit.layers.3.attention.v_proj.bias": "vit.encoder.layer.3.attention.attention.value.bias",
        "vit.layers.3.attention.o_proj.bias": "vit.encoder.layer.3.attention.output.dense.bias",
        "vit.layers.3.mlp.fc1.weight": "vit.encoder.layer.3.intermediate.dense.weight",
        "vit.layers.3.mlp.fc2.weight": "vit.encoder.layer.3.output.dense.weight",
        "vit.layers.3.layernorm_before.bias": "vit.encoder.layer.3.layernorm_before.bias",
        "classifier.bias": "classifier.bias",
    }
    kernel = "vit.embeddings.patch_embeddings.projection.weight"
    entries = HF.entries(dict.fromkeys([*names, kernel], (1,)))
    assert entries.pop(kernel).source == kernel
    assert {entry.source: name for name, entry in entries.items()} == names


def test_a_bare_model_gets_the_prefix() -> None:
    assert "vit.encoder.layer.0.intermediate.dense.weight" in HF.entries(SHAPES)


@pytest.mark.parametrize(("activation", "gelu"), [("gelu", "exact"), ("gelu_new", "tanh"), ("gelu_pytorch_tanh", "tanh")])
def test_the_config_tells_what_shapes_do_not(activation: str, gelu: str) -> None:
    model = described(hidden_act=activation).model
    assert (model["gelu"], model["num_heads"], model["layer_norm_eps"], model["image_size"]) == (gelu, 4, 1e-6, 12)


def test_an_epsilon_that_is_left_out_is_transformers_default() -> None:
    shapes = {name: entry.shape for name, entry in HF.entries(SHAPES).items()}
    assert HF.describe(shapes, settings={"config.json": {"model_type": "vit"}}, where="w").model["layer_norm_eps"] == 1e-12


def test_what_is_no_vit_is_refused() -> None:
    with pytest.raises(CheckpointError, match="type 'swin'"):
        described(model_type="swin")
    with pytest.raises(CheckpointError, match="activation 'relu'"):
        described(hidden_act="relu")
    with pytest.raises(CheckpointError, match=r"config\.json: give the folder"):
        HF.describe(SHAPES, settings={}, where="w")
    with pytest.raises(CheckpointError, match="type 'vit', and the tensors have the names of 'dinov2'"):
        HF.describe({"dinov2.embeddings.patch_embeddings.projection.weight": (1,)}, settings={"config.json": CONFIG}, where="w")


def test_a_bare_model_is_known_by_what_is_its_own() -> None:
    kernel = "embeddings.patch_embeddings.projection.weight"
    for root, own in {
        "vit": "encoder.layer.0.layernorm_before.bias",
        "deit": "embeddings.distillation_token",
        "dinov2": "encoder.layer.0.layer_scale1.lambda1",
        "dinov2_with_registers": "embeddings.register_tokens",
    }.items():
        assert set(HF.entries({kernel: (1,), own: (1,)})) == {f"{root}.{kernel}", f"{root}.{own}"}
