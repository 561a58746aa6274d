"""SIGTERM, SIGINT and SIGUSR1 to the command: the first one is remembered, the second one ends it at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """Listens from `with` on, in the main thread; elsewhere nothing is ever heard, because Python allows no handlers there."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._heard = threading.Event()
        self._previous = {}  # type: ignore[var-annotated]

    @property
    def reason(self) -> str | None:
        """The first signal's name."""
        return self._reason

    def wait(self, seconds: float) -> None:
        """Sleep, at most until the first signal."""
        self._heard.wait(seconds)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._reason is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self._reason = signal.Signals(number).name
        self._heard.set()
