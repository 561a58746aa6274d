"""Streams: the safetensors library and numpy read what was written, and equal values give equal bytes."""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vitscale.weights.containers import write_npz, write_safetensors

VALUES = {"b": torch.randn(3, 5), "a": torch.randn(4), "scalar": torch.tensor(2.5)}


def test_safetensors_reads_what_was_streamed_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        write_safetensors(
            file.write,
            shapes={name: tuple(value.shape) for name, value in VALUES.items()},
            values=lambda name: VALUES[name].flatten().split(2),
            metadata={"format": "pt", "step": "7"},
        )
    loaded = load_file(path)
    assert loaded.keys() == VALUES.keys()
    assert all(torch.equal(loaded[name], value) for name, value in VALUES.items())
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "step": "7"}
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 8 == 0


def test_numpy_reads_views_in_any_order(tmp_path: Path) -> None:
    views = {"t": VALUES["b"].T, "p": torch.randn(2, 3, 4, 5).permute(2, 3, 1, 0), "scalar": VALUES["scalar"]}
    for name in ("first.npz", "second.npz"):
        write_npz(tmp_path / name, groups=[{"t": views["t"]}, {"p": views["p"], "scalar": views["scalar"]}], prefix="params/")
    with np.load(tmp_path / "first.npz", allow_pickle=False) as archive:
        assert archive.files == ["params/t", "params/p", "params/scalar"]
        assert all(np.array_equal(archive[f"params/{name}"], view.numpy()) for name, view in views.items())
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
