"""Which process of how many this is, as the launcher's environment or the live process group says."""

import os
from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among the processes of a run. `local_rank` counts within the node and picks the device."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes what only one process may write."""
        return self.rank == 0


def current_ranks() -> Ranks:
    """The ranks of the live process group, else those of torchrun's environment, else a single process."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if dist.is_available() and dist.is_initialized():
        return Ranks(rank=dist.get_rank(), world_size=dist.get_world_size(), local_rank=local_rank)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return Ranks(rank=rank, world_size=world_size, local_rank=local_rank)
