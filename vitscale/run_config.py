"""RunConfig: everything that was asked for, one YAML file for one whole run, and the checks that span its sections."""

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vitscale.checkpoint.config import CheckpointConfig
from vitscale.config import OPERATIONAL, Auto, Config, ConfigError, decode_file, dump_yaml, problem_report
from vitscale.data.config import DataConfig, OrderedConfig
from vitscale.evals import EvalConfig
from vitscale.models import ModelConfig, ViTConfig
from vitscale.objectives import ObjectiveConfig
from vitscale.optim.config import OptimConfig, RsqrtConfig, WsdConfig
from vitscale.weights.transfer import InitFromConfig

Precision = Literal["fp32", "bf16"]
ZeroStage = Literal[0, 1, 2, 3]
RecomputeMode = Literal["none", "selective", "full"]

_CHANNELS_OF_IMAGES = (1, 3)


class ParallelConfig(Config):
    """How the step is spread over devices. Nothing here changes what is computed, except `precision`."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", json_schema_extra=OPERATIONAL)
    """Where the model runs. auto: cuda where a GPU is present, else cpu."""
    precision: Precision | Auto = "auto"
    """Compute type of weights and activations; master weights and optimizer state are fp32 in either. auto: bf16 on cuda, fp32 on cpu."""
    zero_stage: ZeroStage | Auto = Field(default="auto", json_schema_extra=OPERATIONAL)
    """What DeepSpeed ZeRO shards: 0 nothing, 1 optimizer state, 2 and gradients, 3 and weights. auto: 1, or 3 where 1 does not fit."""
    micro_batch: Annotated[int, Field(ge=1)] | Auto = Field(default="auto", json_schema_extra=OPERATIONAL)
    """Samples per rank and forward pass. auto: the largest divisor of the rank's share that fits the device's memory."""
    recompute: RecomputeMode = Field(default="none", json_schema_extra=OPERATIONAL)
    """Activation checkpointing: none; selective keeps the results of matrix products; full keeps each block's input only."""
    recompute_every: int = Field(default=1, ge=1, json_schema_extra=OPERATIONAL)
    """Apply `recompute` to every n-th block."""
    offload_optimizer: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Keep master weights and optimizer state in host memory (ZeRO-Offload); needs ZeRO stage 1, 2 or 3."""


class TrainConfig(Config):
    """How long to train, on batches of what size, and what to log."""

    num_samples: int = Field(ge=1)
    """Samples to train on, over all epochs; rounded down to whole global batches."""
    global_batch: int = Field(ge=1)
    """Samples per optimizer step, over all ranks and accumulation steps."""
    log_every_steps: int = Field(default=10, ge=1, json_schema_extra=OPERATIONAL)
    """Optimizer steps between log lines; between them no metric leaves the device."""
    log_images: int = Field(default=16, ge=0, json_schema_extra=OPERATIONAL)
    """Augmented inputs shown in TensorBoard at the start of the run and of every resume; 0 shows none."""


class WatchConfig(Config):
    """What is looked for while a run goes on. Nothing here changes what is computed."""

    hang_seconds: Annotated[float, Field(gt=0)] | Auto | None = Field(default="auto", json_schema_extra=OPERATIONAL)
    """A rank that shows no progress for so long is stopped, with the stacks of all ranks on disk. auto: a multiple of the longest
    time that it has taken so far, at least 20 seconds; half an hour before the first step is done. null: never, for a debugger."""
    straggler_factor: float = Field(default=2.0, gt=1, json_schema_extra=OPERATIONAL)
    """A rank whose own work takes so many times the median of the other ranks between two reports is named."""
    compare_replicas_every_steps: Annotated[int, Field(ge=1)] | None = Field(default=500, json_schema_extra=OPERATIONAL)
    """Steps between comparisons of what all ranks hold alike, also made before every save; null makes none."""
    max_skipped_steps: int = Field(default=3, ge=0, json_schema_extra=OPERATIONAL)
    """Consecutive steps without a finite gradient that are skipped on all ranks; one more ends the run."""


class StageConfig(Config):
    """A stretch of the run on smaller images, from where the stage before ends."""

    until_samples: int = Field(ge=1)
    """Where the stage ends, in samples from the start of the run; a batch belongs to the stage in which it begins."""
    image_size: int = Field(ge=1)
    """Side of the square input in pixels: a multiple of the patch size, at most model.image_size. Learned positions are
    resampled to the smaller grid in every step, as model.resampling says."""


class RunConfig(Config):
    """One whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", json_schema_extra=OPERATIONAL)
    """Name of the run; its directory is `<output>/<name>`."""
    output: str = Field(default="runs", json_schema_extra=OPERATIONAL)
    """Folder that holds run directories."""
    seed: int = Field(default=0, ge=0)
    """Decides initial weights, sample order and augmentation."""
    model: ModelConfig
    """The backbone."""
    objective: ObjectiveConfig
    """What is learned: loss, heads and augmentation."""
    data: DataConfig
    """The training data."""
    optim: OptimConfig
    """Optimizer and schedule."""
    train: TrainConfig
    """Length and batch size."""
    parallel: ParallelConfig = ParallelConfig()
    """Precision, sharding and recomputation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""
    watch: WatchConfig = WatchConfig()
    """Hangs, slow ranks, silent corruption."""
    evals: dict[str, EvalConfig] = Field(default={}, json_schema_extra=OPERATIONAL)
    """Evaluations by name, during training and by `vitscale evaluate`."""
    stages: tuple[StageConfig, ...] = ()
    """Progressive resizing: stages on smaller images; after the last one the run goes on at model.image_size."""
    init_from: InitFromConfig | None = None
    """Weights to start from (fine-tuning); null starts from scratch."""

    @property
    def run_dir(self) -> Path:
        """The run directory, absolute."""
        return (Path(self.output) / self.name).absolute()

    @property
    def stage_starts(self) -> tuple[int, ...]:
        """Samples consumed before each stage of the run, the last of which is at model.image_size."""
        return (0, *(stage.until_samples for stage in self.stages))

    @property
    def stage_image_sizes(self) -> tuple[int, ...]:
        """Side of the images of each stage of the run."""
        return (*(stage.image_size for stage in self.stages), self.model.image_size)

    def stage_at(self, samples: int) -> int:
        """Number of the stage, from 0, of the batch that follows `samples` consumed samples."""
        return bisect.bisect_right(self.stage_starts, samples) - 1

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.train.num_samples // self.train.global_batch


def load_run_config(path: Path, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Decode and cross-check a run's YAML file. Raises `ConfigError` that lists every problem found."""
    config = decode_file(RunConfig, path=path, overrides=overrides)
    found = list(problems(config))
    if found:
        raise ConfigError(problem_report(str(path), found))
    return config


