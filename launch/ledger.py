"""What the command that supervises a run tells: on the console and in the run's events.jsonl."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any


class LaunchLedger:
    """Appends events to the run's ledger, which the workers write too. One write for each line keeps them whole."""

    def __init__(self, events: Path) -> None:
        self._events = events

    def event(self, name: str, message: str, **fields: Any) -> None:
        """Show `message` and record it with `fields`."""
        print(message, flush=True)
        self.record(name, message, **fields)

    def record(self, name: str, message: str, **fields: Any) -> None:
        """Record what is shown elsewhere. Fields that are None are left out."""
        record = {"time": time.time(), "event": name, "message": message} | {k: v for k, v in fields.items() if v is not None}
        # A failure before the run directory exists has no ledger yet, and a full disk must not end the supervision.
        with contextlib.suppress(OSError), open(self._events, "ab", buffering=0) as file:
            file.write(json.dumps(record).encode() + b"\n")
