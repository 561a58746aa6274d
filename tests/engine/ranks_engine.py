"""Trains the tiny objective in every engine setting on this rank and prints what came out; run by the dist tests.

Many engines live one after another in one pair of processes: starting processes costs more than all of them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.engine.tiny import GLOBAL_BATCH, batch, micro_batches, tiny_engine
from vitscale.dist.collectives import all_reduce_sum
from vitscale.engine import deepspeed_config
from vitscale.engine.engine import Engine
from vitscale.engine.processes import init_process_group, shutdown

Setting = tuple[int, str]
SETTINGS: list[Setting] = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
State = dict[tuple[str, str], Tensor]

calls: dict[str, int] = {}


def main() -> None:
    torch.set_num_threads(1)
    _count_collectives()
    init_process_group("cpu")
    linear = F.linear
    report: dict[str, Any] = {"train": {_key(s): _train(s) for s in SETTINGS}}
    report["again"] = _train(SETTINGS[3])
    report["accumulation"] = {f"{stage} x{n}": _train((stage, "fp32"), accumulation=n) for stage in range(4) for n in (1, 2, 4)}
    report["accumulation_bf16"] = {f"{stage} x{n}": _train((stage, "bf16"), accumulation=n) for stage in (1, 2, 3) for n in (1, 4)}
    report["round_trip_accumulated"] = _round_trips([(2, "bf16"), (3, "bf16")], accumulation=2)
    report["not_finite"] = {_key(s): _not_finite(s) for s in SETTINGS}
    with _nothing_persistent():
        report["sharded"] = {_key(s): _train(s, recompute="full") for s in ((3, "fp32"), (3, "bf16"))}
        report["round_trip_sharded"] = _round_trips([(3, "fp32"), (3, "bf16")])
    report["round_trip"] = _round_trips(SETTINGS)
    report["linear_untouched"] = F.linear is linear
    shutdown()
    print(json.dumps(report))


def _train(setting: Setting, *, accumulation: int = 1, **settings: Any) -> dict[str, Any]:
    engine = _engine(setting, accumulation=accumulation, **settings)
    first_hash = _hash(_gather(engine))
    losses, norms, volumes = [], [], []
    for step in range(4):
        calls.clear()
        loss, norm = _step(engine, step, accumulation)
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
        "last_hash": _hash(_gather(engine)),
        "scores": scores.sum().item(),
        "averaged": averaged.sum().item(),
        "parameters": sum(1 for f in engine.store.held() if f.kind == "weight"),
    }
    engine.close()
    return result


def _not_finite(setting: Setting) -> dict[str, Any]:
    """A step whose loss is NaN on one rank only: nothing may change anywhere."""
    engine = _engine(setting)
    _step(engine, 0)
    before = _gather(engine)
    poisoned = micro_batches(1, rank=dist.get_rank(), world_size=dist.get_world_size())
    if dist.get_rank() == 1:
        poisoned[0]["tokens"][0, 0, 0] = float("nan")
    norm = engine.train_step(poisoned, step=1, lr=1e-2).grad_norm.item()
    kept = {key: value for key, value in _gather(engine).items() if key[1] != "ema"}
    unchanged = all(torch.equal(value, before[key]) for key, value in kept.items())
    steps = engine.store.optimizer_steps()
    loss, _ = _step(engine, 2)
    engine.close()
    return {"norm": norm, "unchanged": unchanged, "steps": steps, "next_is_finite": loss == loss}


def _round_trips(settings: list[Setting], *, accumulation: int = 1) -> dict[str, Any]:
    """Every setting's state restored into every setting, in an engine of another seed that was used before."""
    sources = {setting: _source(setting, accumulation) for setting in settings}
    results = {}
    for target in settings:
        for source, (state, steps, losses) in sources.items():
            engine = _engine(target, seed=1, accumulation=accumulation)
            _step(engine, 77, accumulation)
            engine.predict(batch(50))
            _restore(engine, state, steps)
            equal = all(torch.equal(value, state[key]) for key, value in _gather(engine).items())
            continued = [_step(engine, step, accumulation)[0] for step in (3, 4)]
            results[f"{_key(source)} -> {_key(target)}"] = {
                "equal": equal,
                "losses": losses,
                "continued": continued,
                "steps": engine.store.optimizer_steps(),
            }
            engine.close()
    return results