def dump_run_config(config: RunConfig) -> str:
    """The resolved configuration as YAML: every field, defaults included."""
    return dump_yaml(config.model_dump(mode="json"))


def problems(config: RunConfig) -> Iterator[str]:
    """Everything that is wrong between sections, each with the dotted path and the remedy."""
    yield from _image_problems(config)
    yield from _pooling_problems(config)
    yield from _batch_problems(config)
    yield from _stage_problems(config)
    yield from _schedule_problems(config)
    yield from _parallel_problems(config.parallel)
    yield from _average_problems(config)
    yield from _eval_form_problems(config)
    yield from _sequence_problems(config)


def precision_problem(*, precision: Precision | Auto, zero_stage: ZeroStage | Auto) -> str | None:
    """Why a stage trains wrongly in a precision, with path and remedy; None where it does not, or where either is still open."""
    if precision != "bf16" or zero_stage != 0:
        return None
    return "parallel.zero_stage: 0 with precision bf16 takes a wrong first Adam step in DeepSpeed 0.19; use stage 1, 2 or 3, or fp32"


def offload_problem(*, offload_optimizer: bool, zero_stage: ZeroStage | Auto) -> str | None:
    """Why the optimizer cannot be offloaded at a stage, with path and remedy; None where it can, or where the stage is still open."""
    if not offload_optimizer or zero_stage != 0:
        return None
    return (
        "parallel.offload_optimizer: at ZeRO stage 0 DeepSpeed wraps no optimizer that it could keep in host memory; use"
        " parallel.zero_stage 1, 2, 3 or auto, or leave offload_optimizer out"
    )


def _image_problems(config: RunConfig) -> Iterator[str]:
    channels = config.model.num_channels
    if channels not in _CHANNELS_OF_IMAGES:
        yield f"model.num_channels: images are read as grey (1 channel) or colour (3), not with {channels} channels"


