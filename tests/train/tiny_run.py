"""A whole run that takes a second: a two-block ViT on 8-pixel images, and what tests ask of its directory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.packed import pack_images
from vitscale import api
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import StopRequested, apply_overrides, decode
from vitscale.run_config import RunConfig

NUM_SAMPLES = 96


def pack_tiny(root: Path, *, num_samples: int = NUM_SAMPLES) -> Path:
    """A packed data set of random images under `root`, made once."""
    folder = root / "shards"
    if not folder.exists():
        folder.mkdir(parents=True)
        pack_images(folder, num_samples=num_samples, samples_per_shard=40, size=8)
    return folder


TINY_ORDER = {"lanes": 4, "block": 4, "window": 2}


def tiny_values(root: Path) -> dict[str, Any]:
    """The configuration as plain values: 6 steps of 16 samples, logged at every step, on data below `root`."""
    return {
        "name": "tiny",
        "output": str(root / "runs"),
        "model": {"kind": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, "width": 16, "depth": 2, "num_heads": 2},
        "objective": {"kind": "supervised", "num_classes": 10, "augment": {"crop": "pad", "padding": 1, "flip": True}},
        "data": {"kind": "shards", "path": str(pack_tiny(root)), "num_workers": 0, "log_samples": True, **TINY_ORDER},
        "optim": {"lr": 1e-2, "weight_decay": 0.05, "ema_decay": 0.9, "schedule": {"kind": "cosine", "warmup_samples": 32}},
        "train": {"num_samples": 96, "global_batch": 16, "log_every_steps": 1, "log_images": 4},
        "checkpoint": {"every_steps": 2},
        "parallel": {"device": "cpu"},
    }


def tiny_config(root: Path, *overrides: str) -> RunConfig:
    """`tiny_values` with overrides, decoded."""
    return decode(RunConfig, values=apply_overrides(tiny_values(root), overrides=overrides), source="tiny")


def stopped(root: Path, *overrides: str, step: int = 3) -> RunConfig:
    """A run that was stopped after a step."""
    config = tiny_config(root, *overrides)
    with pytest.raises(StopRequested):
        api.train(config, stop_at_step=step)
    return config


def losses(run_dir: Path) -> dict[int, float]:
    """Logged loss by step."""
    return {record["step"]: record["loss"] for record in read_lines(run_dir / "metrics.jsonl") if "loss" in record}


def sample_ids(run_dir: Path) -> dict[int, list[int]]:
    """Sample ids of every global batch by step: the ranks' slices one after the other."""
    batches: dict[int, list[int]] = {}
    for path in sorted((run_dir / "samples").glob("rank-*.jsonl")):
        for record in read_lines(path):
            batches.setdefault(record["step"], []).extend(record["ids"])
    return batches


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The ledger's events of one kind."""
    return [record for record in read_lines(run_dir / "events.jsonl") if record["event"] == kind]


def checkpoint_tensors(run_dir: Path, *, step: int) -> dict[tuple[str, str], torch.Tensor]:
    """Every tensor of a checkpoint, whole, by name and kind."""
    reader = CheckpointReader(run_dir / "checkpoints" / f"step-{step:08d}")
    return {(name, kind): reader.read_full(name, kind=kind) for kind in sorted(reader.kinds) for name in reader.shapes(kind)}


def assert_equal_tensors(ours: dict[tuple[str, str], torch.Tensor], theirs: dict[tuple[str, str], torch.Tensor]) -> None:
    """Bitwise equality of two checkpoints, naming the tensors that differ."""
    assert set(ours) == set(theirs)
    different = [key for key, value in ours.items() if not torch.equal(value, theirs[key])]
    assert not different, f"{len(different)} of {len(ours)} tensors differ, for example {different[:3]}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
