"""Which faults a rehearsal makes, on which rank and in which order: a function of its seed."""

import enum
import itertools
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitscale.config import UsageError

from .link import why_not

_ROOMY_BYTES = 2 * 2**30
_SHOWN = 10
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 1.5


class FaultKind(enum.StrEnum):
    """What can be done to a run."""

    KILL = "kill"
    STOP = "stop"
    HANG = "hang"
    SLOW = "slow"
    DISK_FULL = "disk-full"
    BIT_FLIP = "bit-flip"
    NAN = "nan"
    NETWORK = "network"


ENDS_ATTEMPT = frozenset({FaultKind.KILL, FaultKind.STOP, FaultKind.HANG})
"""After these no rank trains until the workers were started again."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault to come: `pause_seconds` after all ranks train."""

    kind: FaultKind
    rank: int
    pause_seconds: float


@dataclass(frozen=True, kw_only=True)
class ChaosPlan:
    """What the user asks for. `rank` None: another one each time. `count` None: until the run is at its end. `seconds` is how long
    slow, disk-full and network last, `factor` how many times as long the steps of a slow rank take."""

    kinds: tuple[FaultKind, ...]
    every_seconds: float
    num_workers: int
    seed: int = 0
    rank: int | None = None
    count: int | None = None
    seconds: float = 10.0
    factor: float = 10.0
    interface: str | None = None

    def faults(self) -> Iterator[Fault]:
        """In order: each kind once, shuffled, then each again. Pauses vary around `every_seconds`, by half of it."""
        rng = random.Random(self.seed)
        made = 0
        while True:
            for kind in rng.sample(self.kinds, len(self.kinds)):
                if made == self.count:
                    return
                rank = rng.randrange(self.num_workers)
                pause = self.every_seconds * rng.uniform(_SHORTEST_PAUSE, _LONGEST_PAUSE)
                yield Fault(kind=kind, rank=rank if self.rank is None else self.rank, pause_seconds=pause)
                made += 1


def check_plan(plan: ChaosPlan, *, run_dir: Path, is_watched: bool, is_local: bool, may_fill_disk: bool) -> None:
    """Raise `UsageError` for what cannot be done, or would disturb others. Where the run is not on this machine (`is_local`), what
    the others allow is seen when it is tried."""
    if not is_watched:
        raise UsageError(
            "watch.hang_seconds: null leaves the ranks without watchdogs, which tell a rehearsal whether they train and in which processes;"
            " leave it at auto, or give seconds"
        )
    if not plan.kinds:
        raise UsageError(f"--fault: say which, one or more of {', '.join(FaultKind)}")
    if plan.rank is not None and plan.rank >= plan.num_workers:
        raise UsageError(f"--rank {plan.rank}: there are {plan.num_workers} workers; give a rank from 0 to {plan.num_workers - 1}")
    if FaultKind.DISK_FULL in plan.kinds and not may_fill_disk:
        _check_disk(run_dir)
    if FaultKind.NETWORK in plan.kinds:
        _check_network(plan.interface, is_local=is_local)


def describe_faults(plan: ChaosPlan) -> str:
    """The first faults, as a dry run shows them."""
    shown = [f"  {fault.kind} on rank {fault.rank}, {fault.pause_seconds:.0f} s later" for fault in itertools.islice(plan.faults(), _SHOWN)]
    more = "" if plan.count is not None and plan.count <= _SHOWN else "\n  ..."
    return "faults, each after all ranks train:\n" + "\n".join(shown) + more + "\n"


def _check_disk(run_dir: Path) -> None:
    folder = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free >= _ROOMY_BYTES:
        raise UsageError(
            f"--fault disk-full: the file system of {run_dir} has {free / 2**30:.1f} GiB free, which others may need while it is full;"
            " set output to a small file system of its own, for example a tmpfs of 1 GiB, or add --yes"
        )


def _check_network(interface: str | None, *, is_local: bool) -> None:
    if interface is None:
        raise UsageError("--fault network: say which one with --interface NAME (`ip link` lists them)")
    reason = why_not(interface) if is_local else None
    if reason is not None:
        raise UsageError(f"--fault network --interface {interface}: {reason}")
