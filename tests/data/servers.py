"""Real servers on the loopback, each in a process of its own: moto's S3 and nginx."""

import contextlib
import http.client
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import obstore
from obstore.store import S3Store

BUCKET = "bucket"

_START_SECONDS = 60
_NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

_NGINX_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def has_nginx() -> bool:
    """Whether nginx is installed."""
    return _NGINX is not None


@contextlib.contextmanager
def moto_server() -> Iterator[int]:
    """The port of an S3 server that holds one empty bucket; any credentials pass until `demand_credentials`."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with _stopped(process):
        _wait_for(port, process)
        _send(port, "PUT", f"/{BUCKET}", b"")
        yield port


def upload(port: int, files: Mapping[str, bytes]) -> None:
    """Put objects into the bucket."""
    for name, content in files.items():
        _send(port, "PUT", f"/{BUCKET}/{name}", content)


def overwrite(files: Mapping[str, bytes]) -> None:
    """Put objects where others lie, with the endpoint and the credentials of the environment: without any the server refuses."""
    store = S3Store(BUCKET, client_options={"allow_http": True})
    for name, content in files.items():
        obstore.put(store, name, content)


def demand_credentials(port: int, *, demand: bool) -> None:
    """Whether the server checks the credentials of every request from now on."""
    _send(port, "POST", "/moto-api/reset-auth", b"0" if demand else b"inf")


@contextlib.contextmanager
def nginx_server(root: Path, *, work: Path) -> Iterator[int]:
    """The port of an HTTP server of the files under `root`; `work` is an empty folder for its own."""
    assert _NGINX is not None, "has_nginx"
    port = _free_port()
    config = work / "nginx.conf"
    config.write_text(_NGINX_CONFIG.format(folder=work, root=root, port=port))
    process = subprocess.Popen([_NGINX, "-p", str(work), "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with _stopped(process):
        _wait_for(port, process)
        yield port


@contextlib.contextmanager
def _stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)


def _send(port: int, method: str, path: str, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body=body, headers={"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        response.read()
        assert response.status == 200, (method, path, response.status)
    finally:
        connection.close()
