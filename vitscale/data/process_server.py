"""Imported by the fork server alone, before it forks: it and the loader processes outlive the signals that end a job."""

import vitscale.data.images.transforms
import vitscale.data.worker  # noqa: F401  (both are imported once here instead of in every loader process)
from vitscale.data.processes import ignore_signals

ignore_signals()
