"""Objectives and the table of their configurations: a new objective is one file and one line here."""

from vitscale.objectives.base import Objective, StepOutput
from vitscale.objectives.supervised import Supervised, SupervisedConfig

OBJECTIVES: dict[str, type[SupervisedConfig]] = {config.model_fields["kind"].default: config for config in (SupervisedConfig,)}
"""Configuration classes by `kind`."""

# With a second kind: Annotated[SupervisedConfig | OtherConfig, Field(discriminator="kind")]; pydantic refuses one on a single member.
ObjectiveConfig = SupervisedConfig

__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig", "StepOutput", "Supervised", "SupervisedConfig"]
