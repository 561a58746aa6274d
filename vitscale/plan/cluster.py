"""What a run has to run on: how many processes, on what device, with how much memory each."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vitscale.config import ConfigError

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """`world_size` processes with one device each; `memory_bytes` is what one process may use of its device, `host_memory_bytes`
    its share of its machine's, which on a CPU is the same."""

    device: Device
    world_size: int
    memory_bytes: int
    host_memory_bytes: int


def detect_cluster(*, device: Literal["auto", "cpu", "cuda"], world_size: int) -> Cluster:
    """Describe this machine for `world_size` processes, of which torchrun's LOCAL_WORLD_SIZE are here, else all.

    Raises `ConfigError` when cuda is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("parallel.device: cuda is asked for, but torch sees no GPU here; use auto or cpu")
    if device != "cpu" and has_cuda:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", min(world_size, torch.cuda.device_count())))
        device_bytes = torch.cuda.get_device_properties(0).total_memory
        return Cluster(
            device="cuda", world_size=world_size, memory_bytes=device_bytes, host_memory_bytes=host_memory_bytes() // max(1, here)
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    share = host_memory_bytes() // max(1, here)
    return Cluster(device="cpu", world_size=world_size, memory_bytes=share, host_memory_bytes=share)


def host_memory_bytes() -> int:
    """Physical memory of this machine, or the container's limit where that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit_file).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(physical, int(text))
    return physical
