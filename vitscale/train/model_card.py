"""The README of exported weights: what they are, what they were trained on, how well they do, and what that took."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import UsageError
from vitscale.train.equality import Comparison
from vitscale.train.goodput_report import read_goodput
from vitscale.train.goodput_text import duration
from vitscale.train.run_dir import RunDirectory
from vitscale.weights.rules import Layout

SIGNATURE = "written by vitscale"
"""What every card says."""

_LOADING: dict[str, str] = {
    "onnx": 'onnxruntime.InferenceSession("model.onnx").run(None, {"pixel_values": images})[0]',
    "timm": 'timm.create_model("local-dir:FOLDER", pretrained=True)',
    "hf": 'transformers.AutoModelForImageClassification.from_pretrained("FOLDER"), or AutoModel without a classifier',
    "vit_jax": 'numpy.load("model.npz"), with the names of google-research/vision_transformer',
    "big_vision": 'numpy.load("model.npz"), with the names of google-research/big_vision',
}
_KINDS = {"weight": "the trained weights", "ema": "the moving average of the weights"}


def model_card(
    reader: CheckpointReader,
    *,
    kind: Kind,
    layout: Layout,
    comparisons: Sequence[Comparison],
    notes: Sequence[str] = (),
    interface: Sequence[str] = (),
) -> str:
    """The text, in Markdown; `interface` is what goes in and comes out. What is not known, such as the figures of a run whose logs
    are elsewhere, is left out."""
    folder = reader.path.parent.parent if reader.path.parent.name == "checkpoints" else None
    lines = [f"# {folder.name if folder else reader.path.name}", ""]
    lines += [f"A vision transformer, {_KINDS[kind]} after step {reader.manifest.step}, {SIGNATURE}.", ""]
    lines += ["    " + _LOADING[layout if layout in _LOADING else layout.partition("_")[0]], ""]
    lines += _section("Input and output", [f"- {line}" for line in interface])
    lines += ["## Compared", "", *(f"- {comparison.describe()}" for comparison in comparisons), ""]
    lines += _section(f"Otherwise in the programs of {layout}", [f"- {note}" for note in notes])
    lines += ["## Data", "", *_data(reader.state), ""]
    if folder is not None:
        lines += _section("Figures", _figures(RunDirectory(root=folder), step=reader.manifest.step))
        lines += _section("Cost", _cost(folder, num_devices=reader.manifest.world_size))
    lines += ["## Configuration", "", "```yaml", reader.config_text.rstrip(), "```", ""]
    return "\n".join(lines)


def _section(title: str, rows: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *rows, ""] if rows else []


def _data(state: Mapping[str, Any]) -> Iterator[str]:
    imported = state.get("imported")
    if imported is not None:
        yield f"- imported from {imported['source']}, sha256 {', '.join(imported['sha256'].values())}"
    cursor = state.get("cursor", {})
    sets = cursor.get("mixture") or ([cursor] if "manifest_sha256" in cursor else [])
    for entry in sets:
        yield f"- {entry.get('name', 'shards')}: manifest sha256 {entry.get('manifest_sha256')}"
    if "samples" in state:
        yield f"- samples seen: {state['samples']:,}"


def _figures(directory: RunDirectory, *, step: int) -> list[str]:
    """The newest value of each evaluation, and of the loss, up to the step."""
    values: dict[str, tuple[int, float]] = {}
    if directory.metrics.is_file():
        for line in directory.metrics.read_text(encoding="utf-8").splitlines():
            record = _parsed(line)
            if int(record.get("step", step + 1)) <= step:
                found = {key: value for key, value in record.items() if key == "loss" or key.startswith("eval/")}
                values |= {key: (int(record["step"]), value) for key, value in found.items()}
    return [f"- {key}: {value:.6g} (step {at})" for key, (at, value) in sorted(values.items())]


def _parsed(line: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:  # the torn last line of a killed process
        return {}
    return record


def _cost(run_dir: Path, *, num_devices: int) -> list[str]:
    try:
        report = read_goodput(run_dir)
    except UsageError:  # no ledger lies with the checkpoint
        return []
    hours = report.wall_seconds / 3600
    return [
        f"- wall time: {duration(report.wall_seconds)}, {report.goodput:.1%} of it in training steps",
        f"- device-hours: {hours * num_devices:.3g}, on the {num_devices} processes that wrote the checkpoint",
    ]
