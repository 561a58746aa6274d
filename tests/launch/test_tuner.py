"""A small sweep through Ray Tune: a failing trial keeps no other from running, finished ones are not repeated."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.test_sweep import write_sweep
from tests.train.tiny_run import events
from vitscale.config import UserError
from vitscale_launch import tuner
from vitscale_launch.sweep import load_sweep
from vitscale_launch.tuner import run_sweep
from vitscale_launch.workers import ClusterResources


@pytest.mark.parametrize(("num_cpus", "num_parallel", "cpus"), [(3, 2, 1), (3, 1, 2), (9, 2, 4), (5, 2, 2)])
def test_workers_leave_a_cpu_to_the_trials_that_wait_for_them(tmp_path: Path, num_cpus: int, num_parallel: int, cpus: int) -> None:
    sweep = load_sweep(write_sweep(tmp_path))
    there = ClusterResources(num_cpus=num_cpus, num_gpus=0, is_local=True)
    payload = tuner._payload(sweep.trials[0], sweep=sweep, cluster=there, num_parallel=num_parallel, debug=False)
    assert payload["workers"]["cpus"] == cpus
    assert num_parallel * cpus + 1 <= num_cpus


@contextlib.contextmanager
def session_cluster(**settings: Any) -> Iterator[ClusterResources]:  # noqa: ARG001
    """The cluster that all tests share, in place of one of the sweep's own."""
    yield ClusterResources(num_cpus=4, num_gpus=0, is_local=True)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_sweep_runs_what_is_not_finished_and_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuner, "ray_cluster", session_cluster)
    path = write_sweep(
        tmp_path, grid={"model.image_size": [12], "data.path": ["shards", "later"]}, parallel_trials=2, plot={"x": "model.image_size"}
    )
    monkeypatch.chdir(tmp_path)
    sweep = load_sweep(path)
    with pytest.raises(UserError, match="1 of 2 trials failed"):
        run_sweep(sweep, address=None)
    rows = list(csv.DictReader((sweep.folder / "results.csv").open()))
    assert [bool(row["eval/test/top1"]) for row in rows] == [True, False]
    assert all("later" in row["error"] for row in rows if row["error"])
    assert (sweep.folder / "metric.png").stat().st_size > 0

    (tmp_path / "later").symlink_to("shards")
    results = run_sweep(load_sweep(path), address=None)
    assert [result.error for result in results] == [None] * 2
    assert "2 trials, 1 of them finished already" in capsys.readouterr().out
    for trial in sweep.trials:
        assert len(events(trial.config.run_dir, "finished")) == 1
