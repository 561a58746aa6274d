"""Watch: a run's watchdog lives as long as the run, sees its beats, and slow ranks become events."""

import json
import time
from pathlib import Path

import pytest

from vitscale.config import ConfigError
from vitscale.dist.ranks import Ranks
from vitscale.run_config import WatchConfig
from vitscale.train.goodput import HostSeconds
from vitscale.train.run_dir import RunDirectory
from vitscale.train.watch import open_watch


def test_the_watchdog_sees_where_the_run_is_and_ends_with_it(tmp_path: Path) -> None:
    published = tmp_path / "heartbeats" / "rank-00000.json"
    with open_watch(WatchConfig(), directory=RunDirectory(root=tmp_path), ranks=Ranks(), device="cpu") as watch:
        watch.beat("step", 7)
        deadline = time.monotonic() + 20
        while not published.exists() or json.loads(published.read_text())["step"] != 7:
            assert time.monotonic() < deadline, "the watchdog publishes what it sees"
            time.sleep(0.05)
        pid = json.loads(published.read_text())["pid"]
    assert pid > 0
    assert not list(tmp_path.glob("logs/hang-*")), "nobody hung"


def test_no_watchdog_where_none_is_wanted(tmp_path: Path) -> None:
    with open_watch(WatchConfig(hang_seconds=None), directory=RunDirectory(root=tmp_path), ranks=Ranks(), device="cpu") as watch:
        watch.beat("step", 7)
        assert watch.judge([1.0]) == []
    assert list(tmp_path.iterdir()) == []


def test_slow_ranks_are_found_and_found_again_when_they_have_recovered(tmp_path: Path) -> None:
    with open_watch(WatchConfig(), directory=RunDirectory(root=tmp_path), ranks=Ranks(), device="cpu") as watch:
        assert watch.own_seconds(HostSeconds(steps=5.0, collectives=1.5, data_wait=0.5), forward_seconds=None) == 3.5
        windows = [[1.0, 10.0], [1.0, 1.0], [1.0, 1.0]]
        object.__setattr__(watch, "hosts", ("one", "two"))
        found = [finding for own in windows for finding in watch.judge(own)]
    assert [(finding.kind, finding.rank, finding.ratio) for finding in found] == [("straggler", 1, 10.0), ("straggler_recovered", 1, 1.0)]
    assert found[0].message.startswith("rank 1 on two is slow")


def test_a_run_directory_that_cannot_be_written_is_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "heartbeats").write_text("in the way")
    with (
        pytest.raises(ConfigError, match=r"output: the run directory .* cannot be written"),
        open_watch(WatchConfig(), directory=RunDirectory(root=tmp_path), ranks=Ranks(), device="cpu"),
    ):
        pass
