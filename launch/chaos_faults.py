"""How each fault of a rehearsal is done: signals to a rank's process, requests to the rank itself, a full disk, a dead link."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vitscale.config import UserError
from vitscale.train.faults import INNER_FAULTS, FaultRequest, read_receipt, request_fault
from vitscale.train.hang_rules import RankState
from vitscale.train.progress import read_progress

from .chaos_plan import ChaosPlan, Fault, FaultKind
from .remote import ClusterProcess, Connection

_SIGNALS = {FaultKind.KILL: signal.SIGKILL, FaultKind.STOP: signal.SIGSTOP}
_LEFT_FREE_BYTES = 2**20
"""The logs need some: a run that cannot write its ledger ends, with or without a rehearsal."""
_SMALLEST_PART_BYTES = 2**16
_SECONDS_FOR_RECEIPT = 60.0


@dataclass(frozen=True, kw_only=True)
class Injection:
    """A fault that was done: when, by this machine's clock, and after which step, as far as was known."""

    kind: FaultKind
    rank: int
    time: float
    step: int


class FaultNotDone(Exception):
    """Why a fault could not be done now. The rehearsal goes on with the next one."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Does faults to the run in `run_dir`. `wait` sleeps, and returns at once where the rehearsal is over. `signals` reaches
    processes of other machines; None where all ranks are on this one."""

    run_dir: Path
    plan: ChaosPlan
    wait: Callable[[float], bool]
    signals: "RemoteSignals | None" = None

    def do(self, fault: Fault, *, tell: Callable[[Injection], None]) -> None:
        """Do it, and `tell` as soon as it has begun. Returns when a full disk or a dead link is over. Raises `FaultNotDone`."""
        if fault.kind in INNER_FAULTS:
            tell(self._ask_rank(fault))
            return
        if fault.kind in _SIGNALS:
            begun = self._injection(fault)
            self._signal(_SIGNALS[fault.kind], rank=fault.rank)
            tell(begun)
            return
        with self._lasting(fault):
            tell(self._injection(fault))
            self.wait(self.plan.seconds)

    def _injection(self, fault: Fault) -> Injection:
        return Injection(kind=fault.kind, rank=fault.rank, time=time.time(), step=read_progress(self.run_dir).reached)

    def _lasting(self, fault: Fault) -> contextlib.AbstractContextManager[object]:
        if fault.kind is FaultKind.DISK_FULL:
            return full_disk(self.run_dir)
        assert fault.kind is FaultKind.NETWORK, fault.kind
        assert self.plan.interface is not None, "checked before"
        return dead_link(self.plan.interface, seconds=self.plan.seconds)

    def _signal(self, number: signal.Signals, *, rank: int) -> None:
        state = read_state(self.run_dir, rank)
        if state is None:
            raise FaultNotDone(f"rank {rank} has shown no sign of life")
        if self.signals is not None and state.host != os.uname().nodename:
            self.signals.send(number, pid=state.pid, host=state.host)
            return
        try:
            os.kill(state.pid, number)
        except OSError as error:
            raise FaultNotDone(f"process {state.pid} of rank {rank} cannot be signalled: {error.strerror}") from None

    def _ask_rank(self, fault: Fault) -> Injection:
        kind = next(kind for kind in INNER_FAULTS if kind == fault.kind)
        request = FaultRequest(id=uuid.uuid4().hex, kind=kind, seconds=self.plan.seconds, factor=self.plan.factor - 1)
        try:
            request_fault(self.run_dir, request, rank=fault.rank)
        except OSError as error:
            raise FaultNotDone(f"{error.filename} cannot be written: {error.strerror}") from None
        deadline = time.monotonic() + _SECONDS_FOR_RECEIPT
        while time.monotonic() < deadline:
            receipt = read_receipt(self.run_dir, rank=fault.rank)
            if receipt is not None and receipt.id == request.id:
                return Injection(kind=fault.kind, rank=fault.rank, time=receipt.time, step=receipt.step)
            if self.wait(0.1):
                raise FaultNotDone("the run ended before the rank had looked")
        raise FaultNotDone(f"rank {fault.rank} has not looked at its request for {_SECONDS_FOR_RECEIPT:.0f} seconds")


class RemoteSignals:
    """Signals to processes of other machines, over a connection to Ray of its own: the run's waits for its workers."""

    def __init__(self, address: str) -> None:
        self._connection = Connection(ClusterProcess(), address=address, num_cpus=0)
        self._is_joined = False

    def send(self, number: signal.Signals, *, pid: int, host: str) -> None:
        """Raises `FaultNotDone`."""
        try:
            if not self._is_joined:
                self._connection.join()
                self._is_joined = True
            if not self._connection.is_there():
                raise FaultNotDone("the Ray cluster does not answer")
        except UserError as error:
            raise FaultNotDone(str(error)) from None
        answer = self._connection.ask({"do": "signal", "number": int(number), "pid": pid, "host": host})
        if answer is not None:
            raise FaultNotDone(f"process {pid} on {host} cannot be signalled: {answer}")

    def close(self) -> None:
        """Leave the cluster."""
        self._connection.close()


def read_state(run_dir: Path, rank: int) -> RankState | None:
    """What the rank's watchdog has published last, if anything."""
    try:
        return RankState.from_json((run_dir / "heartbeats" / f"rank-{rank:05d}.json").read_text())
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def full_disk(folder: Path, *, left_bytes: int = _LEFT_FREE_BYTES) -> Iterator[int]:
    """Leave so much and no more free on the file system of `folder`; yields the bytes taken. The file that takes them has no name, so
    it is gone with this process however that ends. Raises `FaultNotDone`."""
    try:
        ballast = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    except OSError as error:
        raise FaultNotDone(f"the disk of {folder} cannot be filled: {error.strerror}") from None
    with ballast:
        yield _fill(ballast, folder, left_bytes=left_bytes)


def _fill(ballast: IO[bytes], folder: Path, *, left_bytes: int) -> int:
    filled, part = 0, shutil.disk_usage(folder).free
    while part >= _SMALLEST_PART_BYTES:
        part = min(part, shutil.disk_usage(folder).free - left_bytes)
        if part <= 0:
            break
        try:
            os.posix_fallocate(ballast.fileno(), filled, part)
            filled += part
        except OSError:
            part //= 2  # what a file system says is free is not always to be had
    return filled


@contextlib.contextmanager
def dead_link(interface: str, *, seconds: float) -> Iterator[None]:
    """Take a network interface down for `seconds`. A process of its own brings it up again, whatever becomes of this one."""
    program = 'ip link set "$0" down || exit 1; sleep "$1"; ip link set "$0" up'
    process = subprocess.Popen(["sh", "-c", program, interface, str(seconds)], start_new_session=True, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        _, message = process.communicate()
        if process.returncode:
            raise FaultNotDone(f"{interface} cannot be taken down: {message.decode().strip()}")
