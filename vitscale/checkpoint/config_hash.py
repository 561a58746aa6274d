"""A hash of the settings that decide what a run computes: equal for two checkpoints of one run, whatever else was set."""

import hashlib
import json

from vitscale.config import Config, binding_values


def config_hash(config: Config) -> str:
    """sha256 (64 hexadecimal digits) over every (dotted path, value) of `binding_values`, as canonical JSON."""
    text = json.dumps(dict(binding_values(config)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
