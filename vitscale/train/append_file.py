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
        self._num_dropped = 0
        self._is_failing = False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, record: bytes, *, durably: bool = False) -> None:
        """Append a record; with `durably`, it survives a crash of the machine."""
        self._waiting.append(record)
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

    def _flush(self, *, durably: bool) -> None:
        while self._waiting:
            written = os.write(self._descriptor, self._waiting[0])
            rest = self._waiting.popleft()[written:]
            if rest:
                self._waiting.appendleft(rest)
        if durably:
            os.fsync(self._descriptor)

    def _keep(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._warn(
                f"{self._path} cannot be written: {error.strerror}. Training goes on, and what is missing there is written when it can"
                " be; make room on that disk."
            )
        # Not the first one, of which a part may be in the file.
        while len(self._waiting) > 1 and sum(map(len, self._waiting)) > self._room:
            del self._waiting[1]
            self._num_dropped += 1

    def _recover(self) -> None:
        if self._is_failing:
            lost = f"; {self._num_dropped} of its records are lost" if self._num_dropped else ", nothing is missing"
            self._warn(f"{self._path} can be written again{lost}")
            self._is_failing, self._num_dropped = False, 0
