"""What a rehearsal does on another machine of the Ray cluster: tasks that are pinned there. Needs a connection to Ray."""

import os
import signal
from collections.abc import Callable

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .link import take_down_later, why_not

_ANSWER_SECONDS = 20.0
_SECONDS_TO_ANSWER = 1.0
"""Before a machine is cut off: its answer must get through."""


def send_signal(number: int, *, pid: int, host: str) -> str | None:
    """Send a signal to a process of the machine that calls itself `host`; returns why that was impossible."""
    return _do_there(host, _signal, pid, number)


def cut_link(interface: str, *, seconds: float, host: str) -> str | None:
    """Take a network interface of that machine down for so long; returns why that was impossible."""
    return _do_there(host, _cut, interface, seconds)


def _do_there(host: str, do: Callable[..., str | None], *arguments: object) -> str | None:
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerHostname"] == host]
    if len(nodes) > 1:
        return f"{len(nodes)} machines of the Ray cluster call themselves {host}"
    if not nodes:
        return f"no machine of the Ray cluster calls itself {host}"
    there = NodeAffinitySchedulingStrategy(node_id=nodes[0], soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(do).options(scheduling_strategy=there)
    pending = task.remote(*arguments)
    try:
        answer: str | None = ray.get(pending, timeout=_ANSWER_SECONDS)
    except (ray.exceptions.RayError, TimeoutError) as error:
        ray.cancel(pending)  # else it would be done after all, as soon as the machine has time for it
        return str(error).strip().splitlines()[-1]
    return answer


def _signal(pid: int, number: int) -> str | None:
    try:
        os.kill(pid, signal.Signals(number))
    except OSError as error:
        return error.strerror
    return None


def _cut(interface: str, seconds: float) -> str | None:
    reason = why_not(interface)
    if reason is None:
        take_down_later(interface, after_seconds=_SECONDS_TO_ANSWER, seconds=seconds)
    return reason
