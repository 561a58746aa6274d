"""The evaluations of a configuration, ready to run."""

from dataclasses import dataclass

from vitscale.config import ConfigError
from vitscale.data.dataset import open_dataset
from vitscale.dist.agreement import on_every_rank
from vitscale.dist.ranks import Ranks
from vitscale.evals.classification import ClassificationEval
from vitscale.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A configured evaluation: its name, the evaluator, which weights it scores, and every how many steps (None: at the end)."""

    name: str
    evaluator: ClassificationEval
    weights: str
    every_steps: int | None


def build_evaluations(config: RunConfig, *, ranks: Ranks) -> tuple[Evaluation, ...]:
    """Open every evaluation's data set. All ranks. Raises `DataError` or `ConfigError` on all ranks when one of them fails."""
    return tuple(_build(config, name, ranks=ranks) for name in config.evals)


def _build(config: RunConfig, name: str, *, ranks: Ranks) -> Evaluation:
    evaluation = config.evals[name]
    on_every_rank(lambda: open_dataset(evaluation.path).sha256)
    dataset = open_dataset(evaluation.path)
    check_classes(dataset.num_classes, wanted=config.objective.num_classes, key=f"evals.{name}.path")
    evaluator = ClassificationEval(evaluation, dataset=dataset, model=config.model, ranks=ranks)
    return Evaluation(name=name, evaluator=evaluator, weights=evaluation.weights, every_steps=evaluation.every_steps)


def check_classes(found: int | None, *, wanted: int, key: str) -> None:
    """Raise `ConfigError` when a data set has other classes than the head has outputs. `key` names the setting."""
    if found is not None and found != wanted:
        raise ConfigError(
            f"objective.num_classes: {wanted}, but the data set of {key} has {found} classes;"
            f" set objective.num_classes={found} or give another data set"
        )
