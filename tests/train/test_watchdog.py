"""The watchdog with real ranks: every kind of hang is named, its stacks are on disk, its process is dead in time, and nobody else's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launcher import run_ranks
from vitscale.train.hang_stacks import DUMP_SIGNAL
from vitscale.train.heartbeat import Heartbeat
from vitscale.train.watchdog import Watchdog

SCRIPT = Path(__file__).with_name("watched_rank.py")
HANG_SECONDS = 2.0
BOUND_SECONDS = HANG_SECONDS + 6.0


class Ranks:
    """Ranks that run watched_rank.py, each with its fault."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._processes: list[subprocess.Popen[str]] = []
        self.watchdogs: list[int] = []

    def start(self, *faults: str, hang_seconds: float | str = HANG_SECONDS) -> list[subprocess.Popen[str]]:
        for rank, fault in enumerate(faults):
            command = [sys.executable, "-S", str(SCRIPT), str(self.run_dir), str(rank), str(len(faults)), str(hang_seconds), fault]
            # A group of its own, as launchers make it.
            self._processes.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
            )
        for process in self._processes:
            assert process.stdout is not None
            pid, watchdog, self.start_seconds = process.stdout.readline().split()
            assert int(pid) == process.pid
            self.watchdogs.append(int(watchdog))
        return self._processes

    def events(self) -> list[dict[str, Any]]:
        path = self.run_dir / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def stacks(self, rank: int) -> str:
        return (self.run_dir / "logs" / f"hang-rank-{rank:05d}-1.txt").read_text()

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    started = Ranks(tmp_path / "run")
    yield started
    started.end()


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int, *, seconds: float) -> float:
    begin = time.monotonic()
    while is_running(pid):
        assert time.monotonic() < begin + seconds, f"process {pid} is still there after {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - begin


