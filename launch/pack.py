"""Packing over a Ray cluster by whole shards: the same bytes as `vitscale-data pack` writes, on storage that all nodes share."""

import itertools
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vitscale.config import DataError
from vitscale_data_tools.images import encoder_name
from vitscale_data_tools.pack import PackSummary, write_pack
from vitscale_data_tools.plan import PackPlan
from vitscale_data_tools.processes import Advance, Results
from vitscale_data_tools.shard_writer import ShardJob, ShardResult, write_shard

from .cluster import ray_cluster
from .workers import num_cores

_SHARDS_PER_WORKER = 2
"""Handed over and not done: enough that no worker waits, few enough that not all of a large plan is copied at once."""

_KILLED = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
)


@dataclass(frozen=True, kw_only=True)
class DiskFailure:
    """An `OSError` of a node, which would lose its parts as Ray's own error."""

    number: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """What one node sees of the storage, and what it would encode images with."""

    node: str
    sees_output: bool
    sees_input: bool
    encoder: str


def pack_on_cluster(
    plan: PackPlan, *, address: str | None, workers: int | None = None, report: Callable[[int], None] | None = None
) -> PackSummary:
    """Write the planned data sets on the cluster at `address`, or on a local one; `workers` shards at a time, by default one per CPU.

    The plan's paths must be absolute (`absolute`). Raises what `write_pack` raises, and `DataError` when a node does not see
    input or output, or transcodes with other versions of the libraries than this process planned with.
    """
    with ray_cluster(address=address, num_cpus=workers or num_cores(), show_workers=False) as cluster:
        run = partial(_run_on_nodes, num_workers=workers or max(1, cluster.num_cpus), plan=plan)
        return write_pack(plan, report=report, run=run)


def check_views(views: Sequence[NodeView], *, plan: PackPlan) -> None:
    """Raise `DataError` unless every node can do its share with the same bytes as this one."""
    request = plan.request
    for path, is_seen in ((request.output, [view.sees_output for view in views]), (request.input, [view.sees_input for view in views])):
        blind = [view.node for view, seen in zip(views, is_seen, strict=True) if not seen]
        if blind:
            raise DataError(
                f"{path}: not on storage that all nodes of the cluster share: {', '.join(blind)} cannot see it. Give folders of a shared"
                " file system, under the same path everywhere."
            )
    others = [f"{view.node} has {view.encoder}" for view in views if view.encoder != encoder_name()]
    if request.policy.transcode is not None and others:
        raise DataError(
            f"{', '.join(others)}, and this machine {encoder_name()}: transcoded images would differ from node to node. Install the"
            " same versions everywhere."
        )


def _run_on_nodes(jobs: Iterable[ShardJob], advance: Advance, *, num_workers: int, plan: PackPlan) -> Results:
    """The runner of `write_pack`."""
    waiting: set[ray.ObjectRef] = set()
    remaining = iter(jobs)
    first = next(remaining, None)
    if first is None:
        return
    check_views(_views(first.staging.scratch, input_path=plan.request.input), plan=plan)
    remaining = itertools.chain([first], remaining)
    try:
        while True:
            # `waiting` is filled up first, also after each shard that is done.
            for job in itertools.islice(remaining, _SHARDS_PER_WORKER * num_workers - len(waiting)):
                waiting.add(_write.remote(job))
            if not waiting:
                return
            done, _ = ray.wait(list(waiting), num_returns=1)
            waiting -= set(done)
            for result in ray.get(done):
                if isinstance(result, DiskFailure):
                    raise OSError(result.number, result.reason)
                advance(result.num_samples)
                yield result
    except _KILLED as error:
        raise DataError(
            f"a packing process of the cluster was killed ({type(error).__name__}), perhaps for want of memory. Run the command again,"
            " with fewer --workers: it goes on from the shards that are whole."
        ) from None
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _views(folder: Path, *, input_path: Path) -> list[NodeView]:
    """Let every node look for a file that was just written here."""
    token = secrets.token_hex(16)
    probe = folder / f"probe.{token}"
    probe.write_text(token)
    try:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        looks = [
            _look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe, input_path, token)
            for node in nodes
        ]
        views: list[NodeView] = ray.get(looks)
        return views
    finally:
        probe.unlink()


@ray.remote(num_cpus=0)
def _look(probe: Path, input_path: Path, token: str) -> NodeView:
    try:
        sees_output = probe.read_text() == token
    except OSError:
        sees_output = False
    return NodeView(node=os.uname().nodename, sees_output=sees_output, sees_input=input_path.exists(), encoder=encoder_name())


@ray.remote(num_cpus=1)
def _write(job: ShardJob) -> ShardResult | DiskFailure:
    try:
        return write_shard(job, advance=_uncounted)
    except OSError as error:
        return DiskFailure(number=error.errno or 0, reason=f"{error.strerror or error} (on {os.uname().nodename})")


def _uncounted(_: int) -> None:
    """Progress of a cluster is told by whole shards."""
