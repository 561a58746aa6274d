"""Trains, compares replicas and flips bits on single ranks in every engine setting; prints what was found; run by test_replicas.py."""

import json
from typing import Any

import torch
import torch.distributed as dist

from tests.collector import skip_imports
from tests.engine.ranked import SETTINGS, Setting, gather, key, nothing_persistent
from tests.engine.tiny import GLOBAL_BATCH, batch, tiny_engine
from vitscale.engine.engine import Engine
from vitscale.engine.processes import init_process_group, shutdown
from vitscale.engine.replicas import ReplicaReport, flip_bit


def main() -> None:
    torch.set_num_threads(1)
    init_process_group("cpu")
    skip_imports()
    # Two ranks prove that nothing is ever found where nothing is wrong; three, that a majority is believed.
    settings, num_steps = (SETTINGS, 20) if dist.get_world_size() == 2 else (SETTINGS[:2] + SETTINGS[-1:], 3)
    report: dict[str, Any] = {key(setting): _examine(setting, num_steps) for setting in settings}
    report["3 fp32 offloaded"] = _examine((3, "fp32"), 3, offload_optimizer=True)
    with nothing_persistent():
        report["3 bf16 sharded"] = _sharded((3, "bf16"))
    shutdown()
    print(json.dumps(report))


def _examine(setting: Setting, num_steps: int, **settings: Any) -> dict[str, Any]:
    engine, untouched = (_build(setting, **settings) for _ in range(2))
    alarms = len(engine.compare_replicas().differences)
    for step in range(num_steps):
        _step(engine, step)
        alarms += len(engine.compare_replicas().differences)
    for step in range(num_steps):
        _step(untouched, step)
    same = all(torch.equal(value, other) for value, other in zip(gather(engine).values(), gather(untouched).values(), strict=True))
    results = {"alarms": alarms, "same": same, "compared": engine.compare_replicas().num_tensors}
    if dist.get_rank() == 1:
        engine.flip_weight_bit()
    results["copy"] = _told(engine.compare_replicas())
    _step(engine, num_steps)
    results["a step later"] = _told(engine.compare_replicas())
    results["master"] = _flip_held(untouched, "weight", rank=0)
    if setting[0] == 0:
        results["moment"] = _flip_held(untouched, "exp_avg_sq", rank=dist.get_world_size() - 1)
    engine.close()
    untouched.close()
    return results


def _sharded(setting: Setting) -> dict[str, Any]:
    """Nothing is gathered between two steps: each rank can only compare its slices with its masters."""
    engine = _build(setting)
    _step(engine, 0)
    results = {"quiet": _told(engine.compare_replicas())}
    if dist.get_rank() == 1:
        engine.flip_weight_bit()
    results["slice"] = _told(engine.compare_replicas())
    _step(engine, 1)
    results["a step later"] = _told(engine.compare_replicas())
    results["master"] = _flip_held(engine, "weight", rank=1)
    engine.close()
    return results


def _flip_held(engine: Engine, kind: str, *, rank: int) -> dict[str, Any]:
    fragment = next(fragment for fragment in engine.store.held() if fragment.kind == kind)
    if dist.get_rank() == rank:
        flip_bit(fragment.values, element=-1, bit=30)  # of the exponent, so that it survives the rounding to bf16
    name: list[Any] = [fragment.name]
    dist.broadcast_object_list(name, src=rank)
    return _told(engine.compare_replicas()) | {"expected": [name[0], kind]}


def _build(setting: Setting, **settings: Any) -> Engine:
    stage, precision = setting
    return tiny_engine(stage=stage, precision=precision, micro_batch=GLOBAL_BATCH, clip_grad_norm=1.0, ema_decay=0.5, **settings)


def _step(engine: Engine, step: int) -> None:
    engine.train_step([batch(100 * dist.get_rank() + step)], step=step, lr=1e-2)


def _told(report: ReplicaReport) -> dict[str, Any]:
    return {"found": [[d.name, d.kind, d.what, list(d.ranks)] for d in report.differences], "text": str(report)}


if __name__ == "__main__":
    main()
