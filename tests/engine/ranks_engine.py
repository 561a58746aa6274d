"""Trains the tiny objective in every engine setting on this rank and prints what came out; run by test_engine.py.

Many engines live one after another in one pair of processes: starting processes costs more than all of them.
"""

import json
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.collector import skip_imports
from tests.engine.ranked import SETTINGS, Setting, build, calls, count_collectives, gather, key, nothing_persistent, take_step, weight_hash
from tests.engine.tiny import batch, micro_batches
from vitscale.engine.processes import init_process_group, shutdown


def main() -> None:
    torch.set_num_threads(1)
    count_collectives()
    init_process_group("cpu")
    skip_imports()
    linear = F.linear
    report: dict[str, Any] = {"train": {key(s): _train(s) for s in SETTINGS}}
    report["again"] = _train((3, "fp32"))
    report["accumulation"] = {f"{stage} x{n}": _train((stage, "fp32"), accumulation=n) for stage in range(4) for n in (1, 2, 4)}
    report["accumulation_bf16"] = {f"{stage} x{n}": _train((stage, "bf16"), accumulation=n) for stage in (1, 2, 3) for n in (1, 4)}
    report["not_finite"] = {key(s): _not_finite(s) for s in SETTINGS}
    with nothing_persistent():
        report["sharded"] = {key(s): _train(s, recompute="full") for s in ((3, "fp32"), (3, "bf16"))}
    report["linear_untouched"] = F.linear is linear
    shutdown()
    print(json.dumps(report))


def _train(setting: Setting, *, accumulation: int = 1, **settings: Any) -> dict[str, Any]:
    engine = build(setting, accumulation=accumulation, **settings)
    first_hash = weight_hash(gather(engine))
    losses, norms, volumes = [], [], []
    for step in range(4):
        calls.clear()
        loss, norm = take_step(engine, step, accumulation)
        volumes.append(calls.get("reduce", 0))
        losses.append(loss)
        norms.append(norm)
    scores = engine.predict(batch(50)).float()  # the same batch on both ranks
    with engine.weights("ema"):
        averaged = engine.predict(batch(50)).float()
    assert torch.equal(engine.predict(batch(50)).float(), scores)
    assert not torch.equal(averaged, scores)
    result = {
        "losses": losses,
        "norms": norms,
        "reduced": volumes,
        "first_hash": first_hash,
        "last_hash": weight_hash(gather(engine)),
        "scores": scores.sum().item(),
        "averaged": averaged.sum().item(),
    }
    engine.close()
    return result


def _not_finite(setting: Setting) -> dict[str, Any]:
    """A step whose loss is NaN on one rank only: nothing may change anywhere."""
    engine = build(setting)
    take_step(engine, 0)
    before = gather(engine)
    poisoned = micro_batches(1, rank=dist.get_rank(), world_size=dist.get_world_size())
    if dist.get_rank() == 1:
        poisoned[0]["tokens"][0, 0, 0] = float("nan")
    norm = engine.train_step(poisoned, step=1, lr=1e-2).grad_norm.item()
    kept = {key: value for key, value in gather(engine).items() if key[1] != "ema"}
    unchanged = all(torch.equal(value, before[key]) for key, value in kept.items())
    steps = engine.store.optimizer_steps()
    loss, _ = take_step(engine, 2)
    engine.close()
    return {"norm": norm, "unchanged": unchanged, "steps": steps, "next_is_finite": loss == loss}


if __name__ == "__main__":
    main()
