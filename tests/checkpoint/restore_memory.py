"""Restores a checkpoint into a store of world size 1 and prints how far the process grew beside the state."""

import json
import sys
from pathlib import Path

from tests.checkpoint.simulation import FakeStore, make_tensors
from vitscale.checkpoint.host_copy import size_in_bytes
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.restore import restore_checkpoint

SHAPES: dict[str, tuple[int, ...]] = {"a": (4096, 1024), "b": (7,)}


def main() -> None:
    store = FakeStore(make_tensors(seed=2, shapes=SHAPES, kinds=("weight", "exp_avg", "exp_avg_sq")), rank=0, world_size=1, zero_stage=1)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _kib("VmRSS")
    restore_checkpoint(CheckpointReader(Path(sys.argv[1])), store=store)
    extra = _kib("VmHWM") - before
    expected = make_tensors(seed=1, shapes=SHAPES, kinds=("weight", "exp_avg", "exp_avg_sq"))
    report = {"matches": store.matches(expected), "state_mib": size_in_bytes(store.owned()) >> 20, "extra_mib": extra / 1024}
    print(json.dumps(report))


def _kib(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(f"{field}:")).split()[1])


if __name__ == "__main__":
    main()
