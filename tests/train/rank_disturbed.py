"""Trains runs that are disturbed in the middle, one after the other in one process group; run by test_disturbed_runs.py.

Arguments: root folder, then a JSON list of jobs {"overrides": [...], "do": what or null, "after": step}. On rank 1, or the only one.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from tests.collector import skip_imports
from tests.train.tiny_run import tiny_config
from vitscale import api
from vitscale.checkpoint.saver import CheckpointSaver
from vitscale.config import UserError
from vitscale.engine.engine import Engine
from vitscale.train.faults import hang_holding_the_interpreter
from vitscale.train.run import Run
from vitscale.train.watch import Watch
from vitscale_launch.chaos_faults import full_disk

SLOW_SECONDS = 0.1


def main() -> None:
    """Do the jobs; print of each how it ended, the seconds of its training and those of them that watching took."""
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        dist.init_process_group("gloo")
    skip_imports()
    root = Path(sys.argv[1])
    print(json.dumps([_do(root, job) for job in json.loads(sys.argv[2])]))
    if dist.is_initialized():
        dist.destroy_process_group()


def _do(root: Path, job: dict[str, Any]) -> dict[str, float]:
    config = tiny_config(root, *job["overrides"])
    is_mine = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    # torchrun's second start goes undisturbed.
    does = is_mine and job["do"] is not None and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    watching = Stopwatch()
    code = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(watching.measuring(Watch, "beat", "judge", "own_seconds"))
        if does:
            stack.enter_context(DISTURBANCES[job["do"]](job["after"], config.run_dir))
        begin = time.perf_counter()
        try:
            api.train(config)
        except UserError as error:
            code = error.exit_code
    return {"code": code, "seconds": time.perf_counter() - begin, "watching_seconds": watching.seconds}


class Stopwatch:
    """Adds up the seconds spent in methods."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def measuring(self, owner: type, *names: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, self._timed(getattr(owner, name))))
            yield

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def in_each_update(disturb: Callable[[int], None]) -> contextlib.AbstractContextManager[object]:
    """Calls `disturb` with the number of the step, in its middle: between the gradient and the update."""
    update, train_step = Engine._update, Engine.train_step
    steps: list[int] = []

    def counted(engine: Engine, *args: Any, step: int, **kwargs: Any) -> Any:
        steps.append(step + 1)
        return train_step(engine, *args, step=step, **kwargs)

    def disturbed(engine: Engine, lr: float) -> Any:
        disturb(steps[-1])
        return update(engine, lr)

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Engine, "train_step", counted))
    stack.enter_context(mock.patch.object(Engine, "_update", disturbed))
    return stack


def once_at(step: int, action: Callable[[], object]) -> contextlib.AbstractContextManager[object]:
    return in_each_update(lambda now: action() if now == step else None)


def signal_in_step(number: signal.Signals) -> Callable[[int, Path], contextlib.AbstractContextManager[object]]:
    return lambda step, _: once_at(step, lambda: os.kill(os.getpid(), number))


def signal_in_save(number: signal.Signals) -> Callable[[int, Path], contextlib.AbstractContextManager[object]]:
    """At the first fsync of the save of that step, in whichever thread it happens."""
    return lambda step, _: _signal_at_sync(step, number)


@contextlib.contextmanager
def _signal_at_sync(step: int, number: signal.Signals) -> Iterator[None]:
    begin, fsync = CheckpointSaver.begin, os.fsync
    armed: list[int] = []

    def arming(saver: CheckpointSaver, *, step: int, **kwargs: Any) -> Any:
        armed.extend([step] * (step == wanted))
        return begin(saver, step=step, **kwargs)

    def signalling(descriptor: int) -> None:
        if armed:
            armed.clear()
            os.kill(os.getpid(), number)
        fsync(descriptor)

    wanted = step
    with mock.patch.object(CheckpointSaver, "begin", arming), mock.patch.object(os, "fsync", signalling):
        yield


def slow(step: int, _: Path) -> contextlib.AbstractContextManager[object]:
    return in_each_update(lambda now: time.sleep(SLOW_SECONDS) if now >= step else None)


@contextlib.contextmanager
def full_for_a_while(step: int, run_dir: Path) -> Iterator[None]:
    """The disk is full from this step on, for 20 steps."""
    with contextlib.ExitStack() as ballast:

        def disturb(now: int) -> None:
            if now == step:
                # Less than a save of the tiny run needs, more than its logs.
                assert ballast.enter_context(full_disk(run_dir, left_bytes=200_000)) > 0
            elif now == step + 20:
                ballast.close()

        with in_each_update(disturb):
            yield


def absent(step: int, _: Path) -> contextlib.AbstractContextManager[object]:
    """Does not come to the vote of that step, where the others wait."""
    vote = Run.vote

    def missed(run: Run, state: Any, *, failed: bool) -> Any:
        if state.step == step:
            time.sleep(1000.0)
        return vote(run, state, failed=failed)

    return mock.patch.object(Run, "vote", missed)


DISTURBANCES: dict[str, Callable[[int, Path], contextlib.AbstractContextManager[object]]] = {
    **{f"{name} in step": signal_in_step(signal.Signals[name]) for name in ("SIGTERM", "SIGUSR1")},
    **{f"{name} in save": signal_in_save(signal.Signals[name]) for name in ("SIGTERM", "SIGUSR1")},
    "slow": slow,
    "full": full_for_a_while,
    "absent": absent,
    "stopped": lambda step, _: once_at(step, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "locked": lambda step, _: once_at(step, hang_holding_the_interpreter),
}

if __name__ == "__main__":
    main()
