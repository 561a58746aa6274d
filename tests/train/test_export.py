"""Exported files load into timm and transformers as they are and give our logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from transformers import ViTConfig, ViTForImageClassification

from tests.train.tiny_run import tiny_config
from vitscale import api
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import CheckpointError, ConfigError
from vitscale.run_config import RunConfig
from vitscale.train.evaluate import load_objective

IMAGES = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(root: Path, *overrides: str) -> RunConfig:
    config = tiny_config(root, "train.num_samples=32", *overrides)
    api.train(config)
    return config


def our_logits(config: RunConfig, *, kind: str) -> torch.Tensor:
    reader = CheckpointReader(config.run_dir / "checkpoints" / "step-00000002")
    objective = load_objective(config, reader=reader, kind=kind, device=torch.device("cpu"), dtype=torch.float32)  # type: ignore[arg-type]
    with torch.no_grad():
        return objective.predict({"image": IMAGES})


@pytest.mark.parametrize(("positions", "pooling"), [("learned", "cls"), ("sincos2d_mae", "cls"), ("learned", "mean")])
def test_timm_loads_the_file_and_gives_our_logits(tmp_path: Path, positions: str, pooling: str) -> None:
    config = trained(tmp_path, f"model.positions={positions}", f"model.pooling={pooling}")
    path = api.export(config, layout="timm")
    assert path == config.run_dir / "export" / "timm.safetensors"
    shape = config.model.shape
    model = VisionTransformer(
        img_size=8,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.num_heads,
        class_token=pooling == "cls",
        global_pool="token" if pooling == "cls" else "avg",
        fc_norm=False,
    )
    model.load_state_dict(load_file(path), strict=True)
    with torch.no_grad():
        theirs = model.eval()((IMAGES.float() / 255 - 0.5) / 0.5)
    assert torch.allclose(theirs, our_logits(config, kind="weight"), atol=1e-6)


def test_transformers_loads_the_moving_average(tmp_path: Path) -> None:
    config = trained(tmp_path)
    path = api.export(config, layout="hf", weights="ema", output=tmp_path / "elsewhere" / "model.safetensors")
    settings = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=4, num_channels=1,
        num_labels=10, layer_norm_eps=1e-6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    settings.save_pretrained(path.parent)
    model = ViTForImageClassification.from_pretrained(path.parent).eval()
    with torch.no_grad():
        theirs = model(pixel_values=(IMAGES.float() / 255 - 0.5) / 0.5).logits
    assert torch.allclose(theirs, our_logits(config, kind="ema"), atol=1e-6)
    assert not torch.allclose(theirs, our_logits(config, kind="weight"), atol=1e-6)


def test_the_metadata_say_what_the_tensors_do_not(tmp_path: Path) -> None:
    config = trained(tmp_path)
    with safe_open(api.export(config, layout="timm"), "pt") as file:
        metadata = file.metadata()
    assert metadata["step"] == "2"
    model = json.loads(metadata["model"])
    assert (model["width"], model["mlp_width"], model["gelu"], model["image_mean"]) == (16, 64, "exact", [0.5])
    assert model["resampling"] == "timm"


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    config = trained(tmp_path, "objective.pre_logits=8")
    with pytest.raises(CheckpointError, match=r"head\.pre_logits"):
        api.export(config, layout="timm")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        api.export(tiny_config(tmp_path, "name=never"), layout="timm")
    other = trained(tmp_path, "name=other")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        api.export(other, layout="timm", output=tmp_path / "file" / "x.safetensors")
