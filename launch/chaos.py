"""`vitscale-launch chaos`: a run that is trained as always, while another thread does faults to it."""

import threading
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vitscale.run_config import RunConfig
from vitscale.train.events_file import read_events
from vitscale.train.faults import forget_requests
from vitscale.train.goodput_report import read_goodput

from .chaos_faults import FaultNotDone, Faults, Injection, read_state
from .chaos_machines import RemoteMachines
from .chaos_plan import ENDS_ATTEMPT, ChaosPlan
from .chaos_summary import find_effects, format_summary
from .launcher import launch_training
from .ledger import LaunchLedger
from .remote import ClusterProcess
from .supervise import Policy

_SECONDS_BETWEEN_LOOKS = 0.2
_ENDS = ("worker_failed", "hang", "restart", "shrink", "wait", "gave_up", "ended", "finished", "corruption")
"""Events after which an attempt trains no more."""


def rehearse(
    config: RunConfig,
    *,
    plan: ChaosPlan,
    policy: Policy,
    address: str | None,
    allow_change: Collection[str] = (),
    debug: bool = False,
) -> None:
    """Train as `launch_training` does and do the faults of the plan meanwhile; then print what came of them.

    However the training ends: what it raises is raised after the summary.
    """
    chaos = Chaos(config.run_dir, plan=plan, machines=None if address is None else RemoteMachines(address))
    try:
        with chaos:
            launch_training(
                config,
                process=ClusterProcess(),
                policy=policy,
                address=address,
                allow_change=allow_change,
                rehearses_faults=True,
                debug=debug,
            )
    finally:
        if chaos.injections:
            effects = find_effects(chaos.injections, read_events(config.run_dir).events)
            print(format_summary(effects, read_goodput(config.run_dir)), end="", flush=True)
        else:
            print("no fault was done: the run ended before the first one was due", flush=True)


class Chaos:
    """Does the faults of a plan in a thread of its own, from `with` on."""

    def __init__(self, run_dir: Path, *, plan: ChaosPlan, machines: RemoteMachines | None) -> None:
        self.injections: list[Injection] = []
        """What was done so far."""
        self._run_dir, self._plan, self._machines = run_dir, plan, machines
        self._is_over = threading.Event()
        self._ledger = LaunchLedger(run_dir / "events.jsonl")
        self._faults = Faults(run_dir=run_dir, plan=plan, wait=self._is_over.wait, machines=machines)
        self._num_events = 0
        self._thread = threading.Thread(target=self._work, name="chaos")

    def __enter__(self) -> Self:
        forget_requests(self._run_dir)  # of an earlier rehearsal that was killed
        self._num_events = len(_events(self._run_dir))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()
        if self._machines is not None:
            self._machines.close()
        forget_requests(self._run_dir)

    def _work(self) -> None:
        for fault in self._plan.faults():
            if not self._wait_for_training() or self._is_over.wait(fault.pause_seconds) or not self._wait_for_training():
                return
            try:
                self._faults.do(fault, tell=self._note)
            except FaultNotDone as reason:
                self._ledger.event(
                    "fault_not_done", f"rehearsal: {fault.kind} on rank {fault.rank} was not done: {reason}", rank=fault.rank
                )

    def _note(self, injection: Injection) -> None:
        self.injections.append(injection)
        if injection.kind in ENDS_ATTEMPT:
            self._num_events = len(_events(self._run_dir))  # the next attempt begins after these
        message = f"rehearsal: {injection.kind} on rank {injection.rank}, after step {injection.step}"
        self._ledger.event("fault", message, rank=injection.rank, step=injection.step, reason=str(injection.kind))

    def _wait_for_training(self) -> bool:
        """Wait until all ranks train; False where the rehearsal is over before."""
        while not self._is_training():
            if self._is_over.wait(_SECONDS_BETWEEN_LOOKS):
                return False
        return not self._is_over.is_set()

    def _is_training(self) -> bool:
        """Whether the newest attempt has begun since the last fault that ends one, nothing has ended it, and its ranks live."""
        begun: dict[str, Any] | None = None
        for event in _events(self._run_dir)[self._num_events :]:
            if event["event"] in ("start", "resume"):
                begun = event
            elif event["event"] in _ENDS:
                begun = None
        if begun is None:
            return False
        states = [read_state(self._run_dir, rank) for rank in range(begun["world_size"])]
        return all(state is not None and not state.closed and state.phase != "start" for state in states) and (
            len({state.attempt for state in states if state is not None}) == 1
        )


def _events(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "events.jsonl"
    return list(read_events(run_dir).events) if path.exists() else []