def _source(setting: Setting, accumulation: int) -> tuple[State, int, list[float]]:
    engine = _engine(setting, accumulation=accumulation)
    for step in range(3):
        _step(engine, step, accumulation)
    state, steps = _gather(engine), engine.store.optimizer_steps()
    losses = [_step(engine, step, accumulation)[0] for step in (3, 4)]
    engine.close()
    return state, steps, losses


def _engine(setting: Setting, *, seed: int = 0, accumulation: int = 1, **settings: Any) -> Engine:
    stage, precision = setting
    size = GLOBAL_BATCH // dist.get_world_size() // accumulation
    values = {"micro_batch": size, "accumulation": accumulation, "clip_grad_norm": 1.0, "ema_decay": 0.5} | settings
    return tiny_engine(seed=seed, stage=stage, precision=precision, **values)


def _step(engine: Engine, step: int, accumulation: int = 1) -> tuple[float, float]:
    batches = micro_batches(step, rank=dist.get_rank(), world_size=dist.get_world_size(), accumulation=accumulation)
    metrics = engine.train_step(batches, step=step, lr=1e-2)
    return engine.reduce_mean({"loss": metrics.loss})["loss"], metrics.grad_norm.item()


def _gather(engine: Engine) -> State:
    """Whole tensors from what the ranks own; also proves that the pieces cover every element exactly once."""
    whole: State = {}
    covered: State = {}
    shapes = {name: tuple(shape) for name, shape in _shapes(engine)}
    for name, shape in shapes.items():
        for kind in ("weight", "exp_avg", "exp_avg_sq", "ema"):
            whole[name, kind], covered[name, kind] = torch.zeros(shape).view(-1), torch.zeros(shape).view(-1)
    for fragment in engine.store.owned():
        place = slice(fragment.start, fragment.start + fragment.values.numel())
        whole[fragment.name, fragment.kind][place] += fragment.values
        covered[fragment.name, fragment.kind][place] += 1
    for key in whole:
        all_reduce_sum(whole[key])
        assert bool((all_reduce_sum(covered[key]) == 1).all()), f"{key} is not tiled"
    return whole


def _shapes(engine: Engine) -> list[tuple[str, tuple[int, ...]]]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, [(f.name, f.shape) for f in engine.store.held() if f.kind == "weight"])
    return sorted({name: shape for part in gathered for name, shape in part}.items())


def _restore(engine: Engine, state: State, steps: int) -> None:
    for fragment in engine.store.held():
        whole = state[fragment.name, fragment.kind]
        fragment.values.copy_(whole[fragment.start : fragment.start + fragment.values.numel()])
    engine.store.restored(optimizer_steps=steps)


def _hash(state: State) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        if key[1] == "weight":
            digest.update(state[key].numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _nothing_persistent() -> Iterator[None]:
    """Every parameter is gathered for use and let go again, as large ones are; else all tiny ones would stay gathered."""
    limits = deepspeed_config._LIMITS
    kept = limits["cpu"]
    limits["cpu"] = replace(kept, persistent=0, live=0)
    try:
        yield
    finally:
        limits["cpu"] = kept


def _count_collectives() -> None:
    """Count the elements that gradient reductions send; must run before DeepSpeed looks these functions up."""
    for name, position in (("all_reduce", 0), ("reduce", 0), ("reduce_scatter_tensor", 1)):
        setattr(dist, name, _counted(getattr(dist, name), position))


def _counted(function: Callable[..., Any], position: int) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        sent = args[position] if len(args) > position else next(iter(kwargs.values()))
        if sent.numel() > 1:  # norms and flags are single numbers
            calls["reduce"] = calls.get("reduce", 0) + sent.numel()
        return function(*args, **kwargs)

    return wrapper


def _key(setting: Setting) -> str:
    return f"{setting[0]} {setting[1]}"


if __name__ == "__main__":
    main()
