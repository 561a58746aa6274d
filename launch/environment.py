"""The environment variables that Ray runs with. Ray reads some while it is imported, so they are set before that."""

import os
import secrets
from collections.abc import Mapping, MutableMapping

_DEFAULTS = {
    # What rank 0 prints reaches the console as it is: no process prefix, no colours, no line dropped as a repetition.
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray would send prints and every library's log records to the console of each rank and into our rank logs.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    # After a kill -9 the helper process of the loader's says what it cleaned up.
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    # How soon a dead worker is noticed, how long a group of workers may take to start, and how long the workers that are
    # left over, which may hang in a collective, are asked to leave before they are killed. Ray's own: 2, 60 and 30 seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3",
    # A run sends nothing to anybody, and a sweep writes its own results.
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables, which verbose=0 leaves on
    # Ctrl-C ends a sweep at once; Ray would finish saving an experiment state that we do not use.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Never a cluster without authentication, and always said, because joining processes do not find out by themselves.
    "RAY_AUTH_MODE": "token",
}

_LOCAL_DEFAULTS = {
    # Nobody takes a local cluster's only machine away with notice: no process need watch for it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # A local cluster has no API server, but Ray Train asks for one every second, and a helper of it dies with a trace on the
    # console where a second cluster on this machine leaves open which is meant. An address that refuses is handled quietly.
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
}

_FOR_WORKERS = (
    "DS_ACCELERATOR",
    "GLOO_SOCKET_IFNAME",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "PYTHONWARNINGS",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S",
)
"""What the workers of a cluster that exists already get from here; those of a local one inherit everything."""


def prepare_environment(environment: MutableMapping[str, str] = os.environ, *, local: bool) -> None:
    """Set what is not set by the user. `local` says that this process will start a cluster of its own."""
    for name, value in (_DEFAULTS | _LOCAL_DEFAULTS if local else _DEFAULTS).items():
        environment.setdefault(name, value)
    has_token = "RAY_AUTH_TOKEN" in environment or "RAY_AUTH_TOKEN_PATH" in environment
    if local and environment["RAY_AUTH_MODE"] == "token" and not has_token:
        # A token for this cluster's life alone: Ray would write one to the home folder, readable by everybody.
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def worker_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of this process that workers of an existing cluster need too."""
    return {name: environment[name] for name in _FOR_WORKERS if name in environment}
