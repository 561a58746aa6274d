"""Plan: what a run will do on a given cluster, every `auto` decided, each with its reason."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import get_args

import torch

from vitscale.config import ConfigError
from vitscale.data.config import OrderedConfig
from vitscale.data.webdataset_stream import CAVEATS
from vitscale.models.vit_shape import ViTShape
from vitscale.plan.cluster import Cluster, Device
from vitscale.plan.memory import MemoryEstimate, ModelSize, estimate_memory, save_copy_bytes
from vitscale.run_config import Precision, RecomputeMode, RunConfig, ZeroStage, offload_problem, precision_problem

# Left free for the process itself, communication buckets and fragmentation.
USABLE_MEMORY = 0.85
# Past this a CPU gains nothing from a larger micro-batch and loses its caches.
LARGEST_CPU_MICRO_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will happen. `reasons` explains every choice that the configuration left to the plan."""

    device: Device
    world_size: int
    precision: Precision
    zero_stage: ZeroStage
    micro_batch: int
    accumulation: int
    recompute: RecomputeMode
    recompute_every: int
    lanes: int | None
    """None for training data without an order of its own."""
    global_batch: int
    num_steps: int
    num_parameters: int
    step_flops_per_image: int
    memory: MemoryEstimate
    memory_available_bytes: int
    saves_in_background: bool
    reasons: tuple[str, ...]

    @property
    def rank_batch(self) -> int:
        """Samples of a global batch that one rank trains on."""
        return self.micro_batch * self.accumulation

    def to_json(self) -> str:
        """The content of plan.json."""
        return json.dumps(dataclasses.asdict(self) | {"memory_total_bytes": self.memory.total}, indent=2) + "\n"


def make_plan(config: RunConfig, *, cluster: Cluster) -> Plan:
    """Decide everything that the configuration left open. Raises `ConfigError` when the run cannot be done as asked."""
    rank_batch = _rank_batch(config, cluster)
    reasons: list[str] = []
    precision = decide_precision(config, cluster=cluster)
    if config.parallel.precision == "auto":
        reasons.append(f"parallel.precision: {precision}, because the device is {cluster.device}")
    size = model_size(config)
    choice = _Chooser(config=config, cluster=cluster, precision=precision, size=size, rank_batch=rank_batch)
    zero_stage = choice.zero_stage(reasons)
    micro_batch = choice.micro_batch(zero_stage, reasons)
    memory = choice.memory(zero_stage, micro_batch)
    if config.parallel.offload_optimizer:
        reasons.append(_offload_reason(memory, device=cluster.device))
    lanes = _lanes(config, reasons)
    return Plan(
        device=cluster.device,
        world_size=cluster.world_size,
        precision=precision,
        zero_stage=zero_stage,
        micro_batch=micro_batch,
        accumulation=rank_batch // micro_batch,
        recompute=config.parallel.recompute,
        recompute_every=config.parallel.recompute_every,
        lanes=lanes,
        global_batch=config.train.global_batch,
        num_steps=config.num_steps,
        num_parameters=size.num_parameters,
        step_flops_per_image=config.objective.step_flops(config.model.shape),
        memory=memory,
        memory_available_bytes=cluster.memory_bytes,
        saves_in_background=_saves_in_background(config, cluster=cluster, memory=memory, size=size, reasons=reasons),
        reasons=tuple(reasons),
    )


def decide_precision(config: RunConfig, *, cluster: Cluster) -> Precision:
    """The precision asked for; auto is bf16 on cuda, and fp32 on the CPU, where bf16 has no fast kernels."""
    if config.parallel.precision != "auto":
        return config.parallel.precision
    return "bf16" if cluster.device == "cuda" else "fp32"


def with_lanes(plan: Plan, *, lanes: int | None) -> Plan:
    """The plan with another number of lanes: that of the run which it goes on with."""
    if lanes == plan.lanes:
        return plan
    return dataclasses.replace(plan, lanes=lanes, reasons=(*plan.reasons, f"data.lanes: {lanes} after all, as the run began with"))


def resolve(config: RunConfig, *, plan: Plan) -> RunConfig:
    """The configuration with every `auto` that the result depends on filled in. How the work is spread stays open, so
    that the run may go on with another number of ranks."""
    data = config.data.model_copy(update={"lanes": plan.lanes}) if isinstance(config.data, OrderedConfig) else config.data
    return config.model_copy(update={"data": data, "parallel": config.parallel.model_copy(update={"precision": plan.precision})})


def model_size(config: RunConfig) -> ModelSize:
    """Count the objective's parameters on the meta device, where it costs no memory."""
    with torch.device("meta"):
        objective = config.objective.build(config.model.build())
    shape = config.model.shape
    num_parameters = sum(parameter.numel() for parameter in objective.parameters())
    embedding_norm = isinstance(shape, ViTShape) and shape.embedding_norm
    return ModelSize(num_parameters=num_parameters, blocks=shape.blocks, embedding_norm=embedding_norm, stem=shape.stem)


def _rank_batch(config: RunConfig, cluster: Cluster) -> int:
    batch, world = config.train.global_batch, cluster.world_size
    if batch % world:
        lower, upper = batch // world * world, -(-batch // world) * world
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise ConfigError(f"train.global_batch: {batch} does not divide among {world} ranks; use {near}, or another number of ranks")
    return batch // world


