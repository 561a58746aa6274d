"""What a run ran on: versions, commit, host and command line, and the per-rank log file."""

import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

_RECORDED = ("vitscale", "torch", "deepspeed", "ray", "numpy", "pydantic", "simplejpeg", "pillow")


def environment_json() -> str:
    """The content of environment.json."""
    record = {
        "time": time.time(),
        "command": sys.argv,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git_commit": _git_commit(Path(__file__).parent),
        "versions": _versions(),
    }
    return json.dumps(record, indent=2) + "\n"


def start_rank_log(path: Path) -> logging.Handler:
    """Send this process's log records, ours and the libraries', to a JSON-lines file. Returns the handler, to be closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    handler.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    logging.getLogger("vitscale").setLevel(logging.INFO)
    return handler


def stop_rank_log(handler: logging.Handler) -> None:
    """Undo `start_rank_log`."""
    logging.getLogger().removeHandler(handler)
    handler.close()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": record.created, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _versions() -> dict[str, str]:
    found = {}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_commit(folder: Path) -> str | None:
    """The commit of the source tree with `-dirty` for changes; None for an installed package or without git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
