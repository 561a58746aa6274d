"""Recognition: wrappers of names, the layout, what is set aside, and what architecture foreign names give away."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.weights.foreign import google_arrays, stacked, torch_state, write_npz, write_timm
from vitscale.config import CheckpointError
from vitscale.weights.recognise import Recognised, explain_names, recognise
from vitscale.weights.sources import open_source


def safetensors(path: Path, state: dict[str, Tensor], *, drop: tuple[str, ...] = ()) -> Recognised:
    save_file(state, path)
    return recognise(open_source(path, files=(path,), container="safetensors"), drop=drop)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module.backbone.", "model."])
def test_what_stands_before_every_name_is_passed_over(tmp_path: Path, wrapper: str) -> None:
    state = torch_state()
    found = safetensors(tmp_path / "w.safetensors", {f"{wrapper}{name}": value for name, value in state.items()})
    assert found.shapes == {name: tuple(value.shape) for name, value in state.items()}
    assert torch.equal(found.read("head.weight"), state["head.weight"])
    assert found.set_aside == ()


def test_patterns_set_names_aside(tmp_path: Path) -> None:
    state = torch_state() | {"mask_token": torch.zeros(2), "aux.weight": torch.zeros(2)}
    found = safetensors(tmp_path / "w.safetensors", state, drop=("aux.*",))
    assert set(found.set_aside) == {"mask_token", "aux.weight"}
    assert not set(found.set_aside) & set(found.shapes)


def test_only_the_image_models_names_of_a_training_state_are_taken(tmp_path: Path) -> None:
    arrays = google_arrays(big_vision=True)
    path = write_npz(
        tmp_path / "w.npz", {f"params/img/{name}": value for name, value in arrays.items()} | {"params/t": arrays["head/bias"]}
    )
    found = recognise(open_source(path, files=(path,), container="npz"))
    assert set(found.shapes) == set(arrays)
    assert found.set_aside == ("params/t",)


def test_a_stack_is_read_block_by_block(tmp_path: Path) -> None:
    arrays = google_arrays(big_vision=True)
    path = write_npz(tmp_path / "w.npz", stacked(arrays))
    found = recognise(open_source(path, files=(path,), container="npz"))
    assert found.shapes == {name: value.shape for name, value in arrays.items()}
    for name in ("Transformer/encoderblock_1/LayerNorm_0/bias", "Transformer/encoderblock_0/LayerNorm_1/scale"):
        assert torch.equal(found.read(name), torch.from_numpy(arrays[name]))


def test_other_architectures_are_named(tmp_path: Path) -> None:
    state = {"layers.0.blocks.0.attn.rel_pos_h": torch.zeros(9, 2)}
    with pytest.raises(CheckpointError, match=r"none of vit_jax's.*decomposed relative positions, such as SAM"):
        safetensors(tmp_path / "w.safetensors", state)
    assert (
        explain_names(["visual.trunk.weight", "rope.freqs"])
        == " (it looks like a tower of CLIP that is no plain ViT and a model with mixed rotary positions)"
    )
    assert explain_names(torch_state()) == ""
    assert explain_names(google_arrays(pre_logits=8)) == ""


def test_a_settings_file_with_a_value_of_another_type_is_refused(tmp_path: Path) -> None:
    write_timm(tmp_path / "timm", torch_state(), model_args={"num_heads": 4})
    (tmp_path / "timm" / "config.json").write_text('{"model_args": [1]}')
    source = open_source(tmp_path / "timm", files=(tmp_path / "timm" / "model.safetensors",), container="safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json holds a value of another type than its project writes"):
        recognise(source)
