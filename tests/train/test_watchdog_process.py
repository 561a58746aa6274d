"""The parts of the watching process: the board where ranks show their states, calls beside the caller, what it imports."""

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vitscale.train import watchdog_process
from vitscale.train.hang_rules import RankState
from vitscale.train.heartbeat import Heartbeat, anonymous_file
from vitscale.train.watchdog_process import Aside, StateBoard, Watch, WatchTask

SLIM = ("heartbeat", "hang_rules", "hang_stacks", "watchdog_process")


def board(folder: Path, rank: int, *, attempt: str = "a", world_size: int = 3) -> StateBoard:
    return StateBoard(folder, rank=rank, world_size=world_size, attempt=attempt)


def state(rank: int, *, attempt: str = "a") -> RankState:
    return RankState(attempt=attempt, rank=rank, host="h", pid=1, limit_seconds=20.0)


def test_the_process_imports_the_standard_library_and_its_own_files() -> None:
    folder = Path(watchdog_process.__file__).parent
    allowed = {f"vitscale.train.{name}" for name in SLIM}
    for name in SLIM:
        tree = ast.parse((folder / f"{name}.py").read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        foreign = {module for module in modules if module not in allowed and str(module).partition(".")[0] not in sys.stdlib_module_names}
        assert foreign == set(), name


def test_ranks_see_each_others_newest_states(tmp_path: Path) -> None:
    boards = [board(tmp_path, rank) for rank in range(3)]
    boards[0].read()
    assert boards[0].lost == [1, 2], "nothing was ever seen of them"
    boards[1].publish(state(1))
    boards[2].publish(state(2))
    boards[0].read()
    assert boards[0].answering == {1: state(1), 2: state(2)}
    boards[1].publish(replace(state(1), dumped=True))
    boards[0].read()
    assert boards[0].answering[1].dumped
    assert not boards[0].has_every_dump
    boards[2].publish(replace(state(2), dumped=True))
    boards[0].read()
    assert boards[0].has_every_dump


def test_states_of_another_attempt_or_half_written_ones_are_passed_over(tmp_path: Path) -> None:
    reader = board(tmp_path, 0, world_size=2)
    board(tmp_path, 1, attempt="b").publish(state(1, attempt="b"))
    reader.read()
    assert reader.answering == {}
    board(tmp_path, 1).publish(state(1))
    reader.read()
    (tmp_path / "rank-00001.json").write_text('{"attempt": "a", "ra')
    reader.read()
    assert reader.answering == {1: state(1)}


def test_a_shorter_state_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    publisher = board(tmp_path, 1)
    publisher.publish(RankState(attempt="a", rank=1, host="a" * 200, pid=1))
    publisher.publish(state(1))
    assert json.loads((tmp_path / "rank-00001.json").read_text()) == asdict(state(1))


def test_who_publishes_nothing_new_is_lost_unless_it_has_come_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_process, "_LOST_SECONDS", 0.1)
    reader, silent, closed = (board(tmp_path, rank) for rank in range(3))
    silent.publish(state(1))
    closed.close(state(2))
    reader.read()
    assert reader.lost == []
    time.sleep(0.15)
    reader.read()
    assert reader.lost == [1]
    assert reader.answering[2].closed
    assert reader.has_every_dump, "nothing more is expected of one that has ended"


def test_a_call_that_never_returns_holds_up_nothing_but_the_next() -> None:
    aside, released = Aside(), threading.Event()
    assert aside.run(lambda: 1, seconds=5.0) == 1
    begin = time.perf_counter()
    assert aside.run(released.wait, seconds=0.05) is None
    assert aside.run(lambda: 2, seconds=0.05) is None, "one at a time"
    assert time.perf_counter() - begin < 2.0
    released.set()
    assert aside.run(lambda: 3, seconds=5.0) == 3


def test_files_that_fail_are_no_result_and_our_own_mistakes_are_errors() -> None:
    def cannot_write() -> int:
        raise OSError(28, "No space left on device")

    def mistake() -> int:
        raise ZeroDivisionError

    assert Aside().run(cannot_write, seconds=5.0) is None
    with pytest.raises(ZeroDivisionError):
        Aside().run(mistake, seconds=5.0)


@pytest.mark.parametrize("can_write", [True, False])
def test_that_there_is_no_record_is_said_only_where_it_is_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], can_write: bool
) -> None:
    """On a busy machine a rank that waited for another has no time left for the moment by which it ends after that one."""
    monkeypatch.setattr(watchdog_process, "_ALARM_SECONDS", 3.0)
    monkeypatch.setattr(watchdog_process, "_VICTIM_SECONDS", 30.0)
    heartbeat, stacks = Heartbeat(), anonymous_file("stacks")
    heartbeat.beat("step", 3)
    (tmp_path / "heartbeats").mkdir()
    board(tmp_path / "heartbeats", 1, world_size=2).publish(replace(state(1), dumped=True))
    with subprocess.Popen(["sleep", "60"]) as rank:
        values = {"pid": rank.pid, "rank": 0, "world_size": 2, "attempt": "a", "run_dir": str(tmp_path), "control": 0}
        descriptors = {"heartbeat": heartbeat.fileno(), "stacks": stacks.fileno()}
        watch = Watch(WatchTask(**values, **descriptors, hang_seconds=1.0, start_seconds=1.0, py_spy=None))
        watch._board.read()

        def write_stacks() -> str:
            if not can_write:
                raise OSError(28, "No space left on device")
            return "logs/stacks.txt"

        monkeypatch.setattr(watch, "_write_stacks", write_stacks)
        assert watch._alarm()
    assert rank.returncode == -signal.SIGKILL
    assert ("took no record of it" in capfd.readouterr().err) == (not can_write)
    assert not (tmp_path / "events.jsonl").exists(), "rank 1 is behind, and tells of itself"


def test_a_failure_of_the_watchdog_itself_lands_in_the_logs(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    heartbeat, stacks = Heartbeat(), anonymous_file("stacks")
    task = WatchTask(
        pid=os.getpid(),
        rank=3,
        world_size=4,
        attempt="a",
        run_dir=str(tmp_path),
        heartbeat=0,  # not a heartbeat
        stacks=stacks.fileno(),
        control=0,
        hang_seconds=None,
        start_seconds=1.0,
        py_spy=None,
    )
    program = "import sys; sys.path.append('.'); from vitscale.train.watchdog_process import main; main(sys.argv[1])"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", program, json.dumps(asdict(task))], stdin=subprocess.DEVNULL, check=False)
    assert result.returncode == 1
    assert "Traceback" in (tmp_path / "logs" / "watchdog-rank-00003.txt").read_text()
    heartbeat.close()
