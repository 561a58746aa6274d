"""What a run reads: the packed data set and the order's parameters."""

from typing import Annotated, Literal

from pydantic import Field

from vitscale.config import OPERATIONAL, Config

Auto = Literal["auto"]


class DataConfig(Config):
    """The training data set and how its samples are ordered and read."""

    path: str
    """Folder of a packed data set, the one that holds manifest.json."""
    lanes: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Canonical streams that the order is split into; the global batch is a multiple of it. Part of the order: it never
    depends on the number of ranks. auto: the greatest common divisor of the global batch and 256."""
    block: int = Field(default=64, ge=1)
    """Neighbouring samples fetched with one ranged read. Part of the order."""
    window: int = Field(default=4, ge=1)
    """Blocks shuffled together within a lane. Part of the order."""
    num_workers: int = Field(default=1, ge=0, json_schema_extra=OPERATIONAL)
    """Loader processes per rank; 0 decodes in the training process. The batches are the same for any number."""
    prefetch: int = Field(default=4, ge=1, json_schema_extra=OPERATIONAL)
    """Batches that each loader process prepares ahead."""
    log_samples: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Write the sample ids of every batch to samples/rank-NNNNN.jsonl."""
