"""The files beside exported weights; tests/train/test_weight_families.py lets the libraries read them."""

from typing import Any

from tests.weights.test_targets import model
from vitscale.weights.companions import companion_files


def test_companions_say_what_tensors_do_not() -> None:
    timm = companion_files(model(gelu="tanh"), layout="timm", num_classes=5)["config.json"]
    assert (timm["num_classes"], timm["model_args"]["act_layer"], timm["model_args"]["num_heads"]) == (5, "gelu_tanh", 4)
    files = companion_files(model(layer_norm_eps=1e-5), layout="hf_vit", num_classes=5)
    found: dict[str, Any] = files["config.json"]
    assert (found["hidden_act"], found["layer_norm_eps"], len(found["id2label"])) == ("gelu", 1e-5, 5)
    # transformers wants one number for each channel.
    assert files["preprocessor_config.json"]["image_mean"] == [0.5, 0.5, 0.5]
    assert companion_files(model(), layout="vit_jax", num_classes=5) == {}