def _pooling_problems(config: RunConfig) -> Iterator[str]:
    if config.model.kind == "vit" and config.model.pooling == "none":
        yield "model.pooling: none makes no vector of an image, and objective supervised classifies one; use cls, mean or map"


def _batch_problems(config: RunConfig) -> Iterator[str]:
    batch, lanes = config.train.global_batch, config.data.lanes if isinstance(config.data, OrderedConfig) else 1
    if lanes != "auto" and batch % lanes:
        yield f"train.global_batch: {batch} is not a multiple of data.lanes {lanes}; every batch takes equally many samples of each lane"
    if config.num_steps < 1:
        yield f"train.num_samples: {config.train.num_samples} is less than one global batch of {batch}"


def _stage_problems(config: RunConfig) -> Iterator[str]:
    largest = config.model.image_size
    patches = sorted({form.patch_size or config.model.shape.patch_size for form in config.model.input_forms})
    what = f"the patch size {patches[0]}" if len(patches) == 1 else f"every patch size {', '.join(map(str, patches))}"
    for index, (stage, start) in enumerate(zip(config.stages, config.stage_starts, strict=False)):
        if not start < stage.until_samples < config.train.num_samples:
            yield (
                f"stages.{index}.until_samples: {stage.until_samples} does not lie between the start of the stage at {start} and the"
                f" end of the run (train.num_samples {config.train.num_samples})"
            )
        if any(stage.image_size % patch for patch in patches) or stage.image_size > largest:
            yield f"stages.{index}.image_size: {stage.image_size} is not a multiple of {what} of at most model.image_size {largest}"


def _schedule_problems(config: RunConfig) -> Iterator[str]:
    schedule, total = config.optim.schedule, config.train.num_samples
    if schedule.warmup_samples > total:
        yield f"optim.schedule.warmup_samples: {schedule.warmup_samples} is longer than the whole run (train.num_samples {total})"
        return
    match schedule:
        case RsqrtConfig():
            tail, length = "cooldown_samples", schedule.cooldown_samples
        case WsdConfig():
            tail, length = "decay_samples", schedule.decay_samples
        case _:
            return
    if schedule.warmup_samples + length > total:
        yield (
            f"optim.schedule.{tail}: {length} does not fit between the warm-up of {schedule.warmup_samples} and the end"
            f" (train.num_samples {total})"
        )


def _parallel_problems(parallel: ParallelConfig) -> Iterator[str]:
    wrong_step = precision_problem(precision=parallel.precision, zero_stage=parallel.zero_stage)
    if wrong_step is not None:
        yield wrong_step
    nothing_sharded = offload_problem(offload_optimizer=parallel.offload_optimizer, zero_stage=parallel.zero_stage)
    if nothing_sharded is not None:
        yield nothing_sharded
    if parallel.recompute == "none" and parallel.recompute_every != 1:
        yield f"parallel.recompute_every: {parallel.recompute_every} has no effect with recompute none; set recompute, or leave it out"


def _average_problems(config: RunConfig) -> Iterator[str]:
    if config.optim.ema_decay is not None:
        return
    for name, evaluation in config.evals.items():
        if evaluation.weights == "ema":
            yield f"evals.{name}.weights: 'ema' needs a moving average; set optim.ema_decay, for example 0.999"


def _sequence_problems(config: RunConfig) -> Iterator[str]:
    """What takes images to be of one size, where they are sequences of patches."""
    if config.model.eval_form.sequence is None:
        return
    if config.stages:
        yield "stages: images of model.naflex have no common size; give several model.naflex.sequence_lengths instead"
    objective = config.objective
    if objective.erasing is not None:
        yield "objective.erasing: boxes are drawn for square images, and with model.naflex they keep their aspect ratio; leave it out"
    if objective.mixing.is_on:
        yield "objective.mixup_alpha, objective.cutmix_alpha: images of model.naflex differ in size and cannot be mixed; leave them out"


def _eval_form_problems(config: RunConfig) -> Iterator[str]:
    for name, evaluation in config.evals.items():
        yield from (f"evals.{name}.{problem}" for problem in evaluation.form_problems(config.model))
        if evaluation.kind == "spending" and not (isinstance(config.model, ViTConfig) and config.model.halting):
            yield f"evals.{name}.kind: spending is told of models that spend different amounts on images; set model.halting"
