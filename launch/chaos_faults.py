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
from typing import IO, Protocol

from vitscale.train.faults import INNER_FAULTS, FaultRequest, read_receipt, request_fault
from vitscale.train.hang_rules import RankState
from vitscale.train.progress import read_progress

from .chaos_plan import ChaosPlan, Fault, FaultKind
from .link import DOWN_AND_UP

_SIGNALS = {FaultKind.KILL: signal.SIGKILL, FaultKind.STOP: signal.SIGSTOP}
_LEFT_FREE_BYTES = 2**20
"""Logs and signs of life need some."""
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


class Machines(Protocol):
    """The machines of a cluster; see `RemoteMachines`, which does this."""

    def reach(self) -> None:
        """Be ready for what follows."""

    def signal(self, number: int, *, pid: int, host: str) -> None:
        """To a process of one of them."""

    def cut(self, interface: str, *, seconds: float, host: str) -> None:
        """One of them off."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Does faults to the run in `run_dir`. `wait` sleeps, and returns at once where the rehearsal is over. `machines` are where the
    ranks are; None where all are on this one."""

    run_dir: Path
    plan: ChaosPlan
    wait: Callable[[float], bool]
    machines: Machines | None = None

    def do(self, fault: Fault, *, tell: Callable[[Injection], None]) -> None:
        """Do it, and `tell` as soon as it has begun. Returns when a full disk or a dead link is over. Raises `FaultNotDone`."""
        if fault.kind in INNER_FAULTS:
            tell(self._ask_rank(fault))
            return
        if fault.kind in _SIGNALS:
            state = self._state(fault.rank)
            begun = self._injection(fault)
            self._signal(_SIGNALS[fault.kind], state=state)
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
        if self.machines is None:
            return dead_link(self.plan.interface, seconds=self.plan.seconds)
        self.machines.cut(self.plan.interface, seconds=self.plan.seconds, host=self._state(fault.rank).host)
        return contextlib.nullcontext()

    def _state(self, rank: int) -> RankState:
        """Of a rank whose machine is about to be asked for something."""
        if self.machines is not None:
            self.machines.reach()
        state = read_state(self.run_dir, rank)
        if state is None:
            raise FaultNotDone(f"rank {rank} has shown no sign of life")
        if state.closed:  # its process may be gone by now, and the number be another one's
            raise FaultNotDone(f"rank {rank} has ended")
        return state

    def _signal(self, number: signal.Signals, *, state: RankState) -> None:
        if self.machines is not None:
            self.machines.signal(number, pid=state.pid, host=state.host)
            return
        try:
            os.kill(state.pid, number)
        except OSError as error:
            raise FaultNotDone(f"process {state.pid} of rank {state.rank} cannot be signalled: {error.strerror}") from None

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
    process = subprocess.Popen(["sh", "-c", DOWN_AND_UP, interface, "0", str(seconds)], start_new_session=True, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        _, message = process.communicate()
        if process.returncode:
            raise FaultNotDone(f"{interface} cannot be taken down and up again: {message.decode().strip()}")
