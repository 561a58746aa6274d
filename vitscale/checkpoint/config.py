"""When checkpoints are written and how many are kept."""

from pydantic import Field

from vitscale.config import OPERATIONAL, Config


class CheckpointConfig(Config):
    """When checkpoints are written and how many are kept. One is always written at the end and on a stop."""

    every_steps: int = Field(default=1000, ge=1, json_schema_extra=OPERATIONAL)
    """Optimizer steps between checkpoints."""
    keep: int = Field(default=3, ge=1, json_schema_extra=OPERATIONAL)
    """Newest checkpoints that stay; older ones are deleted after a newer one is committed."""
