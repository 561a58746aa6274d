"""What not every machine has or allows: each helper here skips its test where a probe, which runs nothing of ours, finds it missing.

Whatever fails after that fails its test: no test skips itself for what the code under test says.
"""

import contextlib
import functools
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vitscale.data.images.turbojpeg import LIBRARY_VARIABLE

needs_turbojpeg = pytest.mark.skipif(
    platform.machine() != "x86_64" and LIBRARY_VARIABLE not in os.environ,
    reason=f"the turbojpeg wheel is for x86_64 only, and {LIBRARY_VARIABLE} names no other library",
)
"""For tests of libturbojpeg 3, which comes with the development requirements on x86_64."""


def with_tmpfs(folder: Path, *, size: str) -> tuple[str, ...]:
    """The beginning of a command whose process, and no other, sees an empty tmpfs of `size` (as in "64m") on `folder`."""
    _require("mount a tmpfs", _cannot_mount())
    return _with_tmpfs(folder, size=size)


@contextlib.contextmanager
def mounted_tmpfs(folder: Path, *, size: str) -> Iterator[None]:
    """An empty tmpfs of `size` on `folder` that this process sees too."""
    _require("mount a tmpfs", _cannot_mount())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def with_injection(call: str, *, error: str, file: Path) -> tuple[str, ...]:
    """The beginning of a command whose system calls of this name on `file` fail, with strace's `error` (as in "EIO" or "EIO:when=1")."""
    assert call in _INJECTED_CALLS, f"the probe does not try {call}"
    _require("inject errors into system calls", _cannot_inject())
    return _with_injection((call,), error=error, file=file)


def with_network() -> tuple[str, ...]:
    """The beginning of a command that has a network of its own, in which it may make interfaces."""
    _require("make networks and interfaces", _cannot_make_interfaces())
    return _OWN_NETWORK


def require_named_networks() -> None:
    """For tests whose machines are network namespaces with names, on a bridge."""
    _require("make named network namespaces on a bridge", _cannot_name_networks())


_INJECTED_CALLS = ("write", "fsync", "pread64")
_INJECTED_PROBE = """
import errno, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for call in (lambda: os.write(file, b"x"), lambda: os.fsync(file), lambda: os.pread(file, 1, 0)):
    try:
        call()
    except OSError as error:
        assert error.errno == errno.EIO
    else:
        sys.exit("strace did not inject an error")
"""

_OWN_NETWORK = ("unshare", "-n")
_INTERFACE_PROBE = "ip link add probe type veth peer name other && ip link set probe up"
_NAMED_PROBE = """
trap 'ip link del "$0"; ip netns del "$0"' EXIT
ip link add "$0" type bridge && ip netns add "$0" && ip link add "${0}c" type veth peer name eth0 netns "$0" &&
    ip link set "${0}c" master "$0" up && ip netns exec "$0" ip link set eth0 up
"""


@functools.cache
def _cannot_mount() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        return _problem([*_with_tmpfs(Path(folder), size="64k"), "touch", f"{folder}/file"])


@functools.cache
def _cannot_inject() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "file")
        program = (sys.executable, "-I", "-S", "-c", _INJECTED_PROBE, str(file))
        return _problem([*_with_injection(_INJECTED_CALLS, error="EIO", file=file), *program])


@functools.cache
def _cannot_make_interfaces() -> str | None:
    return _problem([*_OWN_NETWORK, "sh", "-c", _INTERFACE_PROBE])


@functools.cache
def _cannot_name_networks() -> str | None:
    return _problem(["sh", "-c", _NAMED_PROBE, f"v{secrets.token_hex(3)}"])


def _with_tmpfs(folder: Path, *, size: str) -> tuple[str, ...]:
    return ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o "size=$0" tmpfs "$1" && shift && exec "$@"', size, str(folder))


def _with_injection(calls: Sequence[str], *, error: str, file: Path) -> tuple[str, ...]:
    names = ",".join(calls)
    # With the filter in the kernel, all other calls run at full speed.
    strace = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-P", str(file))
    return (*strace, "-e", f"trace={names}", "-e", f"inject={names}:error={error}")


def _require(what: str, problem: str | None) -> None:
    if problem is not None:
        pytest.skip(f"this machine does not let a test {what}: {problem}")


def _problem(command: Sequence[str]) -> str | None:
    """What went wrong with a command; None if nothing did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, PermissionError) as error:
        return str(error)
    return None if done.returncode == 0 else f"{command[0]} ended with {done.returncode}: {' '.join(done.stderr.split())}"
