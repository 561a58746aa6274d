"""Script for `run_ranks`: steps at every ZeRO stage with one slow rank, and what collectives cost with and without being timed.

Prints, by stage, this rank's step seconds, its seconds in collectives and how often it waited; then the timing's share.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.engine.ranked import build, take_step
from vitscale.engine.collective_time import CollectiveTime
from vitscale.engine.processes import init_process_group

SLOW_SECONDS = 0.2
STEPS = 3


def main() -> None:
    """Measure; print."""
    torch.set_num_threads(1)
    rank = init_process_group("cpu").rank
    print(json.dumps({"stages": [stage_figures(stage, rank=rank) for stage in range(4)], "waits": asynchronous(rank)}))


def stage_figures(stage: int, *, rank: int) -> dict[str, float]:
    engine = build((stage, "fp32"))
    take_step(engine, 0)
    entered: list[int] = []
    left: list[int] = []
    timed = CollectiveTime(on_enter=lambda: entered.append(1), on_leave=lambda: left.append(1))
    dist.barrier()
    begin, before = time.perf_counter(), timed.seconds
    for step in range(1, STEPS + 1):
        if rank == 1:
            time.sleep(SLOW_SECONDS)
        take_step(engine, step)
    figures = {"step": time.perf_counter() - begin, "collective": timed.seconds - before}
    timed.close()
    assert len(entered) == len(left) == timed.num_waits
    engine.close()
    return figures | {"waits": timed.num_waits}


def asynchronous(rank: int) -> float:
    """Seconds counted for a collective that is begun, and waited for later."""
    timed = CollectiveTime()
    dist.barrier()
    before = timed.seconds
    if rank == 1:
        time.sleep(SLOW_SECONDS)
    work = dist.all_reduce(torch.ones(1), async_op=True)
    assert timed.seconds == before, "nobody has waited yet"
    work.wait()
    timed.close()
    return timed.seconds - before


if __name__ == "__main__":
    main()
