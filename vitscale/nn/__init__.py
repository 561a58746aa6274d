"""Building blocks of backbones and heads. Modules hold parameters with init recipes and no buffers."""
