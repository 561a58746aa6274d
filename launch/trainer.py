"""One attempt to train as Ray Train workers, and a whole launch of such attempts for who is connected to Ray already."""

import contextlib
import dataclasses
import importlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

from vitscale.train.progress import read_progress

from .attempts import Supervisor
from .failures import DetectionLedger, outcome_of
from .ledger import LaunchLedger
from .outcome import Finished, Outcome, Stopped
from .stop_signals import StopSignals
from .supervise import Policy
from .task import TrainTask
from .workers import Workers


def run_attempt(task: TrainTask, *, run_dir: Path, workers: Workers) -> Outcome:
    """Train the task on Ray Train workers and wait for them. Needs a connection to Ray.

    Where to resume is decided by `train`, from the run directory. Ray restarts nothing: a dead worker ends the attempt.
    """
    # Ray insists on a folder that all nodes see, for checkpoints that we do not give it. A name of its own for every
    # start, because Ray silently goes on with what it remembers of a name that was used before.
    scratch, name = run_dir / ".ray", uuid.uuid4().hex
    callbacks: list[ray.train.UserCallback] = [DetectionLedger(events=run_dir / "events.jsonl")]
    scaling = ray.train.ScalingConfig(num_workers=workers.num_workers, use_gpu=workers.use_gpu, resources_per_worker=workers.resources)
    trainer = TorchTrainer(
        _train_in_worker,
        train_loop_config={"task": task.to_json()},
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=callbacks,
            # Failures are told by the ledger, errors by the command.
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
    )
    try:
        result = trainer.fit().return_value
    except (ray.train.TrainingFailedError, ray.exceptions.RayError, ConnectionError) as error:
        return outcome_of(error)
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # another start of the same run has its folder there
            scratch.rmdir()
    assert isinstance(result, dict), "rank 0 returns how the run ended"
    return Stopped(message=result["stopped"]) if "stopped" in result else Finished(values=result)


def run_training(task: TrainTask, *, run_dir: Path, workers: Workers, max_restarts: int) -> dict[str, Any]:
    """Train the task over the connection to Ray that this process has, with restarts. Returns what `train_worker` does.

    Raises the `UserError` that ended the run.
    """
    supervisor = Supervisor(
        attempts=_Here(task=task, run_dir=run_dir, workers=workers),
        policy=Policy(num_workers=workers.num_workers, allowed_workers=(workers.num_workers,), max_restarts=max_restarts),
        run_dir=run_dir,
        launch=task.launch,
        ledger=LaunchLedger(run_dir / "events.jsonl"),
        progress=lambda: read_progress(run_dir),
        stop=StopSignals(),  # never hears anything: whoever started this process listens
    )
    return supervisor.train(num_workers=workers.num_workers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Here:
    """Attempts from this process."""

    task: TrainTask
    run_dir: Path
    workers: Workers

    def capacity(self) -> int:
        """What the workers reserved before: a trial's share is not for others to take."""
        return self.workers.num_workers

    def run(self, *, attempt: int, num_workers: int, poll: Callable[[], None]) -> Outcome:  # noqa: ARG002
        """One attempt."""
        task = dataclasses.replace(self.task, attempt=attempt)
        return run_attempt(task, run_dir=self.run_dir, workers=dataclasses.replace(self.workers, num_workers=num_workers))


def _train_in_worker(config: dict[str, str]) -> dict[str, Any]:
    # By name: importing the worker's code here would cost each driver and trial DeepSpeed, seconds and hundreds of MiB.
    worker = importlib.import_module(".worker", __package__)
    result: dict[str, Any] = worker.train_worker(config["task"])
    return result
