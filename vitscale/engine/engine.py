"""One rank's engine: starts an objective under DeepSpeed, takes optimizer steps, predicts, and shows its sharded state."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import deepspeed
import torch
from torch import Tensor, nn

from vitscale.data.types import Batch
from vitscale.dist.ranks import Ranks
from vitscale.dist.seeding import counter_key
from vitscale.engine import internals
from vitscale.engine.collective_time import ForwardTime
from vitscale.engine.deepspeed_config import EngineConfig, deepspeed_config
from vitscale.engine.ema import WeightAverage
from vitscale.engine.materialise import InitialValue, materialise, write_masters
from vitscale.engine.processes import init_process_group, peak_resident_bytes
from vitscale.engine.recompute import apply_recompute
from vitscale.engine.replicas import ReplicaReport, compare_replicated, compare_with_masters, flip_bit
from vitscale.engine.shards import EngineStore
from vitscale.objectives.base import Method, Objective, StepOutput
from vitscale.optim.groups import parameter_groups

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What an optimizer step leaves on the device: this rank's mean loss and metrics over its micro-batches, and the norm
    of the global gradient before clipping, equal on all ranks and infinite when the gradient was not finite."""

    loss: Tensor
    metrics: dict[str, Tensor]
    grad_norm: Tensor


def build_engine(objective: Objective, *, config: EngineConfig, seed: int, initial: InitialValue) -> "Engine":
    """Start `objective`, which is on the meta device, on this rank. All ranks call this with equal arguments.

    Joins the process group if none is up. Every parameter's master weight starts from `initial`, so runs start equal at
    every stage, precision and number of ranks. Raises `ConfigError` for a combination that trains wrongly.
    """
    internals.check_version()
    shapes = {name: tuple(parameter.shape) for name, parameter in objective.named_parameters()}
    ds_config = deepspeed_config(config, num_parameters=sum(p.numel() for p in objective.parameters()))
    ranks = init_process_group(config.device)
    device = torch.device("cuda", torch.cuda.current_device()) if config.device == "cuda" else torch.device("cpu")
    materialise(objective, zero_stage=config.zero_stage, dtype=_DTYPES[config.precision], device=device, config=ds_config)
    apply_recompute(objective.backbone, mode=config.recompute, every=config.recompute_every)
    root = _Root(objective)
    optimizer = _optimizer(dict(objective.named_parameters()), shapes=shapes, config=config)
    engine, *_ = deepspeed.initialize(model=root, optimizer=optimizer, config=ds_config)
    return Engine(engine, root=root, config=config, seed=seed, ranks=ranks, device=device, initial=initial)


