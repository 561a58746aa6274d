"""Exported folders load into timm and transformers by their own means and give our logits; exports of sharded checkpoints stay small."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import ViTForImageClassification

from tests.train.tiny_run import checkpoint_tensors, tiny_config
from vitscale import api
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import CheckpointError, ConfigError
from vitscale.run_config import RunConfig
from vitscale.train.evaluate import load_objective

IMAGES = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NORMALISED = (IMAGES.float() / 255 - 0.5) / 0.5
TANH = ("model.gelu=tanh",)


def trained(root: Path, *overrides: str) -> RunConfig:
    config = tiny_config(root, "train.num_samples=32", *overrides)
    api.train(config)
    return config


def our_logits(config: RunConfig, *, kind: str) -> torch.Tensor:
    reader = CheckpointReader(config.run_dir / "checkpoints" / "step-00000002")
    objective = load_objective(config, reader=reader, kind=kind, device=torch.device("cpu"), dtype=torch.float32)  # type: ignore[arg-type]
    with torch.no_grad():
        return objective.predict({"image": IMAGES})


@pytest.mark.parametrize(("positions", "pooling"), [("learned", "cls"), ("sincos2d_mae", "mean")])
def test_timm_creates_the_model_from_the_folder_and_gives_our_logits(tmp_path: Path, positions: str, pooling: str) -> None:
    config = trained(tmp_path, f"model.positions={positions}", f"model.pooling={pooling}", *TANH)
    exported = api.export(config.run_dir, layout="timm")
    assert exported.folder == config.run_dir / "export" / "timm"
    model = timm.create_model(f"local-dir:{exported.folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(model(NORMALISED), our_logits(config, kind="weight"), atol=1e-6)
    assert {comparison.against: comparison.skipped for comparison in exported.comparisons} == {"the formulas of timm": None, "timm": None}
    assert max(comparison.max_abs_delta for comparison in exported.comparisons) <= 1e-6


def test_transformers_loads_the_moving_average(tmp_path: Path) -> None:
    config = trained(tmp_path)
    exported = api.export(config.run_dir, layout="hf", weights="ema", output=tmp_path / "elsewhere" / "hf")
    model = ViTForImageClassification.from_pretrained(exported.folder).eval()
    with torch.no_grad():
        theirs = model(pixel_values=NORMALISED).logits
    assert torch.allclose(theirs, our_logits(config, kind="ema"), atol=1e-6)
    assert not torch.allclose(theirs, our_logits(config, kind="weight"), atol=1e-6)
    assert max(comparison.max_abs_delta for comparison in exported.comparisons) <= 1e-6


@pytest.mark.parametrize(("layout", "pooling"), [("vit_jax", "cls"), ("big_vision", "mean")])
def test_google_files_of_a_run(tmp_path: Path, layout: str, pooling: str) -> None:
    config = trained(tmp_path, f"model.pooling={pooling}", *TANH)
    exported = api.export(config.run_dir, layout=layout)  # type: ignore[arg-type]
    assert [comparison.skipped for comparison in exported.comparisons] == [None, None]
    assert max(comparison.max_abs_delta for comparison in exported.comparisons) <= 1e-6
    stored = {name: value for (name, kind), value in checkpoint_tensors(config.run_dir, step=2).items() if kind == "weight"}
    with np.load(exported.folder / "model.npz", allow_pickle=False) as archive:
        prefix = "params/" if layout == "big_vision" else ""
        assert np.array_equal(archive[f"{prefix}head/kernel"], stored["head.fc.weight"].numpy().T)
        kernel = archive[f"{prefix}embedding/kernel"]
    assert np.array_equal(kernel.transpose(3, 2, 0, 1).reshape(16, -1), stored["backbone.patch_embed.weight"].numpy())


def test_an_exact_gelu_is_no_google_model(tmp_path: Path) -> None:
    config = trained(tmp_path)
    with pytest.raises(CheckpointError, match=r"gives other outputs .*model\.gelu is always tanh, and here it is exact"):
        api.export(config.run_dir, layout="vit_jax", tolerance=1e-9)
    assert not (config.run_dir / "export" / "vit_jax").exists()
    exported = api.export(config.run_dir, layout="vit_jax", tolerance=1.0)
    assert exported.num_tensors > 30
    assert exported.notes == ("model.gelu is always tanh, and here it is exact",)
    assert exported.notes[0] in (exported.folder / "README.md").read_text()


def test_the_metadata_say_what_the_tensors_do_not(tmp_path: Path) -> None:
    config = trained(tmp_path)
    with safe_open(api.export(config.run_dir, layout="timm").folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["step"] == "2"
    model = json.loads(metadata["model"])
    assert (model["width"], model["mlp_width"], model["gelu"], model["image_mean"]) == (16, 64, "exact", [0.5])
    assert model["resampling"] == "timm"


def test_an_export_can_be_made_again_and_replaces_the_older_one(tmp_path: Path) -> None:
    config = trained(tmp_path)
    first = load_file(api.export(config.run_dir, layout="timm").folder / "model.safetensors")
    second = load_file(api.export(config.run_dir, layout="timm", weights="ema").folder / "model.safetensors")
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert sorted(path.name for path in (config.run_dir / "export" / "timm").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    config = trained(tmp_path, "objective.pre_logits=8")
    with pytest.raises(CheckpointError, match=r"objective\.pre_logits"):
        api.export(config.run_dir, layout="timm")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        api.export(tmp_path / "never", layout="timm")
    other = trained(tmp_path, "name=other")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        api.export(other.run_dir, layout="timm", output=tmp_path / "file" / "x")
    with pytest.raises(CheckpointError, match="--max-memory"):
        api.export(other.run_dir, layout="timm", max_memory_bytes=1000)


@pytest.mark.dist
def test_a_large_sharded_checkpoint_needs_little_memory(tmp_path: Path) -> None:
    """The process grows by less than the weights, with the program's own buffers: 12 blocks of width 512 in four parts are 144 MiB."""
    script = Path(__file__).with_name("export_memory.py")
    done = subprocess.run([sys.executable, script, str(tmp_path / "run"), "12"], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["num_bytes"] > 140 << 20
    assert figures["peak_bytes"] - figures["bytes_before"] < 0.75 * figures["num_bytes"], "44 to 86 MiB were seen"
