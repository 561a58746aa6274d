"""A proxy before a real object store that spoils the requests which write."""

import http.client
import threading
from collections.abc import Callable, Iterable, Mapping

from tests.data.fault_proxy import FaultProxy

Hook = Callable[[str], None]
"""Called with the method and path of a request that writes, before the server sees it."""


class RefusedWrites:
    """A server's answer to a write that it did not do."""

    def __init__(self, status: int, code: str) -> None:
        self.status = status
        self.body = f"<Error><Code>{code}</Code></Error>".encode()

    def getheaders(self) -> list[tuple[str, str]]:
        return [("Content-Type", "application/xml")]


class WriteFaultProxy(FaultProxy):
    """Forwards to `127.0.0.1:upstream_port`; the next writes get the answers given to `refuse`, one each (None: the server's)."""

    def __init__(self, upstream_port: int) -> None:
        self._write_lock = threading.Lock()
        self._answers: list[RefusedWrites | None] = []
        self._hook: Hook = lambda _: None
        self.writes: list[str] = []
        """Method and path of every request that writes, as they came."""
        super().__init__(upstream_port)

    def refuse(self, answers: Iterable[RefusedWrites | None], *, hook: Hook = lambda _: None) -> None:
        """Replace the pending answers and the hook, and forget the writes so far."""
        with self._write_lock:
            self._answers, self._hook, self.writes = list(answers), hook, []

    def forward(self, method: str, path: str, *, headers: Mapping[str, str], body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        if method not in ("GET", "HEAD"):
            with self._write_lock:
                self.writes.append(f"{method} {path}")
                answer = self._answers.pop(0) if self._answers else None
            self._hook(f"{method} {path}")
            if answer is not None:
                return answer, answer.body  # type: ignore[return-value]
        return super().forward(method, path, headers=headers, body=body)
