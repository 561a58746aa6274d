"""Results of a sweep: read from the runs, compared, written."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.launch.test_sweep import write_sweep
from vitscale.run_config import dump_run_config
from vitscale_launch.results import (
    TrialResult,
    best_result,
    is_finished,
    mark_finished,
    print_results,
    read_metric,
    results_csv,
    results_markdown,
    trial_result,
    write_results,
)
from vitscale_launch.sweep import Sweep, load_sweep

METRIC = "eval/test/top1"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return load_sweep(write_sweep(tmp_path, grid={"model.image_size": [8, 12, 16]}, plot={"x": "model.image_size"}))


def results_of(sweep: Sweep) -> list[TrialResult]:
    values: list[tuple[float | None, str | None]] = [(0.5, None), (0.75, None), (None, "the data | are\ngone")]
    return [
        TrialResult(name=trial.name, values=trial.values, metric=metric, error=error)
        for trial, (metric, error) in zip(sweep.trials, values, strict=True)
    ]


def write_metrics(run_dir: Path, *values: float) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    records = [{"step": 1, "loss": 2.0}, *({"step": step, METRIC: value} for step, value in enumerate(values, 2))]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_last_value_counts(tmp_path: Path) -> None:
    write_metrics(tmp_path, 0.25, 0.5)
    assert read_metric(tmp_path / "metrics.jsonl", metric=METRIC) == 0.5
    assert read_metric(tmp_path / "metrics.jsonl", metric="eval/test/top5") is None
    assert read_metric(tmp_path / "missing.jsonl", metric=METRIC) is None


def test_a_trial_ends_with_a_value_or_a_reason(sweep: Sweep) -> None:
    first, second, third = sweep.trials
    write_metrics(first.config.run_dir, 0.5)
    write_metrics(third.config.run_dir, 0.5)
    assert trial_result(first, metric=METRIC).metric == 0.5
    assert "wrote no eval/test/top1" in (trial_result(second, metric=METRIC).error or "")
    failed = trial_result(third, metric=METRIC, error="the loss is nan")
    assert (failed.metric, failed.error) == (None, "the loss is nan")


def test_only_the_same_run_counts_as_finished(sweep: Sweep, tmp_path: Path) -> None:
    trial = sweep.trials[0]
    assert not is_finished(trial)
    mark_finished(trial.config.run_dir, config_text=dump_run_config(trial.config))
    assert is_finished(trial)
    base = tmp_path / "base.yaml"
    base.write_text(base.read_text().replace("warmup_samples: 32", "warmup_samples: 16"))
    changed = load_sweep(tmp_path / "sweep.yaml").trials[0]
    assert changed.config.run_dir == trial.config.run_dir
    assert not is_finished(changed)


def test_the_best_is_the_largest_or_the_smallest(sweep: Sweep) -> None:
    results = results_of(sweep)
    assert best_result(results, best="max") is results[1]
    assert best_result(results, best="min") is results[0]
    assert best_result(results[2:], best="max") is None


def test_csv_reads_back(sweep: Sweep) -> None:
    rows = list(csv.DictReader(io.StringIO(results_csv(sweep, results_of(sweep)))))
    assert [row[METRIC] for row in rows] == ["0.5", "0.75", ""]
    assert [row["model.image_size"] for row in rows] == ["8", "12", "16"]
    assert rows[2]["error"] == "the data | are\ngone"


def test_markdown_is_a_table_with_the_best_in_bold(sweep: Sweep) -> None:
    table = [line for line in results_markdown(sweep, results_of(sweep)).splitlines() if line.startswith("|")]
    assert table == [
        "| model.image_size | eval/test/top1 | error |",
        "| --- | --- | --- |",
        "| 8 | 0.5000 |  |",
        "| **12** | **0.7500** |  |",
        "| 16 | - | the data \\| are gone |",
    ]


def test_the_console_shows_failures_beside_values(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    print_results(sweep, results_of(sweep))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model.image_size", "eval/test/top1", "error"]
    assert lines[3].split() == ["16", "-", "the", "data", "|", "are", "gone"]
    assert lines[-1] == "best: image_size-12, eval/test/top1 0.7500"


def test_both_files_are_written(sweep: Sweep) -> None:
    write_results(sweep, results_of(sweep))
    assert {path.name for path in sweep.folder.iterdir()} == {"results.csv", "results.md"}
