"""The log of consumed samples, one file per rank, by which two runs can be compared (`data.log_samples`)."""

import json
from pathlib import Path
from typing import TextIO

from torch import Tensor


class SampleLog:
    """Appends `{"step": n, "ids": [...]}` per step to `path`; does nothing where `path` is None."""

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by close)

    def write(self, step: int, sample_ids: Tensor) -> None:
        """Log the ids (B,) int64 that this rank consumed in a step."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "ids": sample_ids.tolist()}) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
