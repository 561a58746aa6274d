"""What a rank waits for the others, and what it computes by itself: the measurements that tell a slow rank from its victims."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


def _nothing() -> None:
    pass


class CollectiveTime:
    """Counts the host seconds that this process waits in collectives, for about 1 microsecond a wait.

    DeepSpeed's collectives, torch's and our own all wait through one method, `torch.distributed.Work.wait`, which is replaced
    until `close`. Collectives over gloo are waited for on the host from begin to end, so there the seconds are exact: of two
    ranks the slower one waits less. Over NCCL a wait only orders streams and takes the host no time; `ForwardTime` measures
    there. `on_enter` and `on_leave` are called around each wait, in the thread that waits. All ranks make one at the same point.
    """

    def __init__(self, *, on_enter: Callable[[], None] = _nothing, on_leave: Callable[[], None] = _nothing) -> None:
        self.seconds = 0.0
        """In all collectives so far."""
        self.num_waits = 0
        self._on_enter = on_enter
        self._on_leave = on_leave
        self._original = dist.Work.wait
        self._replacement = self._timed(self._original)
        dist.Work.wait = self._replacement  # type: ignore[method-assign]

    def close(self) -> None:
        """Put torch's method back. May be called twice; the last one made is closed first."""
        if self._replacement is not None:
            assert dist.Work.wait is self._replacement, "somebody else has replaced Work.wait in the meantime"
            dist.Work.wait = self._original  # type: ignore[method-assign]
            self._replacement = None

    def _timed(self, original: Callable[..., Any]) -> Any:
        def wait(work: dist.Work, *args: Any, **kwargs: Any) -> Any:
            self._on_enter()
            begin = time.perf_counter()
            try:
                return original(work, *args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin
                self.num_waits += 1
                self._on_leave()

        return wait


class ForwardTime:
    """Seconds that the device spends on this rank's forward passes, by CUDA events: no waiting is added to the step.

    At ZeRO stages 0 to 2 a forward pass holds no collective, so its time is this rank's alone; a slow GPU, and a host too slow
    to feed it, show in it. The backward pass is left out, since gradients are reduced within it. At stage 3 parameters are
    gathered in the forward pass as well: no time of a single rank is known there, and none is given.
    """

    def __init__(self, *, device: torch.device, zero_stage: int) -> None:
        self._is_measured = device.type == "cuda" and zero_stage < 3
        self._passes: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Around a forward pass."""
        if not self._is_measured:
            yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._passes.append((begin, end))

    def take(self) -> float | None:
        """The seconds since the last call, None where they are not measured. Waits for the last forward pass; called at reports."""
        if not self._is_measured:
            return None
        passes, self._passes = self._passes, []
        for _, end in passes[-1:]:
            end.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in passes)) / 1000.0
