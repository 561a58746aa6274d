"""One writer per run directory: refused, taken over, shut out; fifty pairs that start together."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.train.tiny_run import events, tiny_values
from vitscale.config import CheckpointError, ConfigError, UsageError, dump_yaml
from vitscale.train import run_lock
from vitscale.train.run_dir import RunDirectory
from vitscale.train.run_lock import LOCK, Launch, exclusive, read_owner

HOLDER = """
import sys
from pathlib import Path
from vitscale.train.run_dir import RunDirectory
from vitscale.train.run_lock import Launch, exclusive
launch = Launch(id=sys.argv[2], attempt=int(sys.argv[3])) if len(sys.argv) > 2 else None
with exclusive(RunDirectory(root=Path(sys.argv[1])), launch) as lock:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            lock.check()
            print("mine", flush=True)
        except Exception as error:
            print(error, flush=True)
"""

# Many pairs in two processes: starting a process takes a second, the race microseconds.
RACER = """
import sys, time
from pathlib import Path
from vitscale.config import UsageError
from vitscale.train.run_dir import RunDirectory
from vitscale.train.run_lock import exclusive
root, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def meet(number, what):
    (root / f"{what}-{number}-{me}").touch()
    while not (root / f"{what}-{number}-{other}").exists():
        pass

for number in range(int(sys.argv[4])):
    meet(number, "start")
    try:
        with exclusive(RunDirectory(root=root / f"run-{number}")) as lock:
            lock.check()
            print("held", flush=True)
            meet(number, "end")
    except UsageError as error:
        print(error, flush=True)
        meet(number, "end")
"""


class Holder:
    """A process of its own that holds a run directory."""

    def __init__(self, root: Path, *launch: str) -> None:
        command = [sys.executable, "-c", HOLDER, str(root), *launch]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == "held"

    def check(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._line()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def start() -> Iterator[type[Holder]]:
    """Starts holders, and ends them with the test."""
    with ExitStack() as stack:

        class Started(Holder):
            def __init__(self, root: Path, *launch: str) -> None:
                super().__init__(root, *launch)
                stack.callback(self.kill)

        yield Started


def hold(root: Path, launch: Launch | None = None):  # type: ignore[no-untyped-def]
    return exclusive(RunDirectory(root=root), launch)


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path: Path, start: type[Holder]) -> None:
    holder = start(tmp_path)
    with pytest.raises(UsageError, match=f"process {holder.process.pid} on"), hold(tmp_path):
        pass
    assert holder.check() == "mine", "who is refused leaves the holder in peace"
    holder.kill()
    with hold(tmp_path) as lock:
        lock.check()  # a killed holder leaves nothing to clean up
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.timeout(120)
def test_of_fifty_pairs_that_start_together_one_gets_the_lock_each_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [
        subprocess.Popen([*command, me, other, "50"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for me, other in (("a", "b"), ("b", "a"))
    ]
    outputs = [racer.communicate(timeout=100)[0].splitlines() for racer in racers]
    assert [len(lines) for lines in outputs] == [50, 50], outputs
    for number, pair in enumerate(zip(*outputs, strict=True)):
        refused, held = sorted(pair, key=lambda line: line == "held")
        assert held == "held", f"pair {number}: {pair}"
        holder = read_owner(tmp_path / f"run-{number}")
        assert f"another process is training in this run directory ({holder})" in refused


@pytest.mark.parametrize(
    ("holding", "coming", "is_taken_over"),
    [(("a", "1"), ("a", 2), True), (("a", "2"), ("a", 1), False), (("a", "1"), ("a", 1), False), (("a", "1"), ("b", 2), False)],
)
def test_only_a_later_attempt_of_the_same_launch_takes_over(
    tmp_path: Path, start: type[Holder], holding: tuple[str, str], coming: tuple[str, int], is_taken_over: bool
) -> None:
    holder = start(tmp_path, *holding)
    launch = Launch(id=coming[0], attempt=coming[1])
    if is_taken_over:
        with hold(tmp_path, launch) as lock:
            lock.check()
            assert f"another process group has taken over this run directory (process {os.getpid()} on" in holder.check()
            with pytest.raises(UsageError, match="another process is training"), hold(tmp_path):
                pass
            holder.kill()
            with pytest.raises(UsageError, match="another process is training"), hold(tmp_path):
                pass  # the old holder's end frees nothing
    else:
        with pytest.raises(UsageError, match=f"process {holder.process.pid} on"), hold(tmp_path, launch):
            pass
        assert holder.check() == "mine"
    with pytest.raises(UsageError, match="another process") if not is_taken_over else ExitStack(), hold(tmp_path):
        pass


def test_a_holder_without_a_launch_is_not_taken_over(tmp_path: Path, start: type[Holder]) -> None:
    holder = start(tmp_path)
    with pytest.raises(UsageError, match=f"process {holder.process.pid}"), hold(tmp_path, Launch(id="a", attempt=9)):
        pass


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "the lock file .lock, or the whole directory, was removed"),
        (lambda path: shutil.rmtree(path.parent), "the lock file .lock, or the whole directory, was removed"),
        (lambda path: path.write_text(""), "was changed by hand"),
        (lambda path: path.write_text("[1]"), "was changed by hand"),
        (lambda path: path.write_text(json.dumps({"token": "x"})), "was changed by hand"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read any more"),
    ],
    ids=["removed", "vanished", "emptied", "edited", "half", "folder"],
)
def test_what_is_done_to_the_lock_file_by_hand_is_told_before_a_commit(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    with hold(tmp_path / "run") as lock:
        lock.check()
        assert not lock.is_lost()
        damage(tmp_path / "run" / LOCK)
        assert lock.is_lost()
        with pytest.raises(CheckpointError, match=message) as caught:
            lock.check()
    assert "\n" not in str(caught.value)


def test_who_removes_the_lock_of_a_running_job_shuts_it_out_with_the_next(tmp_path: Path, start: type[Holder]) -> None:
    holder = start(tmp_path)
    (tmp_path / LOCK).unlink()
    with hold(tmp_path) as lock:
        lock.check()
        assert f"another process group has taken over this run directory (process {os.getpid()} on" in holder.check()


def test_a_directory_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the run directory .* cannot be written"), hold(tmp_path / "file" / "run"):
        pass


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"cannot be locked .No locks available"), hold(tmp_path):
        pass


def test_what_a_killed_process_left_behind_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / f"{LOCK}.0123").write_text("half a na")
    with hold(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_forked_child_does_not_hold_the_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with hold(tmp_path):
        child = context.Process(target=time.sleep, args=(30,))
        child.start()
    try:
        with hold(tmp_path):
            pass
    finally:
        child.kill()
        child.join()


@pytest.mark.chaos
def test_of_two_commands_that_start_together_one_trains_and_one_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(dump_yaml(tiny_values(tmp_path) | {"train": {"num_samples": 3200, "global_batch": 16}}))
    command = [sys.executable, "-m", "vitscale", "train", str(tmp_path / "tiny.yaml")]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [job.communicate(timeout=250)[1] for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 2], errors
    refused = next(error for job, error in zip(jobs, errors, strict=True) if job.returncode == 2)
    assert "another process is training in this run directory (process" in refused
    assert len(events(tmp_path / "runs" / "tiny", "start")) == len(events(tmp_path / "runs" / "tiny", "finished")) == 1
