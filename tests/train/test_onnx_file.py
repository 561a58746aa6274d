"""Graphs compute what the model computes, for any number of images, and what stands in the way of one is told."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.onnx.errors import OnnxExporterError
from typer.testing import CliRunner

from tests import family_settings
from tests.train.random_run import SIZES, stored_tensors, write_random_run
from vitscale import api
from vitscale.cli import app
from vitscale.config import CheckpointError, UsageError
from vitscale.train import onnx_file
from vitscale.train.stored_model import StoredModel, streamed_output
from vitscale.weights.installed import onnxruntime_from_file

STATISTICS: dict[str, Any] = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
SWIN: dict[str, Any] = {
    "kind": "swin",
    "image_size": 16,
    "patch_size": 2,
    "width": 16,
    "depths": [2],
    "num_heads": [2],
    "window_size": 4,
}


def assert_same_outputs(stored: StoredModel, *, run: Path, folder: Path, name: str) -> None:
    """The written graph, run as the preprocessor_config.json beside it says, against the model, also with one image."""
    side = stored.model.image_size
    images = np.random.default_rng(1).integers(0, 256, size=(5, 3, side, side), dtype=np.uint8)
    tensors = stored_tensors(run)
    ours = streamed_output(stored, read=tensors.__getitem__, image_BCHW=torch.from_numpy(images)).numpy()
    told = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (np.array(told[key], dtype=np.float32)[:, None, None] for key in ("image_mean", "image_std"))
    pixels = ((images * np.float32(told["rescale_factor"]) - mean) / std).astype(np.float32)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for count in (1, 5):
        (theirs,) = session.run([name], {"pixel_values": pixels[:count]})
        assert theirs.shape == ours[:count].shape
        assert np.abs(theirs - ours[:count]).max() <= 1e-5 * np.abs(ours).max()


def test_a_graph_of_a_model_that_no_other_layout_holds(tmp_path: Path) -> None:
    odd = {"depth": 1, "pooling": "map", "num_registers": 2, "rotary": {"kind": "mixed"}, "parallel": True}
    stored = write_random_run(tmp_path / "run", sizes=SIZES | odd | STATISTICS)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--layout", "onnx"])
    assert done.exit_code == 0, done.output
    assert "against onnxruntime: max |delta logits| = " in done.output
    folder = tmp_path / "run" / "export" / "onnx"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.onnx", "preprocessor_config.json"]
    assert_same_outputs(stored, run=tmp_path / "run", folder=folder, name="logits")
    metadata = onnxruntime.InferenceSession(str(folder / "model.onnx")).get_modelmeta().custom_metadata_map
    assert (metadata["step"], metadata["weights"]) == ("3", "weight")
    told = (folder / "model.onnx").read_bytes()
    assert not [where for where in (torch, onnx_file) if str(Path(str(where.__file__)).parent).encode() in told], "paths of this machine"
    card = (folder / "README.md").read_text()
    assert "- pixel_values: float32 (batch, 3, 12, 12)" in card
    assert "mean 0.4, 0.5, 0.6 and deviation 0.2, 0.25, 0.3" in card
    assert "- logits: float32 (batch, 5)" in card


def test_features_of_windows_with_weights_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_MAX_FILE_BYTES", 1000)
    stored = write_random_run(tmp_path / "run", num_classes=0, sizes=SWIN)
    exported = api.export(tmp_path / "run", layout="onnx")
    weight_bytes = sum(4 * value.numel() for value in stored_tensors(tmp_path / "run").values())
    assert (exported.folder / "model.onnx.data").stat().st_size > weight_bytes / 2
    assert exported.num_bytes > weight_bytes
    assert_same_outputs(stored, run=tmp_path / "run", folder=exported.folder, name="features")

    monkeypatch.undo()
    plan = api.plan_export(tmp_path / "run", layout="onnx")
    assert plan.replaces
    assert api.export(tmp_path / "run", layout="onnx").folder == exported.folder
    assert {path.name for path in exported.folder.iterdir()} == set(plan.files) == {"README.md", "model.onnx", "preprocessor_config.json"}


FAMILIES: dict[str, dict[str, Any]] = {
    "DINOv3": family_settings.DINO_V3,
    "images of any shape": {"naflex": {"sequence_lengths": (9,)}},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(tmp_path: Path, name: str) -> None:
    stored = write_random_run(tmp_path / "run", sizes=SIZES | STATISTICS | {"depth": 1} | FAMILIES[name])
    exported = api.export(tmp_path / "run", layout="onnx")
    (comparison,) = exported.comparisons
    assert comparison.within(1e-5)
    assert comparison.skipped is None
    assert_same_outputs(stored, run=tmp_path / "run", folder=exported.folder, name="logits")


def test_what_is_missing_for_an_export_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"the whole model in 4 copies, of which a graph is made, takes .*; give at least 1MiB"):
        api.export(tmp_path / "run", layout="onnx", max_memory_bytes=1000)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UsageError, match=r"needs onnxscript, which is not installed: pip install 'vitscale\[onnx\]'"):
        api.export(tmp_path / "run", layout="onnx")
    assert not (tmp_path / "run" / "export").exists()


def test_what_onnxruntime_cannot_run_is_an_error_as_of_other_libraries(tmp_path: Path) -> None:
    program = torch.onnx.export(torch.nn.Identity(), (torch.zeros(1, 2),), input_names=["images"], dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "other.onnx")
    with pytest.raises(RuntimeError, match="images"):
        onnxruntime_from_file(tmp_path / "other.onnx")(torch.zeros(1, 3))


def test_what_torch_cannot_express_and_a_graph_that_differs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_run(tmp_path / "run")

    def failing(*_: Any, **__: Any) -> None:
        raise OnnxExporterError("advice") from ValueError("no operator aten.sort. See the stack trace for more information.\nmore")

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(CheckpointError, match=r"makes no graph of this model: ValueError: no operator aten\.sort; take another layout"):
        api.export(tmp_path / "run", layout="onnx")

    monkeypatch.setattr(onnx_file, "_write", lambda path, _report, **_: path.write_bytes(b"no graph"))
    with pytest.raises(CheckpointError, match="onnxruntime cannot load these weights"):
        api.export(tmp_path / "run", layout="onnx")
    monkeypatch.setattr(onnx_file, "onnxruntime_from_file", lambda _: lambda images: torch.ones(len(images), 5))
    with pytest.raises(CheckpointError, match=r"against onnxruntime: max .* torch's exporter, or onnxruntime, makes another function"):
        api.export(tmp_path / "run", layout="onnx")
    assert not (tmp_path / "run" / "export" / "onnx").exists()
