"""Turning a file of torch.save into safetensors, in a process of its own that reads nothing but tensors and plain values.

This is the one place that opens a pickle, and only where the user said so: `torch.load(weights_only=True)` refuses whatever
would run code, and what a hole in it could reach is this process.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitscale.config import CheckpointError
from vitscale.weights.forms import Shape

_CONTAINERS = ("state_dict", "model", "teacher", "module")
"""Under which keys training programs keep the weights: timm and DINO, MAE and DeiT, DINOv2's teacher, DeepSpeed."""

_REFUSED = 3
_GLOBAL = re.compile(r"\bGLOBAL (\S+)")
"""What torch says of an object that it does not make."""
_UNPICKLER = "WeightsUnpickler error:"
"""What torch's message says after this is the reason; before it stands the advice to load the file without this protection."""

_ROOT = Path(__file__).resolve().parents[2]


def convert_pickle(path: Path, *, target: Path) -> None:
    """Write the tensors of the torch.save file `path` to the safetensors file `target`.

    Raises `CheckpointError` where the file holds anything that `weights_only` does not load, is damaged, or holds no weights.
    """
    _run_apart(path, str(target))


def shapes_of_pickle(path: Path) -> dict[str, Shape]:
    """Names and shapes of the tensors of the torch.save file `path`; writes nothing. Raises as `convert_pickle`."""
    return {name: tuple(shape) for name, shape in json.loads(_run_apart(path)).items()}


def _run_apart(path: Path, *arguments: str) -> str:
    """What `main` prints in a process of its own."""
    # Without the working folder on its path, whose files the process would otherwise import.
    command = [sys.executable, "-P", "-m", "vitscale.weights.pickled", str(path.absolute()), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == _REFUSED:
        raise CheckpointError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise CheckpointError(f"{path}: the process that was to read it ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _convert(path: Path, *, target: Path) -> None:
    save_file(dict(_apart(_load(path))), target)


def _load(path: Path) -> dict[str, Tensor]:
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_sums(path)
    try:
        # The arguments of a training program, which MAE's and DeiT's files hold beside the weights: a plain record.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, so that an optimizer's state beside the weights takes no memory.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # the unpickler raises whatever a damaged or foreign file leads it to
        message = str(error).rpartition(_UNPICKLER)[2].strip()
        found = _GLOBAL.search(message)
        reason = message.splitlines()[0] if message else type(error).__name__
        why = f"it holds objects of {found[1]}, which would run code" if found else reason
        raise CheckpointError(
            f"{path}: cannot be loaded as weights alone ({why}). Ask its author for a safetensors file, or for one of torch.save that"
            " holds the state dict only; where it should be one, download or copy it again"
        ) from None
    return _weights(loaded, path=path)


def _check_sums(path: Path) -> None:
    """Every member of the archive has a checksum, which torch.load does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path}: damaged or cut off: {error}. Download or copy the file again.") from None
    if damaged is not None:
        raise CheckpointError(f"{path}: {damaged} is damaged: its checksum is another one. Download or copy the file again.")


def _apart(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that share no memory and are contiguous, as safetensors wants them; those that are so already are not copied."""
    seen: set[int] = set()
    for name, value in weights.items():
        storage = value.untyped_storage()
        is_own = value.is_contiguous() and storage.nbytes() == value.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        yield name, value if is_own else value.clone(memory_format=torch.contiguous_format)


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
    source, *target = map(Path, sys.argv[1:])
    try:
        if target:
            _convert(source, target=target[0])
        else:
            print(json.dumps({name: list(value.shape) for name, value in _load(source).items()}))
    except CheckpointError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(_REFUSED) from None


if __name__ == "__main__":
    main()
