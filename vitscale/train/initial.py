"""What the weights of a new run start from: random values by recipe, or another run's weights (`init_from`)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.checkpoint.discover import nothing, resolve_checkpoint
from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.dist.agreement import jointly, on_main
from vitscale.models import ModelConfig
from vitscale.nn.init import initial_value
from vitscale.nn.position_table import position_tables
from vitscale.nn.resample import PositionMode
from vitscale.objectives.base import Objective
from vitscale.run_config import RunConfig
from vitscale.train.stored_model import read_stored_model
from vitscale.weights.transfer import InitFromConfig, ModelFacts, format_table, plan_transfer

_SIZES = frozenset(
    {"variant", "image_size", "patch_size", "num_channels", "width", "depth", "depths", "mlp_width", "mlp_ratio", "num_heads", "resampling"}
)
"""Settings that shapes tell, or that the table of what is loaded reports elsewhere."""
_OF_TRAINING = frozenset({"flexible_patches", "stochastic_depth", "stochastic_depth_schedule", "dropout", "patch_dropout"})
"""Settings that change how weights are trained, not what they compute."""

Initial = Callable[[str, nn.Parameter, tuple[int, ...]], Tensor]


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """`value` gives a parameter's whole fp32 tensor; `table` says what `init_from` loads, resamples, replaces and drops."""

    value: Initial
    table: str | None = None


def initial_values(config: RunConfig, objective: Objective, *, resuming: bool, show_life: Callable[[], None] = nothing) -> InitialWeights:
    """What the weights start from. All ranks call this; `show_life` is called while the source is verified.

    A resumed run gets zeros: the checkpoint overwrites every element. `objective` is on the meta device.
    Raises `CheckpointError` when the source does not fit.
    """
    if resuming:
        return InitialWeights(value=_zeros)
    if config.init_from is None:
        return InitialWeights(value=_recipes(config.seed))
    # One rank verifies; all use what it found.
    init_from = config.init_from
    path = Path(on_main(lambda: str(resolve_checkpoint(Path(init_from.path), show_life=show_life))))
    return jointly(lambda: _transferred(config, init_from, path=path, objective=objective))


def _zeros(_name: str, _parameter: nn.Parameter, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape)


def _recipes(seed: int) -> Initial:
    def draw(name: str, parameter: nn.Parameter, shape: tuple[int, ...]) -> Tensor:
        return initial_value(parameter, name=name, shape=shape, seed=seed)

    return draw


def _transferred(config: RunConfig, init_from: InitFromConfig, *, path: Path, objective: Objective) -> InitialWeights:
    reader = CheckpointReader(path)
    kind: Kind = "ema" if init_from.weights == "ema" else "weight"
    stored = read_stored_model(reader)
    with torch.device("meta"):
        trained = stored.build()
    # A file from before the mode was stored does not name it.
    resampling = stored.model.resampling if "resampling" in stored.model.model_fields_set else None
    plan = plan_transfer(
        init_from,
        source=_facts(stored.model, trained, shapes=reader.shapes(kind), resampling=resampling),
        target=_facts(
            config.model,
            objective,
            shapes={name: tuple(parameter.shape) for name, parameter in objective.named_parameters()},
            resampling=config.model.resampling,
        ),
    )
    draw = _recipes(config.seed)

    def value(name: str, parameter: nn.Parameter, shape: tuple[int, ...]) -> Tensor:
        found = plan.value(name, read=partial(reader.read_full, kind=kind))
        return draw(name, parameter, shape) if found is None else found

    return InitialWeights(value=value, table=f"starting from {path}:\n{format_table(plan)}")


def _facts(model: ModelConfig, module: nn.Module, *, shapes: dict[str, tuple[int, ...]], resampling: PositionMode | None) -> ModelFacts:
    shape = model.shape
    return ModelFacts(
        shapes=shapes,
        tables=position_tables(module),
        kernel_side=shape.kernel_side,
        num_channels=shape.num_channels,
        resampling=resampling,
        settings=_settings(model),
    )


def _settings(model: ModelConfig) -> dict[str, Any]:
    """The settings that decide what weights of given shapes compute."""
    values = {name: value for name, value in model.model_dump(mode="json").items() if name not in _SIZES | _OF_TRAINING}
    # By a variant's name or by number.
    return values | {"num_heads": model.shape.num_heads}
