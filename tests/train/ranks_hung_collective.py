"""Script of test_watchdog.py: ranks over gloo, of which rank 1 misses a collective that rank 0 waits in.

Arguments: run directory, hang_seconds, what rank 1 does instead. Never comes to its end.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vitscale.dist.collectives import gather_json
from vitscale.engine.collective_time import CollectiveTime
from vitscale.train.heartbeat import Heartbeat
from vitscale.train.watchdog import Watchdog

GOOD_STEPS = 3


def main() -> None:
    """Two collectives a step; at the end of the good steps rank 1 goes astray between them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    heartbeat = Heartbeat()
    CollectiveTime(on_enter=heartbeat.enter_collective, on_leave=heartbeat.leave_collective)
    Watchdog(
        heartbeat,
        run_dir=Path(sys.argv[1]),
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        attempt="a",
        hang_seconds=float(sys.argv[2]),
    )
    values = torch.ones(1000)
    for step in range(GOOD_STEPS + 1):
        heartbeat.beat("step", step)
        dist.all_reduce(values)
        if step == GOOD_STEPS and dist.get_rank() == 1:
            ASTRAY[sys.argv[3]](values)
        gather_json({"step": step})
        heartbeat.beat("vote", step + 1)


def wait_elsewhere(_values: torch.Tensor) -> None:
    while True:
        time.sleep(0.1)


def enter_another_collective(values: torch.Tensor) -> None:
    dist.broadcast(values, src=0, group=dist.group.WORLD)
    dist.barrier()


ASTRAY = {"elsewhere": wait_elsewhere, "another": enter_another_collective}

if __name__ == "__main__":
    try:
        main()
    except RuntimeError:  # gloo tells of the other rank's death: that one's watchdog was quicker, this one's is about to act
        time.sleep(60.0)
