"""When checkpoints are written, how, where to, and which of them stay."""

from typing import Annotated, Literal

from pydantic import Field

from vitscale.config import OPERATIONAL, Auto, Config


class KeepBestConfig(Config):
    """Checkpoints that stay for what an evaluation found."""

    metric: str = Field(pattern=r"^eval/[^/]+/[^/]+$", json_schema_extra=OPERATIONAL)
    """Name of the figure as metrics.jsonl has it, for example eval/test/top1."""
    mode: Literal["max", "min"] = Field(default="max", json_schema_extra=OPERATIONAL)
    """Whether more is better, or less."""
    count: int = Field(default=1, ge=1, json_schema_extra=OPERATIONAL)
    """How many stay."""


class CheckpointConfig(Config):
    """When checkpoints are written, how, where to, and which of them stay. One is always written at the end and on a stop."""

    every_steps: int = Field(default=1000, ge=1, json_schema_extra=OPERATIONAL)
    """Optimizer steps between checkpoints."""
    keep: int = Field(default=3, ge=1, json_schema_extra=OPERATIONAL)
    """Newest checkpoints that stay; older ones are deleted after a newer one is committed."""
    keep_every_steps: Annotated[int, Field(ge=1)] | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Checkpoints whose step is a multiple of this stay for ever."""
    keep_best: KeepBestConfig | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Checkpoints that stay as the best by an evaluation made at their step."""
    in_background: bool | Auto = Field(default="auto", json_schema_extra=OPERATIONAL)
    """Copy the state to host memory and write it while training goes on. auto: where the copy fits the host's memory."""
    upload_to: str | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Address (s3://bucket/prefix, gs://, az://) that committed checkpoints are copied to, and resumed from where the run
    directory has none; null uploads nothing."""
