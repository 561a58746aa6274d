"""Saving, finding and restoring the sharded state of a run."""
