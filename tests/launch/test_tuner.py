"""A small sweep through Ray Tune: a failing trial keeps no other from running, finished ones are not repeated."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.test_sweep import write_sweep
from tests.train.tiny_run import events
from vitscale.api import train
from vitscale.config import UserError
from vitscale.run_config import dump_run_config
from vitscale_launch import tuner
from vitscale_launch.results import is_finished, mark_finished
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
        tmp_path,
        grid={"model.image_size": [12], "data.path": ["shards", "missing", "before"]},
        parallel_trials=2,
        plot={"x": "model.image_size"},
    )
    (tmp_path / "before").symlink_to("shards")
    monkeypatch.chdir(tmp_path)
    sweep = load_sweep(path)
    before = sweep.trials[2].config
    train(before)
    mark_finished(before.run_dir, config_text=dump_run_config(before))
    with pytest.raises(UserError, match="1 of 3 trials failed"):
        run_sweep(sweep, address=None)
    assert "3 trials, 1 of them finished already" in capsys.readouterr().out
    rows = list(csv.DictReader((sweep.folder / "results.csv").open()))
    assert [bool(row["eval/test/top1"]) for row in rows] == [True, False, True]
    assert ["missing" in row["error"] for row in rows] == [False, True, False]
    assert (sweep.folder / "metric.png").stat().st_size > 0
    assert [is_finished(trial) for trial in sweep.trials] == [True, False, True]
    assert len(events(before.run_dir, "start")) == 1, "finished ones are not begun again"
