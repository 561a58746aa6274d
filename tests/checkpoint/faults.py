"""Processes that are killed in the middle of a save, one operation on the disk further each time."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from vitscale.checkpoint import fragment_file
from vitscale.checkpoint.fragments import Fragment

_TOUCHING_DISK = ("fsync", "rename", "mkdir", "unlink", "rmdir", "open")


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; return its wait status."""
    return wait_for(start_child(work))


def start_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process, which ends with 0 if it does and 1 if it raises; return its number."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return child


def wait_for(child: int, *, timeout_s: float = 60.0) -> int:
    """The wait status of a child, which is killed when the time is up."""
    timer = threading.Timer(timeout_s, os.kill, (child, signal.SIGALRM))
    timer.start()
    try:
        return os.waitpid(child, 0)[1]
    finally:
        timer.cancel()


@contextlib.contextmanager
def killed_at(operation: int) -> Iterator[None]:
    """SIGKILL this process before its n-th operation on the disk; chunks of data count as operations too."""
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def ticking(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (tick(), original(*args, **kwargs))[1]

    def ticking_chunks(fragments: list[Fragment]) -> Iterator[memoryview]:
        for chunk in chunks(fragments):
            tick()
            yield chunk

    chunks = fragment_file._chunks
    with contextlib.ExitStack() as stack:
        for name in _TOUCHING_DISK:
            stack.enter_context(mock.patch.object(os, name, ticking(getattr(os, name))))
        stack.enter_context(mock.patch.object(fragment_file, "_chunks", ticking_chunks))
        yield


def survived(status: int) -> bool:
    """Whether a child lived to the end; anything but that and SIGKILL is a mistake of the test."""
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, "the save failed by itself"
    return status == 0
