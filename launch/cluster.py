"""The Ray cluster that a command works on: an existing one that it joins, or a local one that lives as long as the command."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import ray

from vitscale.config import UsageError

from .address import require_listener
from .environment import worker_variables
from .workers import ClusterResources, Workers

# Workers talk through gloo or nccl and read their own data; the object store only carries the configuration and results.
_OBJECT_STORE_BYTES = 100 * 2**20
# For this process and all of Ray's that work for it: only errors are told on the console.
_LOGGING = ray.LoggingConfig(log_level="ERROR")
_TERMINATED_EXIT_CODE = 128 + signal.SIGTERM


@contextlib.contextmanager
def ray_cluster(*, address: str | None, num_cpus: int, show_workers: bool = True) -> Iterator[ClusterResources]:
    """Join the cluster at `address`, or start a local one with `num_cpus` logical CPUs, until the body ends.

    `show_workers` sends what the workers print to this console. `prepare_environment` must have been called before this
    module was imported. Ctrl-C ends the body with `KeyboardInterrupt`, SIGTERM with exit code 143. Raises `UsageError` when
    there is no such cluster.
    """
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    termination = _Termination()
    try:
        _connect(address, num_cpus=num_cpus, show_workers=show_workers)
        signal.signal(signal.SIGTERM, termination)  # after Ray has set its own
        found = ray.cluster_resources()
        yield ClusterResources(num_cpus=int(found.get("CPU", 0)), num_gpus=int(found.get("GPU", 0)), is_local=address is None)
    except SystemExit:
        # Whatever a signal's handler raises while Ray waits comes out as SystemExit(1), or as 0 where Ray answered Ctrl-C by
        # aborting the run. Nothing else leaves the body in this way.
        if termination.asked:
            raise SystemExit(_TERMINATED_EXIT_CODE) from None
        raise KeyboardInterrupt from None
    finally:
        ray.shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)


def room_for(workers: Workers) -> int:
    """How many such workers the resources that nobody uses suffice for."""
    free = ray.available_resources()
    return min(int(free.get(name, 0.0) // amount) for name, amount in workers.resources.items())


class _Termination:
    """The handler of SIGTERM: ends the program, and remembers that it did."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG002
        """Python calls this in the main thread."""
        self.asked = True
        raise SystemExit(_TERMINATED_EXIT_CODE)


def _connect(address: str | None, *, num_cpus: int, show_workers: bool) -> None:
    if address is None:
        # The environment is inherited. Without a dashboard the cluster starts faster and listens on one port less.
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=show_workers,
            logging_config=_LOGGING,
        )
        return
    require_listener(address)
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": worker_variables()},
            log_to_driver=show_workers,
            logging_config=_LOGGING,
        )
    except (ConnectionError, ValueError, ray.exceptions.RaySystemError, ray.exceptions.AuthenticationError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(
            f"--address {address}: cannot join this Ray cluster: {reason}. Start one with `ray start --head`, mind RAY_AUTH_MODE"
            " and the token on every machine, or leave out --address and RAY_ADDRESS for a cluster on this machine."
        ) from None
