"""What is learnt of a process that does not answer: running, stopped, holding the interpreter, asleep, gone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from vitscale.train import hang_stacks
from vitscale.train.hang_stacks import RankProcess, dump_stacks
from vitscale.train.heartbeat import anonymous_file
from vitscale.train.watchdog import _find_py_spy

BODIES = {
    "sleeps": "def napping(): time.sleep(60)\nnapping()",
    "loops": "def spinning():\n    while True: pass\nspinning()",
    "locked": "import re\ndef in_c(): re.match('(a+)+$', 'a' * 60 + 'b')\nin_c()",
    "stopped": "import os\ndef halted():\n    while True: os.kill(os.getpid(), signal.SIGSTOP); time.sleep(1)\nhalted()",
    "deaf": "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})\ndef unhearing(): time.sleep(60)\nunhearing()",
}
FUNCTION = {"sleeps": "napping", "loops": "spinning", "locked": "in_c", "stopped": "halted", "deaf": "unhearing"}


class Victim:
    """A process that does one of BODIES, with its stacks' file."""

    def __init__(self, body: str) -> None:
        self.file = anonymous_file("stacks")
        register = f"import faulthandler, signal, time; faulthandler.register(signal.SIGUSR2, file={self.file.fileno()}, all_threads=True)"
        code = f"{register}\nprint('ready', flush=True)\n{BODIES[body]}"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code], pass_fds=[self.file.fileno()], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        self.rank = RankProcess(self._process.pid)

    def dump(self, *, stopped: bool = False, py_spy: str | None = None) -> str:
        return dump_stacks(self.rank, descriptor=self.file.fileno(), stopped=stopped, py_spy=py_spy)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self.file.close()


@contextlib.contextmanager
def victim(body: str) -> Iterator[Victim]:
    found = Victim(body)
    try:
        yield found
    finally:
        found.end()


@pytest.mark.parametrize("body", ["sleeps", "loops", "locked"])
def test_the_rank_writes_its_own_stacks(body: str) -> None:
    with victim(body) as found:
        assert f"in {FUNCTION[body]}" in found.dump()
        assert found.dump().count(FUNCTION[body]) == 1, "a second dump begins where the first has ended"


def test_a_stopped_rank_is_continued_for_its_stacks_and_stopped_again() -> None:
    with victim("stopped") as found:
        assert found.rank.condition(silent_seconds=1.0).stopped
        assert "in halted" in found.dump(stopped=True)
        time.sleep(0.05)
        assert found.rank.condition(silent_seconds=1.0).stopped


@pytest.mark.dist
def test_py_spy_reads_a_stopped_rank_and_a_deaf_one() -> None:
    py_spy = _find_py_spy()
    assert py_spy is not None, "the dev extra brings py-spy"
    with victim("stopped") as found:
        assert "halted" in found.dump(stopped=True, py_spy=py_spy)
    with victim("deaf") as found:
        assert "unhearing" in found.dump(py_spy=py_spy)


def test_without_any_answer_the_dump_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang_stacks, "_ANSWER_SECONDS", 0.2)
    with victim("deaf") as found:
        assert found.dump().startswith("no Python stacks")
        assert found.dump(py_spy="/nowhere/py-spy").startswith("no Python stacks")


def test_the_condition_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang_stacks, "_MIN_WATCHED_SECONDS", 0.3)
    with victim("sleeps") as asleep, victim("loops") as busy:
        for found in (asleep, busy):
            found.rank.condition(silent_seconds=1.0)
        used = busy.rank._cpu_seconds()
        while busy.rank._cpu_seconds() < used + 0.1:  # however little of the machine it gets
            time.sleep(0.02)
        conditions = [found.rank.condition(silent_seconds=1.5) for found in (asleep, busy)]
        assert [condition.idle for condition in conditions] == [True, False]
        assert not any(condition.stopped or condition.traced for condition in conditions)
        asleep.rank.has_shown_life()
        assert not asleep.rank.condition(silent_seconds=0.0).idle, "measured anew"


def test_the_kernel_describes_every_thread() -> None:
    with victim("sleeps") as found:
        text = found.rank.describe()
    assert "State: S (sleeping)" in text
    assert f"thread {found.rank.pid} " in text
    assert "nanosleep" in text


def test_a_process_that_is_gone_is_neither_signalled_nor_described() -> None:
    found = Victim("sleeps")
    found.end()
    found.rank.send(signal.SIGKILL)
    assert found.rank.describe() == ""
    condition = found.rank.condition(silent_seconds=5.0)
    assert not condition.stopped
    assert not condition.traced


def test_this_process_is_not_traced() -> None:
    assert not RankProcess(os.getpid()).condition(silent_seconds=0.0).stopped
