"""Demand: what a rank asks of training data of any kind."""

from dataclasses import dataclass

from vitscale.data.lanes import BatchSlice
from vitscale.data.replacement import Replacements
from vitscale.data.types import StagedTransform


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a rank asks of training data: `rank_slice` of every global batch after `start_samples` samples, transformed.

    `seed` decides the transform's draws; `replaced_before` names the samples that were.
    """

    transform: StagedTransform
    seed: int
    global_batch: int
    start_samples: int
    rank_slice: BatchSlice
    replaced_before: Replacements
