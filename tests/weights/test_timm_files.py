"""timm's files: what the shapes tell, what its config.json tells, and what is assumed aloud."""

from typing import Any

import torch

from tests.weights.foreign import torch_state
from vitscale.weights.family import Described
from vitscale.weights.timm_files import TIMM


def described(state: dict[str, torch.Tensor], **config: Any) -> Described:
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    shapes = {name: entry.shape for name, entry in TIMM.entries(shapes).items()}
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
        "blocks.0.mlp.fc2.weight": torch.empty(768, 3072, device="meta"),
    }
    found = described(state)
    assert (found.model["num_heads"], found.model["image_size"], found.head) == (12, 224, None)
    assert any(sentence.startswith("12 attention heads") for sentence in found.assumed)
    # No row for the class token, as in DeiT III.
    assert described(state | {"pos_embed": torch.empty(1, 196, 768, device="meta")}).class_row is False


def test_mae_is_known_by_its_decoder() -> None:
    found = described(torch_state() | {"mask_token": torch.zeros(1, 1, 8)})
    assert found.positions == "mae"
    assert found.model["image_std"] == [0.229, 0.224, 0.225]


def test_names_of_metas_own_files_are_read_as_timms() -> None:
    """facebookresearch/dinov2: register tokens, gated MLPs, blocks in chunks; the class token has a row, registers have none."""
    names = {"cls_token": (1, 1, 8), "register_tokens": (1, 4, 8), "mask_token": (1, 8), "pos_embed": (1, 10, 8)}
    names |= {"patch_embed.proj.weight": (8, 3, 14, 14)}
    for chunk, block in ((0, 0), (1, 1)):
        at = f"blocks.{chunk}.{block}"
        names |= {f"{at}.norm1.weight": (8,), f"{at}.norm1.bias": (8,), f"{at}.mlp.w12.weight": (32, 8), f"{at}.mlp.w3.weight": (8, 16)}
        names |= {f"{at}.attn.qkv.bias": (24,), f"{at}.ls1.gamma": (8,)}
    found = described({name: torch.empty(shape, device="meta") for name, shape in names.items()})
    expected = {"depth": 2, "num_registers": 4, "mlp": "swiglu", "mlp_width": 16, "image_size": 42, "prefix_positions": True}
    assert found.model | expected == found.model
    assert (found.positions, found.class_row, found.model["image_mean"]) == ("dinov2_reg", True, [0.485, 0.456, 0.406])
