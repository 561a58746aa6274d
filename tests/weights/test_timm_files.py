"""timm's files: what the shapes tell, what its config.json tells, and what is assumed aloud."""

from typing import Any

import torch

from tests.weights.foreign import torch_state
from vitscale.weights.family import Described
from vitscale.weights.timm_files import TIMM


def described(state: dict[str, torch.Tensor], **config: Any) -> Described:
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return TIMM.describe(shapes, settings={"config.json": config} if config else {}, where="w")


def test_sizes_come_from_shapes_and_the_rest_from_the_config() -> None:
    found = described(
        torch_state(), model_args={"num_heads": 4, "act_layer": "gelu_tanh"}, pretrained_cfg={"mean": [0, 0, 0], "std": [1, 1, 1]}
    )
    assert found.model | {"num_heads": 4, "gelu": "tanh", "image_mean": [0.0] * 3, "width": 32, "depth": 2, "mlp_width": 48} == found.model
    assert (found.model["image_size"], found.model["pooling"], found.head) == (12, "cls", {"num_classes": 5})


def test_what_nothing_tells_is_left_open_or_assumed_aloud() -> None:
    found = described(torch_state())
    assert "num_heads" not in found.model
    assert any("GELU is exact" in sentence for sentence in found.assumed)
    assert any("[-1, 1]" in sentence for sentence in found.assumed)


def test_the_heads_of_a_named_width_are_its_own() -> None:
    state = {
        "patch_embed.proj.weight": torch.empty(768, 3, 16, 16, device="meta"),
        "pos_embed": torch.empty(1, 197, 768, device="meta"),
        "cls_token": torch.empty(1, 1, 768, device="meta"),
        "blocks.0.mlp.fc1.weight": torch.empty(3072, 768, device="meta"),
    }
    found = described(state)
    assert (found.model["num_heads"], found.model["image_size"], found.head) == (12, 224, None)
    assert any(sentence.startswith("12 attention heads") for sentence in found.assumed)
    # No row for the class token, as in DeiT III.
    assert described(state | {"pos_embed": torch.empty(1, 196, 768, device="meta")}).class_position == "none"


def test_mae_is_known_by_its_decoder() -> None:
    found = described(torch_state() | {"mask_token": torch.zeros(1)})
    assert found.positions == "mae"
    assert found.model["image_std"] == [0.229, 0.224, 0.225]