class Engine:
    """A running objective. Build it with `build_engine`; every method is called on all ranks."""

    def __init__(
        self,
        deepspeed_engine: Any,
        *,
        root: "_Root",
        config: EngineConfig,
        seed: int,
        ranks: Ranks,
        device: torch.device,
        initial: InitialValue,
    ) -> None:
        self.config = config
        self.device = device
        self._engine = deepspeed_engine
        self._root = root
        self._seed = seed
        self._ranks = ranks
        self._is_poisoned = False
        self._forward_time = ForwardTime(device=device, zero_stage=config.zero_stage)
        self._optimizer = internals.inner_optimizer(deepspeed_engine)
        self._refresh = partial(internals.refresh_forward_weights, deepspeed_engine, zero_stage=config.zero_stage)
        parameters = dict(root.objective.named_parameters())
        self._names = {parameter: name for name, parameter in parameters.items()}
        self._shards = internals.master_shards(deepspeed_engine, names=self._names, zero_stage=config.zero_stage)
        with torch.no_grad():
            write_masters(self._shards, initial=initial, parameters=parameters)
            self._refresh()
        masters = [shard.values for shard in self._shards]
        self._average = WeightAverage(masters, decay=config.ema_decay) if config.ema_decay is not None else None
        self.store = EngineStore(
            zero_stage=config.zero_stage,
            rank=ranks.rank,
            world_size=ranks.world_size,
            shards=self._shards,
            averages=self._average.averages if self._average else None,
            optimizer=self._optimizer,
            refresh=self._refresh,
        )

    def train_step(self, micro_batches: Sequence[Batch], *, step: int, lr: float) -> StepMetrics:
        """One optimizer step on the mean gradient of all ranks' micro-batches. Results stay on the device.

        At stages 1 to 3 DeepSpeed waits for the device once a step, to see whether the gradient is finite. One that is not
        on a single rank changes nothing on any rank, at every stage: weights, moments, Adam's step count and the moving
        average stay as they are, bit for bit; the norm says so.
        """
        assert len(micro_batches) == self.config.accumulation, f"{len(micro_batches)} micro-batches, not {self.config.accumulation}"
        self._seed_random_operations(step)
        outputs = [
            self._forward_backward(batch, step, last=number == self.config.accumulation)
            for number, batch in enumerate(micro_batches, start=1)
        ]
        grad_norm, is_taken = self._update(lr)
        self._root.objective.after_step(step)
        if self._average is not None:
            self._average.update(is_taken=is_taken)
        return StepMetrics(
            loss=_mean([output.loss for output in outputs]),
            metrics={name: _mean([output.metrics[name] for output in outputs]) for name in outputs[0].metrics},
            grad_norm=grad_norm,
        )

    @torch.no_grad()
    def compare_replicas(self) -> ReplicaReport:
        """Compare what the ranks hold alike, between two steps; see `vitscale.engine.replicas` for what that is. Changes nothing."""
        if self.config.zero_stage == 0:
            return compare_replicated({(f.name, f.kind): f.values for f in self.store.held()})
        return compare_with_masters(
            names=list(self._names.values()),
            copies=internals.whole_parameters(self._names, zero_stage=self.config.zero_stage),
            shards=self._shards,
            forward_shards=internals.forward_shards(self._engine, zero_stage=self.config.zero_stage),
        )

    def flip_weight_bit(self) -> str:
        """Flip one bit of a weight that this rank's forward reads, as a fault in its memory would; returns the parameter's name.

        For rehearsals of that fault and for tests; all other ranks need not call it. From stage 1 on the next step heals it.
        """
        whole = internals.whole_parameters(self._names, zero_stage=self.config.zero_stage)
        if whole:
            name = max(whole, key=lambda name: whole[name].numel())
            flip_bit(whole[name])
            return name
        # Stage 3 with nothing gathered: of its own slice.
        forward_shards = internals.forward_shards(self._engine, zero_stage=self.config.zero_stage)
        shard, forward = next((s, f) for s, f in zip(self._shards, forward_shards, strict=True) if s.pieces)
        flip_bit(forward, element=shard.pieces[0].offset)
        return shard.pieces[0].name

    def poison_next_gradient(self) -> None:
        """Make this rank's gradient of the next step NaN, as a fault in its arithmetic would; the loss it reports is the true one.

        For rehearsals of that fault and for tests; all other ranks need not call it.
        """
        self._is_poisoned = True

    @torch.no_grad()
    def predict(self, batch: Batch, *, method: Method = "predict") -> Any:
        """A `method` of the objective on this rank's batch, in evaluation mode. Every rank calls it equally often (ZeRO-3 gathers)."""
        self._root.eval()
        try:
            return self._engine(method, self._to_device(batch), 0)
        finally:
            self._root.train()

    def weights(self, which: Literal["model", "ema"]) -> AbstractContextManager[None]:
        """Context in which `predict` uses the trained weights or their moving average. No training inside of it."""
        if which == "model":
            return nullcontext()
        assert self._average is not None, "this engine keeps no moving average"
        return _no_grad(self._average.in_place_of_weights(self._refresh))

    def take_forward_seconds(self) -> float | None:
        """Seconds of the device on this rank's forward passes since the last call, where they are measured; see `ForwardTime`."""
        return self._forward_time.take()

    def peak_memory_bytes(self) -> int:
        """Largest memory so far: allocated on the GPU, or resident in this process on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()

    def close(self) -> None:
        """Free weights, state and hooks. The engine is of no use afterwards; another may be built."""
        engine = self._engine
        self.__dict__.clear()
        internals.destroy(engine)

    def _seed_random_operations(self, step: int) -> None:
        """Whatever torch draws in a forward pass depends on this alone, so that a resume needs no generator state.

        The ranks draw differently, so the draws change with their number: what must not (augmentation, mixing) is drawn per
        sample by the loader.
        """
        key = counter_key(self._seed, "step", step, self._ranks.rank) >> 1
        # Not torch.manual_seed: it records a stack trace for every backend that is not in use, milliseconds a step.
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)

    def _forward_backward(self, batch: Batch, step: int, *, last: bool) -> StepOutput:
        with self._forward_time.measure():
            loss, metrics = self._engine("forward", self._to_device(batch), step)
        # Divides by the accumulation; the mean over ranks is taken in the last one, or in each (stages 2, 3).
        self._engine.backward(loss * math.nan if self._is_poisoned else loss)
        self._is_poisoned = False
        if not last:
            self._engine.step()  # only counts the micro-batch
        return StepOutput(loss=loss.detach(), metrics=metrics)

    def _update(self, lr: float) -> tuple[Tensor, bool | Tensor]:
        """The gradient's norm, and whether the step was taken: at stage 0 only the device knows."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self.config.zero_stage == 0:
            grad_norm = self._clip_replicated()
            self._engine.step()
            return grad_norm, torch.isfinite(grad_norm)
        self._engine.step()
        return internals.global_grad_norm(self._engine, device=self.device), not internals.skipped_step(self._engine)

    @torch.no_grad()
    def _clip_replicated(self) -> Tensor:
        """What DeepSpeed does at the other stages, by the same formula: norm, skip if it is not finite, clip."""
        gradients = [parameter.grad for parameter in self._root.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = torch.isfinite(norm)
        # Fused AdamW reads this attribute on the device and leaves weights, moments and step alone where it is 1.
        self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        if self.config.clip_grad_norm is not None:
            scale = torch.clamp((norm + 1e-6) / self.config.clip_grad_norm, min=1.0)
            torch._foreach_mul_(gradients, 1.0 / scale)
        return torch.where(finite, norm, torch.inf)

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}


class _Root(nn.Module):
    """The module DeepSpeed wraps. `predict` passes through it as `forward` does, so that ZeRO-3 gathers for both."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, method: Literal["forward"] | Method, batch: Batch, step: int) -> Any:
        if method != "forward":
            return getattr(self.objective, method)(batch)
        # Not by calling the module: ZeRO-3's hooks would look for tensors in the dataclass in vain. The objective's own
        # parameters are gathered all the same, as external parameters of this module.
        output = self.objective.forward(batch, step)
        return output.loss, {name: value.detach() for name, value in output.metrics.items()}


def _optimizer(parameters: dict[str, nn.Parameter], *, shapes: dict[str, tuple[int, ...]], config: EngineConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [parameters[name] for name in group.names], "weight_decay": group.weight_decay}
        for group in parameter_groups(shapes.items(), weight_decay=config.weight_decay)
    ]
    # torch's own: DeepSpeed's optimizers compile for minutes. The rate is set at every step.
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean()


@contextmanager
def _no_grad(context: AbstractContextManager[None]) -> Iterator[None]:
    with torch.no_grad(), context:
        yield
