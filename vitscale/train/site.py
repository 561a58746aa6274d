"""Where a run takes place: it joins its processes, plans, holds the run directory, and is watched from here on."""

import contextlib
from dataclasses import dataclass, replace

from vitscale.dist.agreement import jointly, on_main
from vitscale.dist.collectives import gather_json
from vitscale.dist.ranks import Ranks
from vitscale.engine.processes import init_process_group, wait_patiently
from vitscale.plan.cluster import Cluster, detect_cluster
from vitscale.plan.plan import Plan, make_plan
from vitscale.run_config import RunConfig
from vitscale.train.environment import start_rank_log, stop_rank_log
from vitscale.train.run_dir import RunDirectory, writing
from vitscale.train.run_lock import Launch, RunLock, exclusive
from vitscale.train.stop_request import RequestFile
from vitscale.train.watch import Watch, open_watch


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a run takes place: its processes, what they plan to do, its directory and who looks after it. Rank 0 holds the
    directory's lock and hears what is asked through it; the other ranks have neither. `launch` started the processes."""

    ranks: Ranks
    plan: Plan
    directory: RunDirectory
    lock: RunLock | None
    requests: RequestFile | None
    watch: Watch
    launch: Launch | None

    def check_owner(self) -> None:
        """Raise `CheckpointError` where another process has the run directory by now. Rank 0 only."""
        assert self.lock is not None, "rank 0 holds the run directory, and no other rank"
        self.lock.check()

    def is_stop_asked(self) -> bool:
        """Whether a file of the run directory asks for a stop."""
        return self.requests is not None and self.requests.is_asked()


def enter_site(config: RunConfig, *, launch: Launch | None, stack: contextlib.ExitStack) -> Site:
    """Join the other processes, make the plan and take the run directory until `stack` unwinds. All ranks call this.

    Raises `UsageError` where another process has the directory, `ConfigError` where it cannot be written or the plan is impossible.
    """
    cluster = detect_cluster(device=config.parallel.device, world_size=1)
    ranks = init_process_group(cluster.device)
    plan = make_plan(config, cluster=_agreed(detect_cluster(device=config.parallel.device, world_size=ranks.world_size)))
    directory = RunDirectory(root=config.run_dir)
    locks: list[RunLock] = []
    requests: list[RequestFile] = []

    def hold() -> None:
        locks.append(stack.enter_context(exclusive(directory, launch)))
        with writing(directory):
            launch_id = None if launch is None else launch.id
            requests.append(RequestFile(directory.root, launch=launch_id, is_shut_out=locks[0].is_lost))
        stack.callback(requests[0].close)

    on_main(hold)
    jointly(lambda: _start_log(directory, rank=ranks.rank, stack=stack))
    watch = stack.enter_context(open_watch(config.watch, directory=directory, ranks=ranks, device=plan.device))
    wait_patiently()
    lock, request_file = (locks[0], requests[0]) if ranks.is_main else (None, None)
    return Site(ranks=ranks, plan=plan, directory=directory, lock=lock, requests=request_file, watch=watch, launch=launch)


def _agreed(cluster: Cluster) -> Cluster:
    """With the memory of the rank that has least: ranks that planned another micro-batch would wait for each other for ever."""
    device, host = (min(values) for values in zip(*gather_json([cluster.memory_bytes, cluster.host_memory_bytes]), strict=True))
    return replace(cluster, memory_bytes=device, host_memory_bytes=host)


def _start_log(directory: RunDirectory, *, rank: int, stack: contextlib.ExitStack) -> None:
    with writing(directory):
        stack.callback(stop_rank_log, start_rank_log(directory.rank_log(rank)))
