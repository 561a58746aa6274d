"""A run on its way to the workers."""

import os
import sys
from pathlib import Path

import pytest

from tests.train.tiny_run import tiny_config
from vitscale.config import decode
from vitscale.run_config import RunConfig
from vitscale_launch.task import TrainTask, make_task


def test_a_task_survives_the_journey(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "optim.lr=0.1234567890123", "optim.clip_grad_norm=null")
    task = make_task(config, allow_change=["optim.lr", "seed"], stop_at_step=3, debug=True)
    arrived = TrainTask.from_json(task.to_json())
    assert arrived == task
    assert decode(RunConfig, values=arrived.config, source="task") == config


def test_paths_stay_as_written_and_the_folder_says_what_they_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = make_task(tiny_config(tmp_path, "data.path=shards", "output=runs"))
    assert (task.config["data"]["path"], task.config["output"]) == ("shards", "runs")
    assert task.folder == os.getcwd()
    assert task.command == tuple(sys.argv)
