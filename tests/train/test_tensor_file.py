"""A file of tensors is the same whatever the size of the pieces, says how far it is, and is planned with what it takes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.random_run import stored_tensors, write_random_run
from vitscale.checkpoint.discover import resolve_checkpoint
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.models import ViTConfig
from vitscale.train import weight_files
from vitscale.train.tensor_file import library_of, plan_tensor_file
from vitscale.train.weight_files import StoredWeights, WeightFiles
from vitscale.weights.rules import Layout


def planned(run: Path, *, layout: Layout) -> WeightFiles:
    stored = write_random_run(run, gelu="tanh", layer_norm_eps=1e-6)
    assert isinstance(stored.model, ViTConfig)
    weights = StoredWeights(CheckpointReader(resolve_checkpoint(run)), stored=stored, model=stored.model, kind="weight")
    return plan_tensor_file(weights, stored=stored, layout=layout, model=stored.model, metadata={"step": "3"})


def test_pieces_of_any_size_make_the_same_file_and_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = planned(tmp_path / "run", layout="timm")
    reports: list[int] = []
    files.write(tmp_path / files.names[0], reports.append)
    monkeypatch.setattr(weight_files, "_CHUNK_ELEMENTS", 7)
    files.write(tmp_path / "small.safetensors", lambda _: None)

    whole = tmp_path / "model.safetensors"
    assert whole.read_bytes() == (tmp_path / "small.safetensors").read_bytes()
    assert reports == sorted(reports)
    assert files.num_bytes <= reports[-1] == whole.stat().st_size
    theirs, ours = load_file(whole), stored_tensors(tmp_path / "run")
    assert {name: tuple(value.shape) for name, value in theirs.items()} == files.shapes
    assert torch.equal(theirs["blocks.1.attn.qkv.weight"], ours["backbone.blocks.1.attn.qkv.weight"])


def test_npz_holds_what_is_planned_under_the_prefix(tmp_path: Path) -> None:
    files = planned(tmp_path / "run", layout="big_vision")
    reports: list[int] = []
    files.write(tmp_path / files.names[0], reports.append)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as theirs:
        assert {name.removeprefix("params/"): theirs[name].shape for name in theirs} == files.shapes
        assert all(name.startswith("params/") for name in theirs)
    assert reports[-1] == files.num_bytes
    foreign = files.foreign(tmp_path / "model.npz")
    assert foreign.shapes == files.shapes


def test_the_largest_tensor_decides_on_memory(tmp_path: Path) -> None:
    assert planned(tmp_path / "run", layout="timm").memory_bytes == 2 * 4 * 3 * 32 * 32  # fused queries, keys and values


def test_whose_models_load_a_layout() -> None:
    layouts: tuple[Layout, ...] = ("timm", "vit_jax", "hf_vit")
    assert [library_of(layout) for layout in layouts] == ["timm", "timm", "transformers"]
