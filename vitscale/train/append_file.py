"""A log that outlives a full disk: what cannot be written waits in memory, and is written as soon as there is room."""

import contextlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

_WAITING_BYTES = 8 << 20


class AppendFile:
    """Appends records to the file at `path`, each in the file when `write` returns, or else before the next one.

    A record of which only a part fitted is finished first, so that a reader sees no broken one between others. Where more than
    `waiting_bytes` wait, the oldest are dropped. `warn` is told when writing begins to fail, and what came of it. Only the
    constructor raises `OSError`: a log is no reason to end a run.
    """

    def __init__(self, path: Path, *, warn: Callable[[str], None], waiting_bytes: int = _WAITING_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._warn = warn
        self._room = waiting_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._num_written = 0  # bytes of the first waiting record
        self._num_dropped = 0
        self._is_failing = False
        self._descriptor = self._open()
        self._place = _place(self._descriptor)

    def write(self, record: bytes, *, durably: bool = False) -> None:
        """Append a record; with `durably`, it survives a crash of the machine."""
        self._waiting.append(record)
        self._waiting_bytes += len(record)
        try:
            self._flush(durably=durably or self._is_failing)
        except OSError as error:
            self._keep(error)
        else:
            self._recover()

    def close(self) -> None:
        """Write what waits, make the file durable and close it."""
        if self._descriptor < 0:
            return
        try:
            self._flush(durably=True)
        except OSError as error:
            num_lost = len(self._waiting) + self._num_dropped
            self._warn(f"{self._path} cannot be written: {error.strerror}; {num_lost} of its records are lost")
        else:
            self._recover()
        with contextlib.suppress(OSError):  # NFS tells here once more what fsync has told
            os.close(self._descriptor)
        self._descriptor = -1

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _flush(self, *, durably: bool) -> None:
        if self._is_failing:
            self._reopen()
        while self._waiting:
            record = self._waiting[0]
            self._num_written += os.write(self._descriptor, record[self._num_written :])
            if self._num_written == len(record):
                self._waiting_bytes -= len(self._waiting.popleft())
                self._num_written = 0
            else:
                self._place = _place(self._descriptor)
        if durably:
            os.fsync(self._descriptor)

    def _reopen(self) -> None:
        """A file server that was restarted may know the file by its name only. In another file, and behind what somebody else has
        appended, a record begins anew."""
        descriptor = self._open()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = descriptor
        if _place(descriptor) != self._place:
            self._place, self._num_written = _place(descriptor), 0

    def _keep(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._warn(
                f"{self._path} cannot be written: {error.strerror}. Training goes on, and what is missing there is written when it can"
                " be; make room on that disk."
            )
        # Not the first one, of which a part may be in the file.
        while len(self._waiting) > 1 and self._waiting_bytes > self._room:
            self._waiting_bytes -= len(self._waiting[1])
            del self._waiting[1]
            self._num_dropped += 1

    def _recover(self) -> None:
        if self._is_failing:
            lost = f"; {self._num_dropped} of its records are lost" if self._num_dropped else ", nothing is missing"
            self._warn(f"{self._path} can be written again{lost}")
            self._is_failing, self._num_dropped = False, 0


def _place(descriptor: int) -> tuple[int, int, int]:
    """Which file it is, and where that ends."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size
