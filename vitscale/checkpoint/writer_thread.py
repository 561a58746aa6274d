"""A thread that does one piece of work after another beside the training thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class WriterThread:
    """Runs what it is given, in order, in one thread that is started with the first piece of work.

    Not an executor of the standard library: the interpreter waits for those at its end, and a process that ends because
    training failed must not first write gigabytes that nobody will commit.
    """

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.is_closing = threading.Event()
        """Set by `close`: long work looks at it and gives up."""

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Do `work` after all that was given before; the future has its result, or what it raised."""
        assert not self.is_closing.is_set(), "the writer thread is closed"
        future: Future[T] = Future()
        self._work.put(lambda: _run(work, future))
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()
        return future

    def close(self, *, timeout_s: float) -> bool:
        """Ask the thread to end and wait at most `timeout_s` for it; whether it has ended."""
        self.is_closing.set()
        if self._thread is None:
            return True
        self._work.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            # What it holds on to must not live until the next save.
            del work


def _run(work: Callable[[], T], future: "Future[T]") -> None:
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
