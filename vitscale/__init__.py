"""vitscale pre-trains Vision Transformers at scale: a run is a pure function of its YAML file. See `vitscale.api`."""

__version__ = "0.1.0"
