"""Turning a file of torch.save into safetensors, in a process of its own that reads nothing but tensors and plain values.

This is the one place that opens a pickle, and only where the user said so: `torch.load(weights_only=True)` refuses whatever
would run code, and what a hole in it could reach is this process.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitscale.config import CheckpointError

_CONTAINERS = ("state_dict", "model", "teacher", "module")
"""Under which keys training programs keep the weights: timm and DINO, MAE and DeiT, DINOv2's teacher, DeepSpeed."""

_REFUSED = 3
_ROOT = Path(__file__).resolve().parents[2]


def convert_pickle(path: Path, *, target: Path) -> None:
    """Write the tensors of the torch.save file `path` to the safetensors file `target`.

    Raises `CheckpointError` where the file holds anything that `weights_only` does not load, is damaged, or holds no weights.
    """
    # Without the working folder on its path, whose files the process would otherwise import.
    command = [sys.executable, "-P", "-m", "vitscale.weights.pickled", str(path.absolute()), str(target)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == _REFUSED:
        raise CheckpointError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise CheckpointError(f"{path}: the process that was to read it ended with code {done.returncode}: {done.stderr.strip()[-300:]}")


def _convert(path: Path, *, target: Path) -> None:
    try:
        # The arguments of a training program, which MAE's and DeiT's files hold beside the weights: a plain record.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged or foreign file leads it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be loaded as weights alone ({reason}); it is damaged, or holds objects that would run code."
            " Ask its author for a safetensors file"
        ) from None
    weights = {name: value.contiguous().clone() for name, value in _weights(loaded, path=path).items()}
    save_file(weights, target)


def _weights(loaded: Any, *, path: Path) -> dict[str, Tensor]:
    """The tensors by name: at the top, or under one of the usual keys."""
    if isinstance(loaded, dict):
        inner = next((loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), dict)), loaded)
        tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    keys = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, dict) else type(loaded).__name__
    raise CheckpointError(f"{path}: no tensors by name at the top or under {', '.join(_CONTAINERS)}; it holds {keys}")


def main() -> None:
    """Entry point of the process."""
    source, target = map(Path, sys.argv[1:])
    try:
        _convert(source, target=target)
    except CheckpointError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(_REFUSED) from None


if __name__ == "__main__":
    main()
