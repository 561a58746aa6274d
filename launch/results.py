"""What came out of a sweep: read from the runs' own records, shown as a table, written as CSV and Markdown."""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vitscale.run_config import dump_run_config
from vitscale.train.run_dir import replace_text

from .sweep import Sweep, Trial, Value

# Beside the run's own records: the configuration, as it was asked for, that the run directory holds the finished run of.
_FINISHED_NAME = "trial.yaml"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended: the metric's last value, or why there is none."""

    name: str
    values: Mapping[str, Value]
    metric: float | None
    error: str | None


def is_finished(trial: Trial) -> bool:
    """Whether the trial's run directory holds this very run, finished."""
    try:
        return (trial.config.run_dir / _FINISHED_NAME).read_text(encoding="utf-8") == dump_run_config(trial.config)
    except FileNotFoundError:
        return False


def mark_finished(run_dir: Path, *, config_text: str) -> None:
    """Remember that `run_dir` holds the finished run of this configuration (as `dump_run_config` writes it)."""
    replace_text(run_dir / _FINISHED_NAME, config_text)


def trial_result(trial: Trial, *, metric: str, error: str | None = None) -> TrialResult:
    """The result of a trial that has ended, from its metrics.jsonl; `error` is what ended it early."""
    value = None if error else read_metric(trial.config.run_dir / "metrics.jsonl", metric=metric)
    if value is None and error is None:
        error = f"the run wrote no {metric} into its metrics.jsonl"
    return TrialResult(name=trial.name, values=trial.values, metric=value, error=error)


def read_metric(path: Path, *, metric: str) -> float | None:
    """The last value of `metric` in a metrics.jsonl; None where there is none."""
    if not path.exists():
        return None
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    values = [record[metric] for record in records if metric in record]
    return float(values[-1]) if values else None


def best_result(results: Sequence[TrialResult], *, best: str) -> TrialResult | None:
    """The trial with the best value, the first of equals; None when all failed."""
    done = [result for result in results if result.metric is not None]
    if not done:
        return None
    sign = 1 if best == "max" else -1
    return max(done, key=lambda result: sign * (result.metric or 0.0))


def write_results(sweep: Sweep, results: Sequence[TrialResult]) -> None:
    """Write results.csv and results.md into the sweep's folder."""
    replace_text(sweep.folder / "results.csv", results_csv(sweep, results))
    replace_text(sweep.folder / "results.md", results_markdown(sweep, results))


def results_csv(sweep: Sweep, results: Sequence[TrialResult]) -> str:
    """The results for programs: grid keys, metric and error as columns."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", *sweep.config.grid, sweep.config.metric, "error"])
    for result in results:
        value = "" if result.metric is None else repr(result.metric)
        writer.writerow([result.name, *result.values.values(), value, result.error or ""])
    return stream.getvalue()


def results_markdown(sweep: Sweep, results: Sequence[TrialResult]) -> str:
    """The results as a Markdown table, the best in bold."""
    header, *rows = _rows(sweep, results)
    best = best_result(results, best=sweep.config.best)
    lines = [f"# {sweep.config.name}", "", _markdown_row(header), _markdown_row(["---"] * len(header))]
    for row, result in zip(rows, results, strict=True):
        lines.append(_markdown_row([f"**{cell}**" if result is best and cell else cell for cell in row]))
    return "\n".join(lines) + "\n"


def print_results(sweep: Sweep, results: Sequence[TrialResult]) -> None:
    """The table on the console: drawn on a terminal, aligned plain text elsewhere."""
    header, *rows = _rows(sweep, results)
    best = best_result(results, best=sweep.config.best)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    if console.is_terminal:
        table = Table(*header)
        for row, result in zip(rows, results, strict=True):
            table.add_row(*row, style="bold" if result is best else None)
        console.print(table, markup=False)
    else:
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        for row in (header, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if best is not None:
        print(f"best: {best.name}, {sweep.config.metric} {best.metric:.4f}")


def _rows(sweep: Sweep, results: Sequence[TrialResult]) -> list[list[str]]:
    """Header and one row per result; the column of errors only where there are any."""
    failed = any(result.error for result in results)
    rows = [[*sweep.config.grid, sweep.config.metric, *(["error"] if failed else [])]]
    for result in results:
        value = "-" if result.metric is None else f"{result.metric:.4f}"
        error = " ".join((result.error or "").split())
        rows.append([*(str(cell) for cell in result.values.values()), value, *([error] if failed else [])])
    return rows


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
