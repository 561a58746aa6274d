"""Saves checkpoints in some engine settings, or restores them all into others; one of several gloo processes.

Arguments: folder, "save" or "restore", then the settings to save, or to restore into, as JSON. A setting is "STAGE PRECISION", and
"STAGE PRECISION offloaded". Every rank trains on the same whole batch, so that any number of ranks takes the same steps.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from tests.checkpoint.simulation import save_now
from tests.collector import skip_imports
from tests.engine.tiny import GLOBAL_BATCH, batch, tiny_engine
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.restore import restore_checkpoint
from vitscale.dist.collectives import all_reduce_sum
from vitscale.engine.engine import Engine
from vitscale.engine.processes import init_process_group, shutdown

NUM_STEPS = 3


def main() -> None:
    torch.set_num_threads(1)
    init_process_group("cpu")
    skip_imports()
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[3])
    if sys.argv[2] == "save":
        report = {setting: _save(folder / setting, setting) for setting in settings}
    else:
        sources = sorted(path for path in folder.iterdir() if path.is_dir())
        report = {f"{source} -> {setting}": result for setting in settings for source, result in _restore_all(sources, setting).items()}
    shutdown()
    print(json.dumps(report))


def build(setting: str, *, seed: int) -> Engine:
    stage, precision, *offloaded = setting.split()
    options = {"clip_grad_norm": 1.0, "ema_decay": 0.5, "micro_batch": GLOBAL_BATCH, "offload_optimizer": bool(offloaded)}
    return tiny_engine(seed=seed, stage=int(stage), precision=precision, **options)


def _save(folder: Path, setting: str) -> dict[str, Any]:
    engine = build(setting, seed=0)
    for step in range(NUM_STEPS):
        _loss(engine, step)
    save_now(engine.store, folder=folder, step=NUM_STEPS)
    result = _continued(engine)
    engine.close()
    return result


def _restore_all(sources: list[Path], setting: str) -> dict[str, dict[str, Any]]:
    """Each into the same engine, which starts from another seed and is used before each time."""
    engine, results = build(setting, seed=1), {}
    for source in sources:
        _loss(engine, 77)
        engine.predict(batch(50))
        reader = CheckpointReader(source / f"step-{NUM_STEPS:08d}")
        assert reader.manifest.world_size == 2
        before = _share_equal(engine, reader)
        restore_checkpoint(reader, store=engine.store)
        equal, steps = _share_equal(engine, reader), engine.store.optimizer_steps()
        alarms = [str(difference) for difference in engine.compare_replicas().differences]
        results[source.name] = _continued(engine) | {"equal": [before, equal], "steps": steps, "alarms": alarms}
    engine.close()
    return results


def _share_equal(engine: Engine, reader: CheckpointReader) -> float:
    """The share of the checkpoint's elements, of every kind, that the ranks hold bit for bit."""
    counts = torch.zeros(2, dtype=torch.int64)
    for fragment in engine.store.owned():
        stored = reader.read(fragment.name, kind=fragment.kind, start=fragment.start, stop=fragment.start + fragment.values.numel())
        counts += torch.tensor([int((fragment.values.view(torch.int32) == stored.view(torch.int32)).sum()), stored.numel()])
    num_equal, num_held = all_reduce_sum(counts).tolist()
    assert num_held == sum(math.prod(shape) for kind in reader.kinds for shape in reader.shapes(kind).values())
    return num_equal / num_held


def _continued(engine: Engine) -> dict[str, Any]:
    """What forward makes of the weights and of their average, and the losses of two more steps."""
    scores = engine.predict(batch(50)).double().sum().item()
    with engine.weights("ema"):
        averaged = engine.predict(batch(50)).double().sum().item()
    return {"scores": scores, "averaged": averaged, "losses": [_loss(engine, step) for step in (NUM_STEPS, NUM_STEPS + 1)]}


def _loss(engine: Engine, step: int) -> float:
    return engine.train_step([batch(step)], step=step, lr=1e-2).loss.item()


if __name__ == "__main__":
    main()
