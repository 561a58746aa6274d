"""A small HTTP server of in-memory files that answers ranges and may pass for a bucket: enough for tests without a process."""

import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from tests.data.loopback import Loopback


class RangeServer(Loopback):
    """Serves `files` (path without the leading slash -> bytes) on `port` of the loopback."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        super().__init__(_Server(self))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, owner: RangeServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        content = self.server.owner.files.get(unquote(self.path).lstrip("/"))
        if content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, content)
            return
        first, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
        if first >= len(content):
            self._answer(416, b"")
            return
        self._answer(206, content[first:stop], content_range=f"bytes {first}-{stop - 1}/{len(content)}")

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, *, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Mon, 05 Jan 2026 00:00:00 GMT")
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""
