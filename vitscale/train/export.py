"""A checkpoint's weights as one safetensors file under the names that timm or Hugging Face transformers load."""

import json
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from vitscale.checkpoint.discover import resolve_checkpoint
from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import ConfigError
from vitscale.nn.positions import sincos_positions
from vitscale.run_config import RunConfig
from vitscale.train.evaluate import check_fits
from vitscale.weights.names import Layout, to_foreign


def export_checkpoint(
    config: RunConfig, *, layout: Layout, kind: Kind = "weight", checkpoint: Path | None = None, output: Path | None = None
) -> Path:
    """Write the fp32 weights of `checkpoint` (None: the run's newest whole one) to `output` (None: `export/<layout>.safetensors`
    in the run directory) and return its path. `kind` "ema" takes their moving average. One process; holds the model once.

    The file's metadata has what a loader must know beside the tensors: sizes, GELU, norm epsilon, image mean and deviation.
    Raises `CheckpointError` when there is no usable checkpoint, it holds another model, or `layout` has no place for a
    tensor (pre_logits), and `ConfigError` when the file cannot be written.
    """
    reader = CheckpointReader(resolve_checkpoint(checkpoint if checkpoint is not None else config.run_dir))
    check_fits(config, reader=reader, kind=kind)
    weights = {name: reader.read_full(name, kind=kind) for name in reader.shapes(kind)} | _fixed_positions(config)
    tensors = to_foreign(weights, layout=layout, num_channels=config.model.num_channels)
    path = output if output is not None else config.run_dir / "export" / f"{layout}.safetensors"
    _write(path, tensors, metadata=_metadata(config, reader=reader, kind=kind))
    return path


def _fixed_positions(config: RunConfig) -> dict[str, Tensor]:
    """The table of fixed positions, which is no parameter here but is one elsewhere."""
    model, shape = config.model, config.model.shape
    if model.positions == "learned" or model.positions == "factorised" or model.positions == "none":
        return {}
    table = sincos_positions(model.positions, rows=shape.grid, columns=shape.grid, width=shape.width, class_token=shape.class_token)
    return {"backbone.pos_embed": table}


def _metadata(config: RunConfig, *, reader: CheckpointReader, kind: Kind) -> dict[str, str]:
    model = config.model.model_dump(mode="json") | {
        key: getattr(config.model.shape, key) for key in ("width", "depth", "mlp_width", "num_heads", "patch_size")
    }
    return {"format": "pt", "run": config.name, "step": str(reader.manifest.step), "weights": kind, "model": json.dumps(model)}


def _write(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata=metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}. Give another file with --output.") from None
