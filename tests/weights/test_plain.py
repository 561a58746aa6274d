"""What a layout can hold, and the files beside the weights."""

from typing import Any

import pytest

from vitscale.config import CheckpointError, Config
from vitscale.models import ViTConfig
from vitscale.weights.names import Layout
from vitscale.weights.plain import companion_files, plain_vit, project_form

SIZES: dict[str, Any] = {"image_size": 12, "patch_size": 4, "width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48, "num_channels": 3}


def model(**changes: Any) -> ViTConfig:
    return ViTConfig(**(SIZES | changes))


@pytest.mark.parametrize("layout", ["timm", "hf", "vit_jax", "big_vision"])
def test_a_plain_model_fits_everywhere(layout: Layout) -> None:
    assert plain_vit(model(gelu="tanh", layer_norm_eps=1e-5), layout=layout, where="run") == model(gelu="tanh", layer_norm_eps=1e-5)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"layout hf cannot hold this model: model\.pooling is mean, and it knows cls"):
        plain_vit(model(pooling="mean"), layout="hf", where="run")

    class SwinConfig(Config):
        kind: str = "swin"

    with pytest.raises(CheckpointError, match="this model is a Swin"):
        plain_vit(SwinConfig(), layout="timm", where="run")


def test_a_setting_that_no_layout_carries_is_refused() -> None:
    class Grown(ViTConfig):
        gated: bool = False

    assert plain_vit(Grown(**SIZES), layout="timm", where="run")
    with pytest.raises(CheckpointError, match=r"model\.gated is True, which it has no place for"):
        plain_vit(Grown(**SIZES, gated=True), layout="timm", where="run")


def test_googles_programs_know_one_gelu_and_one_epsilon() -> None:
    found = project_form(model(layer_norm_eps=1e-12), layout="big_vision")
    assert (found.gelu, found.layer_norm_eps) == ("tanh", 1e-6)
    assert project_form(model(), layout="timm") == model()


def test_companions_say_what_tensors_do_not() -> None:
    timm = companion_files(model(gelu="tanh"), layout="timm", num_classes=5)["config.json"]
    assert (timm["num_classes"], timm["model_args"]["act_layer"], timm["model_args"]["num_heads"]) == (5, "gelu_tanh", 4)
    files = companion_files(model(layer_norm_eps=1e-5), layout="hf", num_classes=5)
    assert (files["config.json"]["hidden_act"], files["config.json"]["layer_norm_eps"], len(files["config.json"]["id2label"])) == (
        "gelu",
        1e-5,
        5,
    )
    # transformers wants one number for each channel.
    assert files["preprocessor_config.json"]["image_mean"] == [0.5, 0.5, 0.5]
    assert companion_files(model(), layout="vit_jax", num_classes=5) == {}
