"""What runs in each Ray Train worker: read the configuration, train as everywhere else, report how it ended."""

import logging
import os
import sys
import time
from typing import Any

import torch.distributed as dist

from vitscale.api import train
from vitscale.config import StopRequested, UsageError, decode
from vitscale.run_config import RunConfig
from vitscale.train.run_dir import RunDirectory
from vitscale.train.run_lock import Launch, exclusive

from .preemption import has_preemption_notice
from .task import TrainTask

_LOCK_WAIT_SECONDS = 20.0


def train_worker(task_text: str) -> dict[str, Any]:
    """Train the task (JSON of `TrainTask`) in the process group that Ray Train has made; every worker calls this.

    Returns the step, the samples and the last values of the finished run, or in `stopped` what is said of one that was
    stopped on request. Raises any other `UserError` of `vitscale.api.train`.
    """
    task = TrainTask.from_json(task_text)
    if not task.debug:
        _keep_traces_off_console()
    _enter_folder(task.folder)
    sys.argv[:] = task.command  # environment.json shows the user's command instead of Ray's
    config = decode(RunConfig, values=task.config, source="the configuration sent to the worker")
    launch = Launch(id=task.launch, attempt=task.attempt, rehearses_faults=task.rehearses_faults)
    if dist.get_rank() == 0:
        _wait_for_lock(RunDirectory(root=config.run_dir), launch=launch, seconds=_LOCK_WAIT_SECONDS)
    try:
        result = train(
            config, allow_change=task.allow_change, stop_at_step=task.stop_at_step, stop_when=has_preemption_notice, launch=launch
        )
    except StopRequested as stopped:
        # As a result and not as an error, for which Ray would wait until the end of a notice's grace.
        return {"stopped": str(stopped)}
    return {"step": result.step, "samples": result.samples, "values": result.values}


def _keep_traces_off_console() -> None:
    """The command shows what went wrong; the traces of all ranks, also of those who only lost their peer, are in the rank logs."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.CRITICAL)


def _enter_folder(folder: str) -> None:
    """Make relative paths mean what they meant where the command was given, without changing the configuration."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise UsageError(
            f"{folder}: the directory of this command cannot be entered on the worker's machine {os.uname().nodename}"
            f" ({error.strerror}). Start the command from a directory that every machine of the cluster shares."
        ) from None


def _wait_for_lock(directory: RunDirectory, *, launch: Launch, seconds: float) -> None:
    """When a command was killed and is given again, its workers may end a moment later than it did: wait for them.

    A lock that stays is left for `train` to report.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with exclusive(directory, launch):
                return
        except UsageError:
            time.sleep(0.2)
