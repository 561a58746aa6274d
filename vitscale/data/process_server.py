"""Imported by the fork server alone, before it forks: it and the loader processes outlive the signals that end a job."""

import gc

import vitscale.data.images.transforms
import vitscale.data.worker  # noqa: F401  (both are imported once here instead of in every loader process)
from vitscale.data.processes import ignore_signals

ignore_signals()
# Collections pass over what was imported, a quarter of a second each time, and leave its pages shared with the loader processes.
gc.collect()
gc.freeze()
