"""One of several gloo processes: saves in the background at ZeRO-3's cuts, restores at ZeRO-1's, then fails on rank 1 only."""

import errno
import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from tests.checkpoint.simulation import FakeStore, make_tensors, open_saver
from vitscale.checkpoint.layout import step_folder
from vitscale.checkpoint.reader import open_on_all_ranks
from vitscale.checkpoint.restore import restore_checkpoint
from vitscale.checkpoint.saver import CheckpointSaver, SaveOutcome


def main() -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder, tensors = Path(sys.argv[1]), make_tensors(seed=1)
    store = FakeStore(tensors, rank=rank, world_size=world_size, zero_stage=3, optimizer_steps=5)
    saver = open_saver(store, folder=folder)
    assert saver.begin(step=5, state={}, config_text="") == []
    for piece in store.pieces:
        piece.values.zero_()
    told = _train_until_told(saver)
    assert [outcome.error for outcome in told] == [None] * (rank == 0)
    other = FakeStore(make_tensors(seed=2), rank=rank, world_size=world_size, zero_stage=1)
    restore_checkpoint(open_on_all_ranks(step_folder(folder, step=5)), store=other)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch("vitscale.checkpoint.commit.write_fragments", side_effect=full) if rank == 1 else mock.MagicMock():
        saver.begin(step=6, state={}, config_text="")
        (failed,) = saver.finish()
    saver.close()
    print(json.dumps({"restored": other.matches(tensors), "steps": other.steps, "error": failed.error}))
    dist.destroy_process_group()


def _train_until_told(saver: CheckpointSaver) -> list[SaveOutcome]:
    """Vote and poll as the training loop does; all ranks stop at the same step."""
    outcomes: list[SaveOutcome] = []
    for _ in range(5000):
        ballot = torch.tensor([-len(outcomes), saver.parts_written])
        dist.all_reduce(ballot, op=dist.ReduceOp.MIN)
        if ballot[0] < 0:
            return outcomes
        outcomes += saver.poll(parts_written=int(ballot[1]))
        time.sleep(0.001)
    raise AssertionError("the save has not ended")


if __name__ == "__main__":
    main()
