"""Tables of the `vitscale checkpoint` commands."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitscale.checkpoint.describe import Description, ListedCheckpoint
from vitscale.config.progress import format_size

_WIDTH_OFF_A_TERMINAL = 160


def print_list(listed: Sequence[ListedCheckpoint], *, knows_policy: bool, stream: TextIO | None = None) -> None:
    """A row for each checkpoint folder, then the reason for each that is not whole."""
    table = Table("checkpoint", "state", "size", "samples", "written", "ranks", "ZeRO", "kept because")
    for entry in listed:
        why = ", ".join(entry.kept_because) or ("the next save deletes it" if knows_policy and entry.state == "whole" else "")
        table.add_row(
            Text(Path(entry.path).name),
            entry.state,
            format_size(entry.num_bytes),
            _shown(entry.samples, thousands=True),
            _shown(entry.created),
            _shown(entry.world_size),
            _shown(entry.zero_stage),
            Text(why),
        )
    console = _console(stream)
    console.print(table)
    for entry in listed:
        if entry.problem is not None:
            console.print(Text(f"{Path(entry.path).name}: {entry.problem}"), soft_wrap=True)


def print_description(description: Description, *, stream: TextIO | None = None) -> None:
    """What a checkpoint says of itself, then a row for each parameter."""
    console = _console(stream)
    facts = Table(show_header=False, box=None)
    for name, value in _facts(description):
        facts.add_row(name, Text(value))
    console.print(facts)
    table = Table("parameter", "shape", "dtype", "kept of it", "size")
    for tensor in description.tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        table.add_row(Text(tensor.name), shape, tensor.dtype, ", ".join(tensor.kinds), format_size(tensor.num_bytes))
    console.print(table)


def _console(stream: TextIO | None) -> Console:
    stream = stream or sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_OFF_A_TERMINAL, highlight=False)


def _shown(value: object, *, thousands: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if thousands else str(value)


def _facts(description: Description) -> Iterator[tuple[str, str]]:
    yield "checkpoint", description.path
    yield "step", f"{description.step:,} ({description.optimizer_steps:,} of the optimizer)"
    yield "samples", _shown(description.samples, thousands=True)
    yield "written", f"{description.created} by {description.world_size} ranks at ZeRO stage {description.zero_stage}"
    yield "format", f"version {description.format_version}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in sorted(description.versions.items())) or "-"
    yield "config hash", description.config_hash or "- (written before it was recorded)"
    schedule = description.schedule
    yield "schedule", ", ".join(f"{key} {value}" for key, value in schedule.items()) if schedule else "- (not recorded)"
    for key, value in description.data.items():
        yield f"data: {key}", str(value)
    yield "lost samples", f"{description.num_lost_samples:,}"
    yield "size", f"{format_size(description.num_bytes)} in {len(description.files)} files"
    yield "parameters", f"{description.num_parameters:,} in {len(description.tensors)} tensors"
