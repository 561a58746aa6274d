"""What ends a run early: a request to stop, which all ranks must agree on, and a loss that is no longer a number."""

import enum
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist

from vitscale.dist.collectives import is_distributed

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Verdict(enum.IntEnum):
    """What the ranks do after a step: the gravest that any of them votes for."""

    GO_ON = 0
    STOP = 1
    """Somebody asked for it."""
    FAIL = 2
    """A rank cannot do the next step."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of a vote: what all ranks do next, and how many saves every one of them has written its part of."""

    verdict: Verdict
    parts_written: int


class StopRequest:
    """Turns SIGTERM, SIGINT and SIGUSR1, a step given beforehand, what others ask through `sources`, or a failure of one rank
    into one decision that every rank takes at the same step.

    A signal reaches ranks at different times, and a rank that ended by itself would leave the others waiting for it in the next
    collective. So after each step, when each has its batch for the next one, they vote over a host-side group. A second signal
    acts as if nobody had listened: it ends the process at once.
    """

    def __init__(self, *, stop_at_step: int | None = None, sources: Sequence[Callable[[], bool]] = ()) -> None:
        """Each of `sources` says whether the run is to stop. They are asked after each step and may answer differently on
        different ranks; one of them on one rank suffices."""
        self._stop_at_step = stop_at_step
        self._sources = tuple(sources)
        self._asked = threading.Event()
        self._group = dist.new_group(backend="gloo") if is_distributed() else None
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        # Ray runs training in a thread, where Python allows no handlers; Ray then decides about signals.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}

    def is_reached(self, step: int) -> bool:
        """Whether the step given beforehand is done."""
        return self._stop_at_step is not None and step >= self._stop_at_step

    def vote(self, step: int | None, *, failed: bool, parts_written: int = 0) -> Outcome:
        """What all ranks do after this step, or None: within the evaluation that follows it, where a step given beforehand no longer
        counts; `failed` says that this one cannot go on, `parts_written` counts the saves of which
        it has written its part. All ranks must call this alike."""
        asked = (step is not None and self.is_reached(step)) or self._asked.is_set() or any(source() for source in self._sources)
        mine = Verdict.FAIL if failed else Verdict.STOP if asked else Verdict.GO_ON
        # One reduction for both: the gravest verdict, and through its sign the least number of parts.
        ballot = torch.tensor([int(mine), -parts_written])
        if self._group is not None:
            dist.all_reduce(ballot, op=dist.ReduceOp.MAX, group=self._group)
        verdict, fewest = ballot.tolist()
        return Outcome(verdict=Verdict(verdict), parts_written=-fewest)

    def close(self) -> None:
        """Give the signals back."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked.set()
        for other, handler in self._previous.items():
            signal.signal(other, handler)


@dataclass(frozen=True, kw_only=True)
class NonFinite:
    """The first step that went wrong, and what was not finite in it."""

    step: int
    what: str


def non_finite_message(found: NonFinite, *, sample_ids: Sequence[int], newest_checkpoint: str) -> str:
    """What the user reads: the step, the samples of its batch, the newest good checkpoint and what to try."""
    shown = ", ".join(str(i) for i in sample_ids[:16])
    if len(sample_ids) > 16:
        shown += f", ... ({len(sample_ids)} in all, listed in events.jsonl)"
    return (
        f"step {found.step}: {found.what}. Training stopped and kept nothing of this step or later; the newest good checkpoint is"
        f" {newest_checkpoint}. The sample ids of the step's batch: {shown}. Look at these samples, lower optim.lr or lengthen"
        " the warm-up; the same command goes on from that checkpoint."
    )
