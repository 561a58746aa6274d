"""The log of consumed samples, one file per rank, by which two runs can be compared (`data.log_samples`)."""

import json
import os
from pathlib import Path

from torch import Tensor

from vitscale.config import ConfigError


class SampleLog:
    """Appends `{"step": n, "ids": [...]}` per step to `path`; does nothing where `path` is None.

    A line is in the file when `write` returns. Raises `ConfigError` when the file cannot be created or a line does not fit
    on the disk: a log with a hole in it would prove nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, step: int, sample_ids: Tensor) -> None:
        """Log the ids (B,) int64 that this rank consumed in a step."""
        if self._descriptor is None:
            return
        line = memoryview((json.dumps({"step": step, "ids": sample_ids.tolist()}) + "\n").encode())
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _unwritable(self, error: OSError) -> ConfigError:
        problem = ConfigError(
            f"data.log_samples: {self._path} cannot be written: {error.strerror}. Make room there, set output to a folder on a disk"
            " with space, or set data.log_samples to false; the same command then goes on from the newest checkpoint."
        )
        problem.scope = "rank"  # a disk may fill up, or a file be out of reach, for one rank alone
        return problem
