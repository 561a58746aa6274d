"""Faults that a rank brings upon itself because a rehearsal asks for them, through a small file of the run directory."""

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from vitscale.train.run_dir import replace_text

InnerFault = Literal["hang", "slow", "bit-flip", "nan"]
INNER_FAULTS: tuple[InnerFault, ...] = get_args(InnerFault)
"""What only the process itself can do."""

_FOLDER = "chaos"
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, kw_only=True)
class FaultRequest:
    """What a rank is asked to do. `slow`: to sleep `factor` times its step's time after each step, for `seconds`."""

    id: str
    kind: InnerFault
    seconds: float = 0.0
    factor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FaultReceipt:
    """That a rank has begun to do it: after which step, and when."""

    id: str
    step: int
    time: float


def request_fault(run_dir: Path, request: FaultRequest, *, rank: int) -> None:
    """Ask a rank for a fault; one that it has not begun yet is replaced. Raises `OSError`."""
    replace_text(_request_path(run_dir, rank), json.dumps(dataclasses.asdict(request)) + "\n")


def read_receipt(run_dir: Path, *, rank: int) -> FaultReceipt | None:
    """What the rank began last, if anything."""
    try:
        return FaultReceipt(**json.loads(_receipt_path(run_dir, rank).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def forget_requests(run_dir: Path) -> None:
    """Remove all requests and receipts."""
    shutil.rmtree(run_dir / _FOLDER, ignore_errors=True)


class Breakable(Protocol):
    """What an engine can do wrong on purpose. Not the class itself: who asks for faults need not import DeepSpeed."""

    def flip_weight_bit(self) -> str:
        """See `Engine.flip_weight_bit`."""

    def poison_next_gradient(self) -> None:
        """See `Engine.poison_next_gradient`."""


class FaultHook:
    """A rank's side: looks for requests, at most twice a second. Only runs that a rehearsal has started have one."""

    def __init__(self, run_dir: Path, *, rank: int, engine: Breakable, clock: Callable[[], float] = time.monotonic) -> None:
        self._run_dir, self._rank, self._engine, self._clock = run_dir, rank, engine, clock
        self._next_look = clock()
        self._last_step_ended = clock()
        self._slow: FaultRequest | None = None
        self._slow_until = 0.0

    def after_step(self, step: int) -> None:
        """Begin what is asked for, and go on with what was begun. Called between the update of a step and what is compared and saved."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + _SECONDS_BETWEEN_LOOKS
            request = _read_request(self._run_dir, self._rank)
            if request is not None:
                self._begin(request, step=step)
        if self._slow is not None:
            if now < self._slow_until:
                time.sleep(self._slow.factor * (now - self._last_step_ended))
            else:
                self._slow = None
        self._last_step_ended = self._clock()

    def _begin(self, request: FaultRequest, *, step: int) -> None:
        receipt = FaultReceipt(id=request.id, step=step, time=time.time())
        # In this order: a rank that dies in between does it again, instead of leaving the rehearsal waiting.
        replace_text(_receipt_path(self._run_dir, self._rank), json.dumps(dataclasses.asdict(receipt)) + "\n")
        _request_path(self._run_dir, self._rank).unlink(missing_ok=True)
        match request.kind:
            case "hang":
                hang_holding_the_interpreter()
            case "slow":
                self._slow, self._slow_until = request, self._clock() + request.seconds
            case "bit-flip":
                self._engine.flip_weight_bit()
            case "nan":
                self._engine.poison_next_gradient()


def hang_holding_the_interpreter() -> None:
    """Never returns, and lets no other thread of the process run: neither Python's signal handlers nor a watching thread."""
    re.match("(a+)+$", "a" * 60 + "b")  # in C, for years


def _read_request(run_dir: Path, rank: int) -> FaultRequest | None:
    try:
        return FaultRequest(**json.loads(_request_path(run_dir, rank).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _request_path(run_dir: Path, rank: int) -> Path:
    return run_dir / _FOLDER / f"rank-{rank:05d}.json"


def _receipt_path(run_dir: Path, rank: int) -> Path:
    return run_dir / _FOLDER / f"rank-{rank:05d}.begun.json"