def test_the_process_is_small_and_closes(tmp_path: Path) -> None:
    heartbeat = Heartbeat()
    begin = time.perf_counter()
    watchdog = Watchdog(heartbeat, run_dir=tmp_path, rank=2, world_size=3, attempt="a", hang_seconds="auto")
    shown = tmp_path / "heartbeats" / "rank-00002.json"
    while not shown.exists() or not shown.read_text():
        assert time.perf_counter() < begin + 10.0
        time.sleep(0.01)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{watchdog.pid}/status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) < 15 * 1024
    state = json.loads(shown.read_text())
    assert (state["rank"], state["pid"], state["phase"], state["closed"]) == (2, os.getpid(), "start", False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        os.kill(watchdog.pid, number)
    time.sleep(0.05)
    assert watchdog.is_watching
    watchdog.close()
    watchdog.close()
    assert not watchdog.is_watching
    assert json.loads(shown.read_text())["closed"]
    heartbeat.close()


def test_it_works_in_a_thread_that_python_allows_no_signal_handlers(tmp_path: Path) -> None:
    heartbeat = Heartbeat()

    def watch() -> None:
        watchdog = Watchdog(heartbeat, run_dir=tmp_path, rank=0, world_size=1, attempt="a", hang_seconds=5.0)
        os.kill(os.getpid(), DUMP_SIGNAL)  # would end the tests if nobody handled it
        watchdog.close()
        watchdogs.append(watchdog)

    watchdogs: list[Watchdog] = []
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join(30.0)
    assert [watchdog.is_watching for watchdog in watchdogs] == [False]
    heartbeat.close()


def test_a_watchdog_that_died_is_seen_and_can_be_closed(tmp_path: Path) -> None:
    heartbeat = Heartbeat()
    watchdog = Watchdog(heartbeat, run_dir=tmp_path, rank=0, world_size=1, attempt="a", hang_seconds=5.0)
    os.kill(watchdog.pid, signal.SIGKILL)
    wait_until_gone(watchdog.pid, seconds=5.0)
    assert not watchdog.is_watching
    watchdog.close()
    heartbeat.close()


@pytest.mark.dist
@pytest.mark.parametrize(
    ("fault", "function"),
    [("stopped", "stop_itself"), ("loop", "loop_in_python"), ("locked", "loop_holding_the_interpreter")],
)
@pytest.mark.parametrize("culprit", [0, 1])
def test_a_hung_rank_is_named_and_all_are_ended(ranks: Ranks, fault: str, function: str, culprit: int) -> None:
    faults = ["waits", "waits"]
    faults[culprit] = fault
    processes = ranks.start(*faults)
    begin = time.monotonic()
    codes = [process.wait(timeout=30.0) for process in processes]
    assert codes == [-signal.SIGKILL] * 2
    assert time.monotonic() - begin < BOUND_SECONDS + 1.0  # the steps before the hang
    (event,) = ranks.events()
    assert (event["event"], event["rank"], event["phase"], event["step"]) == ("hang", culprit, "step", 3)
    assert HANG_SECONDS <= event["seconds"] < BOUND_SECONDS
    assert event["message"].startswith(f"rank {culprit} (process {processes[culprit].pid} on ")
    assert f"Others waited: rank {1 - culprit} in phase step after step 3, waiting in a collective" in event["message"]
    assert ("stopped by a signal" in event["message"]) == (fault == "stopped")
    assert function in (ranks.run_dir / event["stacks"]).read_text()
    assert "wait_in_a_collective" in ranks.stacks(1 - culprit), "the stacks of those who waited are there too"
    for watchdog in ranks.watchdogs:
        wait_until_gone(watchdog, seconds=3.0)
    _, told = processes[culprit].communicate()
    assert told == f"vitscale: {event['message']}\n", "on the terminal too"


@pytest.mark.dist
def test_a_hung_rank_is_ended_and_told_of_also_without_its_run_directory(ranks: Ranks) -> None:
    (process,) = ranks.start("sleeps", hang_seconds=1.5)
    shutil.rmtree(ranks.run_dir)
    _, told = process.communicate(timeout=BOUND_SECONDS)
    assert process.returncode == -signal.SIGKILL
    assert told.startswith(f"vitscale: rank 0 (process {process.pid} on ")
    assert told.endswith("set watch.hang_seconds=null. The run directory took no record of it\n")


@pytest.mark.dist
def test_ranks_that_look_alike_are_told_of_together(ranks: Ranks) -> None:
    processes = ranks.start("waits", "waits", "waits")
    assert [process.wait(timeout=30.0) for process in processes] == [-signal.SIGKILL] * 3
    (event,) = ranks.events()
    assert (event["rank"], event["ranks"]) == (None, [0, 1, 2])
    assert event["message"].startswith("ranks 0, 1, 2 have shown no progress")


@pytest.mark.dist
def test_a_rank_that_does_not_enter_a_collective_is_named(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank \d ended with -9"):
        run_ranks(SCRIPT.with_name("ranks_hung_collective.py"), tmp_path, HANG_SECONDS, "elsewhere")
    assert time.monotonic() - begin < 60.0
    time.sleep(2.0)  # the launcher has ended the other rank; its watchdog may still be writing
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["rank"], event["phase"], event["step"]) == (1, "step", 3)
    assert "rank 0 in phase step after step 3, waiting in a collective" in event["message"]
    assert "wait_elsewhere" in (tmp_path / event["stacks"]).read_text()
    assert "gather_json" in (tmp_path / "logs" / "hang-rank-00000-1.txt").read_text()


@pytest.mark.dist
def test_ranks_in_different_collectives_are_told_of_together(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"rank \d ended with -9"):
        run_ranks(SCRIPT.with_name("ranks_hung_collective.py"), tmp_path, HANG_SECONDS, "another")
    time.sleep(2.0)
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert event["ranks"] == [0, 1]
    assert "enter_another_collective" in (tmp_path / "logs" / "hang-rank-00001-1.txt").read_text()


@pytest.mark.dist
def test_a_hang_is_found_where_nothing_can_be_written(ranks: Ranks) -> None:
    (process,) = ranks.start("loop")
    for name in ("logs", "heartbeats"):
        folder = ranks.run_dir / name
        folder.rename(folder.with_name(f"{name}.gone"))
        folder.write_text("")
    assert process.wait(timeout=BOUND_SECONDS + 2.0) == -signal.SIGKILL


@pytest.mark.dist
@pytest.mark.parametrize("fault", ["none", "slow start", "evaluates"])
def test_no_false_alarm(ranks: Ranks, fault: str) -> None:
    processes = ranks.start(fault, fault, hang_seconds=1.5)
    assert [process.wait(timeout=30.0) for process in processes] == [0, 0]
    assert ranks.events() == []
    assert list((ranks.run_dir / "logs").iterdir()) == []


@pytest.mark.dist
def test_a_rank_that_waits_for_one_at_work_is_left_alone(ranks: Ranks) -> None:
    waiting, working = ranks.start("waits", "evaluates", hang_seconds=1.2)
    assert working.wait(timeout=30.0) == 0, "beats for three seconds, then ends"
    assert waiting.wait(timeout=30.0) == -signal.SIGKILL
    (event,) = ranks.events()
    assert event["rank"] == 0


@pytest.mark.dist
def test_a_watchdog_that_was_stopped_does_not_blame_its_rank(ranks: Ranks) -> None:
    (process,) = ranks.start("sleeps", hang_seconds=13.0)
    (watchdog,) = ranks.watchdogs
    time.sleep(1.0)
    os.kill(watchdog, signal.SIGSTOP)
    time.sleep(14.0)
    os.kill(watchdog, signal.SIGCONT)
    time.sleep(2.0)
    assert process.poll() is None, "the silence while nobody looked does not count"


@pytest.mark.dist
def test_a_rank_in_a_debugger_is_left_alone(ranks: Ranks) -> None:
    (process,) = ranks.start("sleeps", hang_seconds=1.5)
    attach = (
        "import ctypes, os, sys, time\nlibc = ctypes.CDLL(None, use_errno=True)\npid = int(sys.argv[1])\n"
        "assert libc.ptrace(16, pid, 0, 0) == 0\nos.waitpid(pid, 0)\ntime.sleep(4)\nassert libc.ptrace(17, pid, 0, 0) == 0"
    )
    subprocess.run([sys.executable, "-c", attach, str(process.pid)], check=True)
    assert process.poll() is None
    assert process.wait(timeout=BOUND_SECONDS) == -signal.SIGKILL, "and is watched again afterwards"


@pytest.mark.dist
@pytest.mark.parametrize("stopped", [False, True])
def test_the_watchdog_ends_with_its_rank(ranks: Ranks, stopped: bool) -> None:
    (process,) = ranks.start("stopped" if stopped else "sleeps", hang_seconds="auto")
    (watchdog,) = ranks.watchdogs
    time.sleep(0.5)
    assert is_running(watchdog)
    os.killpg(process.pid, signal.SIGKILL)
    assert wait_until_gone(watchdog, seconds=2.0) < 2.0
