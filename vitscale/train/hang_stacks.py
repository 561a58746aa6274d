"""What can be learnt of a process that does not answer: its condition, and where each of its threads is."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from vitscale.train.hang_rules import Condition

# Imported by the watchdog's own small process as well: nothing but the standard library.

DUMP_SIGNAL = signal.SIGUSR2
"""Makes a rank write the stacks of its threads, from C, whoever holds the interpreter."""

_IDLE_SHARE = 0.1
_MIN_WATCHED_SECONDS = 2.0
_ANSWER_SECONDS = 2.0
_CONTINUED_SECONDS = 1.0
_SETTLED_SECONDS = 0.15
_CONTINUED_SETTLED_SECONDS = 0.03  # all that while it goes on with its work
_MAX_THREADS = 64
_KEPT = ("Name", "State", "TracerPid", "Threads", "VmRSS", "SigPnd", "ShdPnd", "SigBlk", "voluntary_ctxt_switches")


class RankProcess:
    """The process of a rank, seen from its child. Without Linux's /proc it looks neither stopped nor traced nor idle."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._folder = Path(f"/proc/{pid}")
        # The number alone may by then be another process's.
        self.descriptor: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self.descriptor = os.pidfd_open(pid)
        self._cpu_seconds_then: float | None = None
        self._watched_from = 0.0

    def send(self, number: int) -> None:
        """Send a signal; nothing happens where the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            if self.descriptor is not None:
                signal.pidfd_send_signal(self.descriptor, number)
            else:
                os.kill(self.pid, number)

    def has_shown_life(self) -> None:
        """Begin to measure anew how much it computes."""
        self._cpu_seconds_then = None

    def condition(self, *, silent_seconds: float) -> Condition:
        """How it is now, `silent_seconds` after its last sign of life."""
        status = self._status()
        state = status.get("State", "")
        return Condition(
            stopped=state.startswith("T"),
            traced=status.get("TracerPid", "0") != "0",
            idle=self._is_idle(silent_seconds),
        )

    def describe(self) -> str:
        """The state of the process and of each of its threads, as the kernel shows them."""
        status = self._status()
        lines = [f"{name}: {status[name]}" for name in _KEPT if name in status]
        for task in sorted((self._folder / "task").glob("*"), key=lambda path: int(path.name))[:_MAX_THREADS]:
            lines.extend(_describe_thread(task))
        return "\n".join(lines)

    def _status(self) -> dict[str, str]:
        pairs = (line.partition(":") for line in _read(self._folder / "status").splitlines())
        return {name: value.strip() for name, _, value in pairs}

    def _is_idle(self, silent_seconds: float) -> bool:
        used = self._cpu_seconds()
        if self._cpu_seconds_then is None:
            self._cpu_seconds_then, self._watched_from = used, silent_seconds
        watched = silent_seconds - self._watched_from
        return watched >= _MIN_WATCHED_SECONDS and used - self._cpu_seconds_then < _IDLE_SHARE * watched

    def _cpu_seconds(self) -> float:
        # Fields 14 and 15 of the file; the second, the name, may hold blanks and brackets.
        fields = _read(self._folder / "stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else 0.0


def dump_stacks(process: RankProcess, *, descriptor: int, stopped: bool, py_spy: str | None) -> str:
    """The Python stacks of all threads of a rank, which has registered faulthandler with the file of `descriptor`.

    A process that a signal has stopped runs no handler: py-spy reads its memory from outside. Without py-spy it is continued
    for as long as its own handler takes, and stopped again. Takes five seconds at most.
    """
    begin = os.fstat(descriptor).st_size
    if not stopped:
        process.send(DUMP_SIGNAL)
        if text := _wait_for_text(descriptor, begin=begin, seconds=_ANSWER_SECONDS, settled_seconds=_SETTLED_SECONDS):
            return text
    if py_spy is not None and (text := _py_spy(py_spy, pid=process.pid)):
        return text
    if not stopped:
        return "no Python stacks: the process did not run its signal handler, and py-spy is not installed or could not read it\n"
    process.send(DUMP_SIGNAL)
    process.send(signal.SIGCONT)
    text = _wait_for_text(descriptor, begin=begin, seconds=_CONTINUED_SECONDS, settled_seconds=_CONTINUED_SETTLED_SECONDS)
    process.send(signal.SIGSTOP)
    return text or "no Python stacks: the process did not run its signal handler after it was continued\n"


def _wait_for_text(descriptor: int, *, begin: int, seconds: float, settled_seconds: float) -> str:
    """What was appended after `begin`, once no more comes."""
    deadline, size, changed = time.monotonic() + seconds, begin, time.monotonic()
    while time.monotonic() < deadline:
        now = os.fstat(descriptor).st_size
        if now != size:
            size, changed = now, time.monotonic()
        elif size > begin and time.monotonic() - changed > settled_seconds:
            break
        time.sleep(0.01)
    return os.pread(descriptor, size - begin, begin).decode(errors="replace")


def _py_spy(command: str, *, pid: int) -> str:
    # Imported when it is needed: it is a quarter of the watchdog's memory.
    import subprocess

    arguments = [command, "dump", "--nonblocking", "--pid", str(pid)]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(arguments, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False).stdout
    return ""


def _describe_thread(folder: Path) -> Iterator[str]:
    name, wait, call = (_read(folder / file).strip() for file in ("comm", "wchan", "syscall"))
    state = next((line.split()[1] for line in _read(folder / "status").splitlines() if line.startswith("State:")), "gone")
    yield f"thread {folder.name} {name}: state {state}, waits in {wait or '?'}, system call {call.split()[0] if call else '?'}"
    yield from (f"    {line}" for line in _read(folder / "stack").splitlines())


def _read(path: Path) -> str:
    """The text of a file in /proc; empty where it cannot be read, as when the thread has ended."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
