"""Whether memory and disk have room for an import or export, asked before anything is written."""

import math
from dataclasses import dataclass
from pathlib import Path

from vitscale.checkpoint.retention import free_bytes
from vitscale.config import CheckpointError, ConfigError
from vitscale.config.progress import format_size


@dataclass(frozen=True, kw_only=True)
class Room:
    """What is needed and what there is: of memory at a time, and of the disk."""

    memory_bytes: int
    max_memory_bytes: int
    disk_bytes: int
    free_disk_bytes: int

    def describe(self) -> str:
        """One line."""
        memory = f"{format_size(self.memory_bytes)} of tensors at least, {format_size(self.max_memory_bytes)} allowed by --max-memory"
        return f"memory: {memory}; disk: {format_size(self.disk_bytes)}, {format_size(self.free_disk_bytes)} free"


def find_room(output: Path, *, memory_bytes: int, max_memory_bytes: int, held: str, disk_bytes: int) -> Room:
    """Room for tensors of `memory_bytes`, which are `held` at a time, and a folder `output` of `disk_bytes`.

    Raises `CheckpointError` where more memory is needed than is allowed, `ConfigError` where the disk is too full.
    """
    if memory_bytes > max_memory_bytes:
        raise CheckpointError(
            f"--max-memory: {format_size(max_memory_bytes)} are allowed, and {held} takes"
            f" {format_size(memory_bytes)}; give at least {math.ceil(memory_bytes / 2**20)}MiB"
        )
    free = free_bytes(output)
    if disk_bytes > free:
        raise ConfigError(
            f"{output}: cannot be written: it takes {format_size(disk_bytes)}, and {format_size(free)} are free there. Give another folder,"
            " on a disk with space."
        )
    return Room(memory_bytes=memory_bytes, max_memory_bytes=max_memory_bytes, disk_bytes=disk_bytes, free_disk_bytes=free)
