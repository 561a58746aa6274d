"""`vitscale-launch train`: a run on a Ray cluster, supervised from a process that Ray cannot take with it."""

import contextlib
from collections.abc import Collection
from typing import Any

from vitscale.config import UsageError
from vitscale.run_config import RunConfig
from vitscale.train.progress import read_progress

from .attempts import Supervisor
from .ledger import LaunchLedger
from .remote import ClusterProcess, Connection, RemoteAttempts
from .stop_signals import StopSignals
from .supervise import Policy
from .task import make_task
from .workers import ClusterResources, Workers, choose_workers, num_cores


def launch_training(
    config: RunConfig,
    *,
    process: ClusterProcess,
    policy: Policy,
    address: str | None,
    allow_change: Collection[str] = (),
    stop_at_step: int | None = None,
    rehearses_faults: bool = False,
    debug: bool = False,
) -> dict[str, Any]:
    """Train `config` from the current directory on the Ray cluster at `address`, or on one of its own.

    `process` joins the cluster and is ended here. Signals are listened to: see `StopSignals`. Raises `UserError`.
    """
    run_dir = config.run_dir
    connection = Connection(process, address=address, num_cpus=max(policy.num_workers, num_cores()))
    with StopSignals() as stop, contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        workers = _fitting(config, allowed=policy.allowed_workers, cluster=connection.join())
        task = make_task(config, allow_change=allow_change, stop_at_step=stop_at_step, rehearses_faults=rehearses_faults, debug=debug)
        supervisor = Supervisor(
            attempts=RemoteAttempts(connection=connection, run_dir=run_dir, task=task, workers=workers),
            policy=policy,
            run_dir=run_dir,
            launch=task.launch,
            ledger=LaunchLedger(run_dir / "events.jsonl"),
            progress=lambda: read_progress(run_dir),
            stop=stop,
        )
        return supervisor.train(num_workers=workers.num_workers)


def _fitting(config: RunConfig, *, allowed: Collection[int], cluster: ClusterResources) -> Workers:
    """The most workers that the cluster holds. Raises the error about the number asked for where it holds none of `allowed`."""
    first: UsageError | None = None
    for num_workers in sorted(allowed, reverse=True):
        try:
            workers = choose_workers(num_workers=num_workers, num_runs=1, device=config.parallel.device, cluster=cluster)
        except UsageError as error:
            first = first or error
            continue
        if first is not None:
            print(f"{first}: beginning with {num_workers} workers", flush=True)
        return workers
    assert first is not None
    raise first
