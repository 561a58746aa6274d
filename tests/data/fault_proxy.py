"""A proxy that stands before a real HTTP server and spoils the answers it is told to: the faults of networks and object stores."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.data.loopback import Loopback


@dataclass(frozen=True)
class Status:
    """Answer with an HTTP status (and body) of the proxy's own."""

    code: int
    body: bytes = b"<Error><Code>SlowDown</Code></Error>"


@dataclass(frozen=True)
class Truncate:
    """Announce the whole body, send this share of it and close the connection."""

    share: float = 0.5


@dataclass(frozen=True)
class Short:
    """A well-formed answer that says it is the whole range and holds this share of it."""

    share: float = 0.5


@dataclass(frozen=True)
class Flip:
    """Turn over a bit in the middle of the body."""


@dataclass(frozen=True)
class Delay:
    """Wait, then answer as the server does."""

    seconds: float


@dataclass(frozen=True)
class Reset:
    """Reset the connection instead of answering."""


@dataclass(frozen=True)
class WholeFile:
    """Answer 200 with the whole file, as servers without ranges do."""


Fault = Status | Truncate | Short | Flip | Delay | Reset | WholeFile


class FaultProxy(Loopback):
    """Forwards to `127.0.0.1:upstream_port`; the next answers to GET and HEAD suffer the faults given to `inject`, one each."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self._lock = threading.Lock()
        self._faults: list[Fault | None] = []
        self.requests: list[str] = []
        """Method and path of every request, as they came."""
        super().__init__(_Server(self))

    def inject(self, faults: Iterable[Fault | None]) -> None:
        """Replace the pending faults (None: an answer without) and forget the requests so far."""
        with self._lock:
            self._faults, self.requests = list(faults), []

    def next_fault(self, request: str) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            return self._faults.pop(0) if self._faults else None

    def forward(self, method: str, path: str, *, headers: Mapping[str, str], body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """The server's answer and its body. The Host header is kept: request signatures cover it."""
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=30)
        try:
            upstream.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body or None)
            response = upstream.getresponse()
            return response, response.read()
        finally:
            upstream.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up in the middle of an answer are what this proxy is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: two would wait for each other (delayed acknowledgements)
    server: _Server

    def do_GET(self) -> None:
        fault = self.server.proxy.next_fault(f"{self.command} {self.path}")
        match fault:
            case Reset():
                self._reset()
                return
            case Status(code=code, body=body):
                self._answer(code, headers={"Content-Type": "application/xml"}, body=body)
                return
            case Delay(seconds=seconds):
                time.sleep(seconds)
        self._relay(fault)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self._relay(None)

    do_POST = do_DELETE = do_PUT

    def _relay(self, fault: Fault | None) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = dict(self.headers.items())
        if isinstance(fault, WholeFile):
            headers = {name: value for name, value in headers.items() if name.lower() != "range"}
        response, answer = self.server.proxy.forward(self.command, self.path, headers=headers, body=body)
        kept = {name: value for name, value in response.getheaders() if name.lower() not in ("connection", "transfer-encoding", "date")}
        if isinstance(fault, Short):
            answer = answer[: int(len(answer) * fault.share)]
            kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
        if isinstance(fault, Flip):
            middle = len(answer) // 2
            answer = answer[:middle] + bytes([answer[middle] ^ 16]) + answer[middle + 1 :]
        sent = answer[: int(len(answer) * fault.share)] if isinstance(fault, Truncate) else answer
        self._answer(response.status, headers=kept, body=sent, announced=len(answer))

    def _answer(self, code: int, *, headers: Mapping[str, str], body: bytes, announced: int | None = None) -> None:
        self.send_response(code)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        announced = len(body) if announced is None else announced
        # The length of what a HEAD asks about is the file's, not that of the empty body.
        length = headers.get("Content-Length", str(announced)) if self.command == "HEAD" else str(announced)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if len(body) < announced:
            self.close_connection = True

    def _reset(self) -> None:
        # A linger time of zero makes close() send a reset instead of a clean end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""
