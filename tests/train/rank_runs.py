"""Script for `run_ranks`: does a list of runs one after the other in one process group.

Arguments: root folder, then a JSON list of jobs. A job is {"do": "train" | "resave", "overrides": [...], "stop_at": step or null,
"allow_change": [keys]}.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.collector import skip_imports
from tests.train.tiny_run import tiny_config
from vitscale import api
from vitscale.config import StopRequested
from vitscale.train.build import open_run


def main() -> None:
    """Do the jobs; print each one's exit code."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    skip_imports()
    root = Path(sys.argv[1])
    codes = [do(root, job) for job in json.loads(sys.argv[2])]
    dist.destroy_process_group()
    print(json.dumps(codes))


def do(root: Path, job: dict) -> int:  # type: ignore[type-arg]
    """One job; the exit code that the command would have."""
    config = tiny_config(root, *job["overrides"])
    if job["do"] == "resave":
        # Restores on the ranks there are now and writes the same step again.
        with open_run(config, allow_change=job["allow_change"]) as run:
            run.save(run.start, last=True)
        return 0
    try:
        api.train(config, stop_at_step=job.get("stop_at"))
    except StopRequested as stop:
        return stop.exit_code
    return 0


if __name__ == "__main__":
    main()
