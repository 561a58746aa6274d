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
from tests.engine.tiny import CLASSES, batch, micro_batches
from vitscale.engine.engine import Engine
from vitscale.engine.processes import init_process_group, shutdown

SHARDED = SETTINGS[1:]
OFFLOADED = [*((setting, 1) for setting in SHARDED), ((1, "bf16"), 2), ((2, "fp32"), 2), ((3, "bf16"), 2)]


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
    report["not_finite"] |= {f"{key(s)} offloaded": _not_finite(s, offload_optimizer=True) for s in SHARDED}
    for name, settings in {"unclipped": {}, "offloaded": {"offload_optimizer": True}}.items():
        report[name] = {f"{key(s)} x{n}": _train(s, accumulation=n, clip_grad_norm=None, **settings) for s, n in OFFLOADED}
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


def _not_finite(setting: Setting, **settings: Any) -> dict[str, Any]:
    """Steps that go wrong on a single rank: nothing may change anywhere, and the next step is that of a run without them."""
    engine, undisturbed = (build(setting, **settings) for _ in range(2))
    take_step(engine, 0)
    take_step(undisturbed, 0)
    before, scores = gather(engine), engine.predict(batch(50)).float()
    results: dict[str, Any] = {}
    for fault in (_nan_in_the_batch, _poisoned, _one_infinite_element):
        norm = fault(engine)
        after = gather(engine)
        changed = sorted({kind for (name, kind), value in after.items() if not _same_bits(value, before[name, kind])})
        same_scores = _same_bits(engine.predict(batch(50)).float(), scores)
        results[fault.__name__] = {"norm": norm, "changed": changed, "steps": engine.store.optimizer_steps(), "same_scores": same_scores}
    results["goes on"] = take_step(engine, 2) == take_step(undisturbed, 2) and weight_hash(gather(engine)) == weight_hash(
        gather(undisturbed)
    )
    engine.close()
    undisturbed.close()
    return results


def _nan_in_the_batch(engine: Engine) -> float:
    batches = micro_batches(1, rank=dist.get_rank(), world_size=dist.get_world_size())
    if dist.get_rank() == 1:
        batches[0]["tokens"][0, 0, 0] = float("nan")
    return engine.train_step(batches, step=1, lr=1e-2).grad_norm.item()


def _poisoned(engine: Engine) -> float:
    if dist.get_rank() == 1:
        engine.poison_next_gradient()
    loss, norm = take_step(engine, 1)
    assert loss == loss, "the loss that is reported is the true one"
    return norm


def _one_infinite_element(engine: Engine) -> float:
    """The last parameter's last element, which one rank alone masters at stages 1 to 3."""
    parameter = list(engine._root.objective.parameters())[-1]
    infinite = torch.zeros(CLASSES)
    infinite[-1] = float("inf")
    hook = parameter.register_hook(lambda gradient: gradient + infinite.to(gradient.dtype)) if dist.get_rank() == 0 else None
    _, norm = take_step(engine, 1)
    if hook is not None:
        hook.remove()
    return norm


def _same_bits(values: torch.Tensor, others: torch.Tensor) -> bool:
    return torch.equal(values.view(torch.int32), others.view(torch.int32))


if __name__ == "__main__":
    main()
