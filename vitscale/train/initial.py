"""What the weights of a new run start from: random values by recipe, or another run's weights (`init_from`)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitscale.checkpoint.discover import resolve_checkpoint
from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import decode, parse_yaml
from vitscale.dist.agreement import on_main
from vitscale.nn.init import initial_value
from vitscale.objectives.base import Objective
from vitscale.run_config import RunConfig
from vitscale.weights.transfer import InitFromConfig, TransferPlan, plan_transfer, transferred_value

Initial = Callable[[str, nn.Parameter, tuple[int, ...]], Tensor]


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """`value` gives a parameter's whole fp32 tensor; `table` says what `init_from` loads, resamples, replaces and drops."""

    value: Initial
    table: str | None = None


def initial_values(config: RunConfig, objective: Objective, *, resuming: bool) -> InitialWeights:
    """What the weights start from. All ranks call this.

    A resumed run gets zeros: the checkpoint overwrites every element. `objective` is on the meta device.
    Raises `CheckpointError` when the source does not fit.
    """
    if resuming:
        return InitialWeights(value=_zeros)
    if config.init_from is None:
        return InitialWeights(value=_recipes(config.seed))
    return _transferred(config, config.init_from, objective)


def _zeros(name: str, parameter: nn.Parameter, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape)


def _recipes(seed: int) -> Initial:
    def draw(name: str, parameter: nn.Parameter, shape: tuple[int, ...]) -> Tensor:
        return initial_value(parameter, name=name, shape=shape, seed=seed)

    return draw


def _transferred(config: RunConfig, source: InitFromConfig, objective: Objective) -> InitialWeights:
    # One rank verifies; all use what it found.
    path = Path(on_main(lambda: str(resolve_checkpoint(Path(source.path)))))
    reader = CheckpointReader(path)
    kind: Kind = "ema" if source.weights == "ema" else "weight"
    trained = decode(RunConfig, values=parse_yaml(reader.config_text, source=str(path)), source=str(path))
    plan = plan_transfer(
        source,
        source_shapes=reader.shapes(kind),
        source_model=trained.model.shape,
        target_shapes={name: tuple(parameter.shape) for name, parameter in objective.named_parameters()},
        target_model=config.model.shape,
        where=str(path),
    )
    draw = _recipes(config.seed)

    def value(name: str, parameter: nn.Parameter, shape: tuple[int, ...]) -> Tensor:
        row = plan.row(name)
        if not row.reads_source:
            return draw(name, parameter, shape)
        return transferred_value(row, reader.read_full(name, kind=kind), plan=plan)

    return InitialWeights(value=value, table=plan.table())
