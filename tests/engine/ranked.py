"""What the scripts of the dist tests share: engines of this rank, steps, whole state from what the ranks own, counters."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.engine.tiny import GLOBAL_BATCH, micro_batches, tiny_engine
from vitscale.dist.collectives import all_reduce_sum
from vitscale.engine import deepspeed_config
from vitscale.engine.engine import Engine

Setting = tuple[int, str]
SETTINGS: list[Setting] = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
State = dict[tuple[str, str], Tensor]

calls: dict[str, int] = {}


def build(setting: Setting, *, seed: int = 0, accumulation: int = 1, **settings: Any) -> Engine:
    stage, precision = setting
    size = GLOBAL_BATCH // dist.get_world_size() // accumulation
    values = {"micro_batch": size, "accumulation": accumulation, "clip_grad_norm": 1.0, "ema_decay": 0.5} | settings
    return tiny_engine(seed=seed, stage=stage, precision=precision, **values)


def take_step(engine: Engine, step: int, accumulation: int = 1) -> tuple[float, float]:
    batches = micro_batches(step, rank=dist.get_rank(), world_size=dist.get_world_size(), accumulation=accumulation)
    metrics = engine.train_step(batches, step=step, lr=1e-2)
    mean_loss = all_reduce_sum(metrics.loss.double()) / dist.get_world_size()
    return mean_loss.item(), metrics.grad_norm.item()


def gather(engine: Engine) -> State:
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


def restore(engine: Engine, state: State, steps: int) -> None:
    for fragment in engine.store.held():
        whole = state[fragment.name, fragment.kind]
        fragment.values.copy_(whole[fragment.start : fragment.start + fragment.values.numel()])
    engine.store.restored(optimizer_steps=steps)


def weight_hash(state: State) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        if key[1] == "weight":
            digest.update(state[key].numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def nothing_persistent() -> Iterator[None]:
    """Every parameter is gathered for use and let go again, as large ones are; else all tiny ones would stay gathered."""
    limits = deepspeed_config._LIMITS
    kept = limits["cpu"]
    limits["cpu"] = replace(kept, persistent=0, live=0)
    try:
        yield
    finally:
        limits["cpu"] = kept


def count_collectives() -> None:
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


def key(setting: Setting) -> str:
    return f"{setting[0]} {setting[1]}"
