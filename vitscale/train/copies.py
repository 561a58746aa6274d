"""A run's copies of its checkpoints in an object store: started after each save, reported, and waited for at the end."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from vitscale.checkpoint.layout import parse_step_folder
from vitscale.checkpoint.remote import RemoteCheckpoints
from vitscale.checkpoint.remote_uploads import BackgroundUploads, UploadOutcome
from vitscale.checkpoint.retention import RetentionPolicy, Scores
from vitscale.run_config import RunConfig

STOP_SECONDS = 20.0
"""How long a run that was asked to stop waits for its uploads: whoever asked gives it a grace time, and the next start goes on."""


class EventSink(Protocol):
    """Writes an event to the run's ledger, as `Reporter.event` does."""

    def __call__(self, kind: str, *, step: int, message: str, **details: object) -> None: ...


def open_remote(config: RunConfig, *, check_owner: Callable[[], None]) -> RemoteCheckpoints | None:
    """Where the run's checkpoints are copied to: a folder of its own below checkpoint.upload_to. None without that setting.

    Raises `ConfigError` for an address that they cannot be sent to. The store is not asked yet. For rank 0.
    """
    address = config.checkpoint.upload_to
    return None if address is None else RemoteCheckpoints(f"{address.rstrip('/')}/{config.name}", check_owner=check_owner)


class Copies:
    """Uploads of a run. Without `remote`, as on all ranks but 0, every method does nothing.

    Leaving it as a context waits for the uploads at the end of a run, no longer than `STOP_SECONDS` after a stop or an error, and
    not at all when it is interrupted, as by a second Ctrl-C; `show_life` is called while it waits.
    """

    def __init__(
        self,
        remote: RemoteCheckpoints | None,
        *,
        config: RunConfig,
        scores: Scores,
        event: EventSink,
        show_life: Callable[[], None] = lambda: None,
    ) -> None:
        policy = RetentionPolicy.from_config(config.checkpoint, scores=scores)
        self._uploads = None if remote is None else BackgroundUploads(remote, policy=policy)
        self._event = event
        self._show_life = show_life
        self._num_failed = 0

    @property
    def pending(self) -> frozenset[int]:
        """Steps whose local folder is still needed."""
        return frozenset() if self._uploads is None else self._uploads.pending

    def start(self, path: Path) -> None:
        """Copy the checkpoint that was committed at `path`, or resumed from, unless it is there.

        Not one that a killed save of its step was about to replace: under its name there may soon be another one.
        """
        found = parse_step_folder(path)
        if self._uploads is not None and found is not None and found.role == "committed":
            self._uploads.start(path)

    def tell(self) -> None:
        """Report the uploads that have ended. Returns at once."""
        for outcome in self._uploads.poll() if self._uploads is not None else []:
            self._tell(outcome)

    def finish(self, *, timeout_seconds: float | None) -> None:
        """Wait for the uploads, and report them and those that are late."""
        if self._uploads is None:
            return
        for outcome in self._uploads.finish(timeout_seconds=timeout_seconds, show_life=self._show_life):
            self._tell(outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.finish(timeout_seconds=None if kind is None else STOP_SECONDS if issubclass(kind, Exception) else 0.0)
        finally:
            self.close()

    def close(self) -> None:
        """Give up what is under way."""
        if self._uploads is not None:
            self._uploads.close()

    def _tell(self, outcome: UploadOutcome) -> None:
        if outcome.is_skipped:
            self._event("upload_skipped", step=outcome.step, message=f"step {outcome.step} was not copied: newer ones came first")
        elif outcome.error is not None:
            self._num_failed += 1
            self._event("upload_failed", step=outcome.step, message=outcome.error, failed_uploads=self._num_failed)
        else:
            sent, size = outcome.sent_bytes / 2**20, outcome.num_bytes / 2**20
            self._event(
                "upload",
                step=outcome.step,
                message=f"copied checkpoint of step {outcome.step} in {outcome.seconds:.1f} s ({sent:,.1f} of {size:,.1f} MiB sent)",
                upload_seconds=outcome.seconds,
                bytes=outcome.num_bytes,
                sent_bytes=outcome.sent_bytes,
                deleted=list(outcome.deleted),
            )
