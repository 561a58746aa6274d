"""The evaluations that a run may carry, by the `kind` of their configuration."""

from vitscale.evals.classification import ClassificationConfig

EvalConfig = ClassificationConfig

EVALS = {config.model_fields["kind"].default: config for config in (ClassificationConfig,)}

__all__ = ["EVALS", "ClassificationConfig", "EvalConfig"]
