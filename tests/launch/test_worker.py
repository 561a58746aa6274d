"""The worker's few steps before and after the training, without Ray around them."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import pytest
import torch.distributed as dist

from tests.train.tiny_run import losses, tiny_config
from vitscale.config import UsageError
from vitscale.engine.processes import shutdown
from vitscale.train.run_dir import RunDirectory
from vitscale.train.run_lock import Launch, exclusive
from vitscale_launch import worker
from vitscale_launch.task import make_task
from vitscale_launch.worker import _enter_folder, _wait_for_lock, train_worker


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of one, as Ray Train makes it before the worker's code runs."""
    shutdown()  # the one that tests of the engine share
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    deepspeed.comm.destroy_process_group()  # torch's and what DeepSpeed remembers of it


@pytest.mark.usefixtures("process_group")
def test_a_worker_trains_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vitscale-launch", "train", "tiny.yaml"])
    task = make_task(tiny_config(tmp_path, "data.path=shards", "output=out", "data.log_samples=false")).to_json()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "argv", ["default_worker.py"])
    outcome = train_worker(task)
    assert (outcome["step"], outcome["samples"]) == (6, 96)
    run_dir = tmp_path / "out" / "tiny"
    assert outcome["values"]["loss"] == losses(run_dir)[6]
    assert json.loads((run_dir / "environment.json").read_text())["command"] == ["vitscale-launch", "train", "tiny.yaml"]
    assert dist.is_initialized(), "the group belongs to Ray"


@pytest.mark.usefixtures("process_group")
def test_a_stop_is_a_result_and_other_errors_are_raised(tmp_path: Path) -> None:
    outcome = train_worker(make_task(tiny_config(tmp_path), stop_at_step=2).to_json())
    assert "stopped on request after step 2 of 6" in outcome["stopped"]
    with exclusive(RunDirectory(root=tmp_path / "runs" / "tiny"), Launch(id="a", attempt=1)):
        worker._LOCK_WAIT_SECONDS, before = 0.1, worker._LOCK_WAIT_SECONDS
        try:
            with pytest.raises(UsageError, match="another process is training"):
                train_worker(make_task(tiny_config(tmp_path)).to_json())
        finally:
            worker._LOCK_WAIT_SECONDS = before


@pytest.mark.usefixtures("process_group")
def test_a_notice_of_preemption_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "has_preemption_notice", iter([False, False, True]).__next__)
    assert "stopped on request after step 3 of 6" in train_worker(make_task(tiny_config(tmp_path)).to_json())["stopped"]
    assert (tmp_path / "runs" / "tiny" / "checkpoints" / "step-00000003").is_dir()


def test_a_folder_that_the_machine_lacks_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be entered on the worker's machine"):
        _enter_folder(str(tmp_path / "missing"))


def test_a_lock_that_is_about_to_go_is_waited_for(tmp_path: Path) -> None:
    directory = RunDirectory(root=tmp_path / "run")
    taken, released = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive(directory):
            taken.set()
            time.sleep(0.5)
            released.set()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    _wait_for_lock(directory, launch=Launch(id="a", attempt=0), seconds=30.0)
    assert released.is_set()
    holder.join()


def test_a_lock_that_stays_is_left_to_the_training(tmp_path: Path) -> None:
    directory = RunDirectory(root=tmp_path / "run")
    with exclusive(directory):
        begin = time.monotonic()
        _wait_for_lock(directory, launch=Launch(id="a", attempt=0), seconds=0.5)
        assert 0.5 <= time.monotonic() - begin < 10.0
        with pytest.raises(UsageError, match="another process is training"), exclusive(directory):
            pass
