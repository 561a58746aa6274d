"""One of several gloo processes: saves at ZeRO-3's cuts, restores at ZeRO-1's, then fails on rank 1 only."""

import errno
import json
import os
import sys
from pathlib import Path
from unittest import mock

import torch.distributed as dist

from tests.checkpoint.simulation import FakeStore, make_tensors
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.restore import restore_checkpoint
from vitscale.checkpoint.save import save_checkpoint
from vitscale.config import CheckpointError


def main() -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder, tensors = Path(sys.argv[1]), make_tensors(seed=1)
    store = FakeStore(tensors, rank=rank, world_size=world_size, zero_stage=3, optimizer_steps=5)
    path = save_checkpoint(store, folder=folder, step=5, state={}, config_text="")
    other = FakeStore(make_tensors(seed=2), rank=rank, world_size=world_size, zero_stage=1)
    restore_checkpoint(CheckpointReader(path), store=other)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        with mock.patch("vitscale.checkpoint.save.write_fragments", side_effect=full) if rank == 1 else mock.MagicMock():
            save_checkpoint(store, folder=folder, step=6, state={}, config_text="")
        failed = False
    except CheckpointError:
        failed = True
    print(json.dumps({"restored": other.matches(tensors), "steps": other.steps, "error": failed}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
