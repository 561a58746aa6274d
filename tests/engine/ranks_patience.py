"""Two ranks of a process group whose patience is a second: rank 0 comes to each collective two seconds late; run by test_processes.py."""

import json
import time
from datetime import timedelta

import torch.distributed as dist

from vitscale.dist.agreement import on_main
from vitscale.engine.processes import init_process_group, wait_patiently


def main() -> None:
    init_process_group("cpu")
    dist.group.WORLD.set_timeout(timedelta(seconds=1))  # type: ignore[union-attr]
    wait_patiently()
    print(json.dumps(on_main(lambda: time.sleep(2.0) or "downloaded")))  # type: ignore[func-returns-value]


if __name__ == "__main__":
    main()
