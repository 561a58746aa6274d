"""A run directory with one checkpoint of random weights, in which no value could hide an error: no zero head, no identity norm."""

import threading
from pathlib import Path
from typing import Any

import torch

from vitscale.checkpoint.commit import SaveContent, commit, prepare, write_part
from vitscale.checkpoint.discover import resolve_checkpoint
from vitscale.checkpoint.fragments import Fragment
from vitscale.checkpoint.layout import save_folder
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import dump_yaml
from vitscale.train.stored_model import StoredModel

SIZES: dict[str, Any] = {"image_size": 12, "patch_size": 4, "width": 32, "depth": 2, "num_heads": 4, "mlp_width": 64}


def write_random_run(root: Path, *, num_classes: int = 5, sizes: dict[str, Any] = SIZES, **settings: Any) -> StoredModel:
    """Write one and return its model; `num_classes` 0 has no head."""
    objective = {"kind": "supervised", "num_classes": num_classes} if num_classes else None
    stored = StoredModel.model_validate({"model": {"kind": "vit", **sizes, **settings}, "objective": objective})
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in stored.build().named_parameters()}
    generator = torch.Generator().manual_seed(0)
    values = {name: 0.3 * torch.randn(shape, generator=generator) + float("norm" in name) for name, shape in shapes.items()}
    fragments = [Fragment(name=name, kind="weight", shape=shapes[name], start=0, values=value.flatten()) for name, value in values.items()]
    partial = save_folder(root / "checkpoints", step=3)
    prepare(partial)
    part = write_part(partial, rank=0, fragments=fragments, given_up=threading.Event())
    sections = stored.model_dump(mode="json", exclude_none=not num_classes)
    content = SaveContent(step=3, optimizer_steps=3, zero_stage=0, state_text="{}\n", config_text=dump_yaml(sections))
    commit(partial, content=content, parts=[part], check_owner=lambda: None)
    return stored


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the newest checkpoint in a run directory."""
    reader = CheckpointReader(resolve_checkpoint(folder))
    return {name: reader.read_full(name) for name in reader.shapes()}
