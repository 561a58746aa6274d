"""The evaluations of a configuration, opened and ready to run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitscale.config import DataError
from vitscale.data.dataset import open_dataset
from vitscale.dist.agreement import jointly
from vitscale.dist.ranks import Ranks
from vitscale.evals import EVALUATORS, ClassificationEval
from vitscale.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A configured evaluation: its name, the evaluator, which weights it scores, and every how many steps (None: at the end)."""

    name: str
    evaluator: ClassificationEval
    weights: Literal["model", "ema"]
    every_steps: int | None


def build_evaluations(
    config: RunConfig, *, ranks: Ranks, train_classes: Sequence[str] | None = None, pin_memory: bool = False
) -> tuple[Evaluation, ...]:
    """Open every evaluation's data set. All ranks call this, and all raise the `DataError` or `ConfigError` of any of them.

    `train_classes` are the training data's class names, which those of the evaluations must equal; `pin_memory` is for a GPU.
    """
    return jointly(
        lambda: tuple(_build(config, name, ranks=ranks, train_classes=train_classes, pin_memory=pin_memory) for name in config.evals)
    )


def _build(config: RunConfig, name: str, *, ranks: Ranks, train_classes: Sequence[str] | None, pin_memory: bool) -> Evaluation:
    evaluation = config.evals[name]
    dataset = open_dataset(evaluation.path)
    if train_classes is not None and dataset.classes is not None and dataset.classes != tuple(train_classes):
        raise DataError(
            f"evals.{name}.path: {evaluation.path} has the classes {_shown(dataset.classes)}, the training data {_shown(train_classes)};"
            " accuracy would compare different things. Pack both with the same class names in the same order."
        )
    evaluator = EVALUATORS[evaluation.kind](evaluation, dataset=dataset, model=config.model, ranks=ranks, pin_memory=pin_memory)
    return Evaluation(name=name, evaluator=evaluator, weights=evaluation.weights, every_steps=evaluation.every_steps)


def _shown(classes: Sequence[str]) -> str:
    return ", ".join(classes[:5]) + (f", ... ({len(classes)} in all)" if len(classes) > 5 else "")
