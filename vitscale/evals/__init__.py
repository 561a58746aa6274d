"""The evaluations that a run may carry, by the `kind` of their configuration."""

from typing import Annotated

from pydantic import Field

from vitscale.evals.classification import ClassificationConfig, ClassificationEval
from vitscale.evals.spending import SpendingConfig, SpendingEval

EvalConfig = Annotated[ClassificationConfig | SpendingConfig, Field(discriminator="kind")]

EVALS = {config.model_fields["kind"].default: config for config in (ClassificationConfig, SpendingConfig)}

EVALUATORS: dict[str, type[ClassificationEval]] = {"classification": ClassificationEval, "spending": SpendingEval}
"""What runs the evaluations of each kind."""

__all__ = ["EVALS", "EVALUATORS", "ClassificationConfig", "ClassificationEval", "EvalConfig", "SpendingConfig", "SpendingEval"]
