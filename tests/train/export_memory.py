"""One process that writes a checkpoint as four ranks at ZeRO stage 3 would, exports it and prints its peak of memory: FOLDER DEPTH."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vitscale.checkpoint.commit import SaveContent, commit, prepare, write_part
from vitscale.checkpoint.fragments import Fragment
from vitscale.checkpoint.layout import save_folder
from vitscale.config import dump_yaml
from vitscale.models import ViTConfig
from vitscale.objectives import SupervisedConfig
from vitscale.train.export import export_checkpoint
from vitscale.train.stored_model import StoredModel

NUM_RANKS = 4


def write_checkpoint(run: Path, stored: StoredModel) -> None:
    """Each rank holds a quarter of every flattened tensor."""
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in stored.build().named_parameters()}
    partial = save_folder(run / "checkpoints", step=7)
    prepare(partial)
    parts = [write_part(partial, rank=rank, fragments=list(shard(shapes, rank)), given_up=threading.Event()) for rank in range(NUM_RANKS)]
    config_text = dump_yaml(stored.model_dump(mode="json"))
    content = SaveContent(step=7, optimizer_steps=7, zero_stage=3, state_text="{}\n", config_text=config_text)
    commit(partial, content=content, parts=parts, check_owner=lambda: None)


def shard(shapes: dict[str, tuple[int, ...]], rank: int) -> Iterator[Fragment]:
    """The rank's quarter, the last one shorter."""
    for number, (name, shape) in enumerate(shapes.items()):
        num_elements = torch.Size(shape).numel()
        size = -(-num_elements // NUM_RANKS)
        start, stop = min(rank * size, num_elements), min((rank + 1) * size, num_elements)
        values = 0.02 * torch.randn(stop - start, generator=torch.Generator().manual_seed(number * NUM_RANKS + rank))
        yield Fragment(name=name, kind="weight", shape=shape, start=start, values=values)


def main(run: Path, depth: int, **changes: int) -> None:
    """Write in a child, so that its memory does not count; export here."""
    sizes = {"image_size": 32, "patch_size": 16, "width": 512, "num_heads": 8, "mlp_width": 2048, "depth": depth} | changes
    stored = StoredModel(model=ViTConfig(**sizes), objective=SupervisedConfig(num_classes=10))  # type: ignore[arg-type]
    child = os.fork()
    if child == 0:
        write_checkpoint(run, stored)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    # The other library would take more memory than what is measured.
    sys.modules["timm"] = None  # type: ignore[assignment]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    started = time.monotonic()
    exported = export_checkpoint(run, layout="timm", max_memory_bytes=256 << 20)
    figures = {"bytes_before": before, "peak_bytes": memory("VmHWM"), "num_bytes": exported.num_bytes}
    print(json.dumps(figures | {"seconds": round(time.monotonic() - started, 1)}))


def memory(field: str) -> int:
    """Bytes that the process has, or had at most, in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), **{key: int(value) for key, value in (pair.split("=") for pair in sys.argv[3:])})