def _offload_reason(memory: MemoryEstimate, *, device: Device) -> str:
    if device == "cpu":
        return "parallel.offload_optimizer: frees nothing on a CPU, whose memory is the host's, and costs copies; for rehearsals"
    return (
        f"parallel.offload_optimizer: masters, moments, moving average and their gradients take {memory.host / 2**30:.2f} GiB of host"
        " memory per rank instead of the device's"
    )


def _saves_in_background(config: RunConfig, *, cluster: Cluster, memory: MemoryEstimate, size: ModelSize, reasons: list[str]) -> bool:
    asked = config.checkpoint.in_background
    if asked != "auto":
        return asked
    copy = save_copy_bytes(size, world_size=cluster.world_size, ema=config.optim.ema_decay is not None)
    used = memory.total if cluster.device == "cpu" else memory.host
    fits = used + copy <= USABLE_MEMORY * cluster.host_memory_bytes
    what_follows = "which fits" if fits else f"too much beside {used / 2**30:.2f} of {cluster.host_memory_bytes / 2**30:.1f}"
    reasons.append(
        f"checkpoint.in_background: {str(fits).lower()}, the copy that is written from takes {copy / 2**30:.2f} GiB of host memory per"
        f" rank, {what_follows}"
    )
    return fits


def _lanes(config: RunConfig, reasons: list[str]) -> int | None:
    if not isinstance(config.data, OrderedConfig):
        reasons += CAVEATS
        return None
    if config.data.lanes != "auto":
        return config.data.lanes
    lanes = math.gcd(config.train.global_batch, 256)
    reasons.append(f"data.lanes: {lanes}, the greatest common divisor of train.global_batch {config.train.global_batch} and 256")
    return lanes


@dataclass(frozen=True, kw_only=True)
class _Chooser:
    """Searches the stage and the micro-batch that fit the memory of one rank."""

    config: RunConfig
    cluster: Cluster
    precision: Precision
    size: ModelSize
    rank_batch: int

    def zero_stage(self, reasons: list[str]) -> ZeroStage:
        """The stage asked for, else the lowest of 1 and 3 that holds the model with the smallest micro-batch."""
        asked = self.config.parallel.zero_stage
        if asked != "auto":
            wrong_step = precision_problem(precision=self.precision, zero_stage=asked)
            if wrong_step is not None:
                raise ConfigError(wrong_step)
            nothing_sharded = offload_problem(offload_optimizer=self.config.parallel.offload_optimizer, zero_stage=asked)
            if nothing_sharded is not None:
                raise ConfigError(nothing_sharded)
            return asked
        smallest = self._multiple
        if self.memory(1, smallest).total <= USABLE_MEMORY * self.cluster.memory_bytes:
            reasons.append("parallel.zero_stage: 1, the least communication; weights and gradients fit one device")
            return 1
        reasons.append("parallel.zero_stage: 3, because weights, gradients and activations do not fit one device at stage 1")
        return 3

    def micro_batch(self, zero_stage: ZeroStage, reasons: list[str]) -> int:
        """The micro-batch asked for, else the largest divisor of the rank's share that fits."""
        asked = self.config.parallel.micro_batch
        if asked != "auto":
            self._check_micro_batch(asked)
            return asked
        budget = USABLE_MEMORY * self.cluster.memory_bytes
        largest = LARGEST_CPU_MICRO_BATCH if self.cluster.device == "cpu" else self.rank_batch
        candidates = [n for n in _divisors(self.rank_batch) if n % self._multiple == 0]
        if not candidates:
            raise ConfigError(
                f"train.global_batch: mixup and cutmix mix samples in pairs, and the {self.rank_batch} samples of each of"
                f" {self.cluster.world_size} ranks cannot be cut into even micro-batches; use an even number per rank"
            )
        wanted = [n for n in candidates if n <= largest] or candidates[:1]
        fitting = [n for n in wanted if self.memory(zero_stage, n).total <= budget]
        chosen = (fitting or wanted[:1])[-1]
        why = "the largest that fits" if fitting else "the smallest; the estimate says that even this may not fit"
        reasons.append(f"parallel.micro_batch: {chosen} of the rank's {self.rank_batch} samples, {why}")
        return chosen

    def memory(self, zero_stage: ZeroStage, micro_batch: int) -> MemoryEstimate:
        """The estimate for one choice."""
        assert zero_stage in get_args(ZeroStage)
        return estimate_memory(
            self.size,
            world_size=self.cluster.world_size,
            zero_stage=zero_stage,
            precision=self.precision,
            micro_batch=micro_batch,
            recompute=self.config.parallel.recompute,
            recompute_every=self.config.parallel.recompute_every,
            ema=self.config.optim.ema_decay is not None,
            offload_optimizer=self.config.parallel.offload_optimizer,
            device=self.cluster.device,
        )

    @property
    def _multiple(self) -> int:
        return self.config.objective.micro_batch_multiple

    def _check_micro_batch(self, micro_batch: int) -> None:
        if self.rank_batch % micro_batch:
            divisors = ", ".join(str(n) for n in _divisors(self.rank_batch))
            raise ConfigError(
                f"parallel.micro_batch: {micro_batch} does not divide the {self.rank_batch} samples that each of"
                f" {self.cluster.world_size} ranks trains on per step; use one of {divisors}"
            )
        if micro_batch % self._multiple:
            raise ConfigError(
                f"parallel.micro_batch: {micro_batch} is odd, but mixup and cutmix mix the samples of a micro-batch in pairs; use an"
                " even divisor of the rank's samples, or auto"
            )


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
