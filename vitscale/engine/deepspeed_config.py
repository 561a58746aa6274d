"""What an engine is asked for, and the DeepSpeed configuration that gives exactly that."""

from dataclasses import dataclass
from typing import Any, Literal

from vitscale.config import ConfigError
from vitscale.run_config import Precision, RecomputeMode, ZeroStage, offload_problem, precision_problem

Device = Literal["cpu", "cuda"]

_NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """One rank's engine.

    `micro_batch` samples pass forward and backward at a time, `accumulation` times per optimizer step. Masters, moments and
    the moving average are fp32 in either precision. `clip_grad_norm` and `ema_decay` are None for never and for none.
    `offload_optimizer` keeps masters, moments and average in host memory, where the optimizer then works.
    """

    zero_stage: ZeroStage
    precision: Precision
    device: Device
    micro_batch: int
    accumulation: int = 1
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    offload_optimizer: bool = False
    recompute: RecomputeMode = "none"
    recompute_every: int = 1
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """Sizes in elements: how much ZeRO reduces at once, fetches ahead, keeps gathered, and never shards."""

    reduce: int
    prefetch: int
    live: int
    persistent: int


# On the CPU what is gathered or bucketed is RAM twice over; these let ViT-H/14 fp32 train in 24 GiB on two ranks.
_LIMITS: dict[Device, _Limits] = {
    "cpu": _Limits(reduce=20_000_000, prefetch=20_000_000, live=50_000_000, persistent=10_000),
    "cuda": _Limits(reduce=200_000_000, prefetch=50_000_000, live=1_000_000_000, persistent=100_000),
}


def check(config: EngineConfig) -> None:
    """Raise `ConfigError` for what DeepSpeed would run, but wrongly."""
    # bf16 at stage 0: its fp16 wrapper counts a dummy step in Adam's bias correction, the first update is 0.74 of what it should be.
    wrong_step = precision_problem(precision=config.precision, zero_stage=config.zero_stage)
    if wrong_step is not None:
        raise ConfigError(wrong_step)
    nothing_sharded = offload_problem(offload_optimizer=config.offload_optimizer, zero_stage=config.zero_stage)
    if nothing_sharded is not None:
        raise ConfigError(nothing_sharded)


def deepspeed_config(config: EngineConfig, *, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's JSON configuration. `num_parameters` of the whole model bounds the buckets.

    Stage 0 clips outside DeepSpeed (it would not report the norm), so its clipping is off there. In bf16, gradients of several
    micro-batches are summed in fp32 at stages 2 and 3, in bf16 at stage 1.
    """
    check(config)
    clips_itself = config.zero_stage > 0 and config.clip_grad_norm is not None
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip_grad_norm if clips_itself else 0.0,
        # The overflow check makes the stages agree: no update is ever made from a gradient that is not finite.
        "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": True},
        "steps_per_print": _NEVER,
        "zero_optimization": _zero(config, num_parameters=num_parameters),
    }
    if config.precision == "bf16" and config.accumulation > 1 and config.zero_stage > 1:
        # A bf16 sum of many micro-batches loses the small ones. DeepSpeed offers no fp32 sum at stage 1 with masters that
        # a checkpoint of ours could read.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.offload_optimizer:
        # torch's AdamW, fused, works on host memory as well; DeepSpeed's own compiles for minutes.
        settings["zero_force_ds_cpu_optimizer"] = False
    return settings


def _zero(config: EngineConfig, *, num_parameters: int) -> dict[str, Any]:
    limits = _LIMITS[config.device]
    settings: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 0:
        return settings
    settings |= {
        "overlap_comm": config.device == "cuda",
        # A new bucket is allocated every step: no larger than it can ever be filled.
        "reduce_bucket_size": max(1, min(limits.reduce, num_parameters)),
        # Copying gradients together as they appear frees memory and overlaps on a GPU. For stage 1 on the CPU it costs
        # a hook and a copy per parameter and gains nothing.
        "contiguous_gradients": config.device == "cuda" or config.zero_stage > 1,
        "allgather_bucket_size": 2 * max(1, limits.reduce // 2),
    }
    if config.offload_optimizer:
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": config.device == "cuda"}
    if config.zero_stage == 3:
        settings |= {
            # The default patches torch.nn.functional.linear for the rest of the process and rounds bf16 differently.
            "memory_efficient_linear": False,
            # The optimizer works on one sub-group at a time, which bounds the temporaries of its step.
            "sub_group_size": 30_000_000,
            "stage3_prefetch_bucket_size": limits.prefetch,
            "stage3_max_live_parameters": limits.live,
            "stage3_max_reuse_distance": limits.live,
            "stage3_param_persistence_threshold": limits.persistent,
        }
    return settings
