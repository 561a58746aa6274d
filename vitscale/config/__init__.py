"""YAML to frozen typed models: strict decoding, overrides, and errors that name the path and the nearest key."""

from vitscale.config.base import OPERATIONAL, Auto, Config, binding_values
from vitscale.config.decode import apply_overrides, decode, decode_file, problem_report
from vitscale.config.errors import (
    CheckpointError,
    ConfigError,
    CorruptionError,
    DataError,
    NonFiniteLossError,
    StopRequested,
    UsageError,
    UserError,
)
from vitscale.config.yaml_text import dump_yaml, parse_yaml, read_yaml

__all__ = [
    "OPERATIONAL",
    "Auto",
    "CheckpointError",
    "Config",
    "ConfigError",
    "CorruptionError",
    "DataError",
    "NonFiniteLossError",
    "StopRequested",
    "UsageError",
    "UserError",
    "apply_overrides",
    "binding_values",
    "decode",
    "decode_file",
    "dump_yaml",
    "parse_yaml",
    "problem_report",
    "read_yaml",
]
