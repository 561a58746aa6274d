"""One writer per run directory: a locked file that names its owner by a random token, looked at again before each commit."""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitscale.config import CheckpointError, ConfigError, UsageError
from vitscale.train.run_dir import RunDirectory, writing

LOCK = ".lock"
"""Name of the file in the run directory."""

_TRIES = 100
_SECONDS_BETWEEN_TRIES = 0.02


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A command that may start several groups of processes one after the other, for example after one of them has died.

    Of one launch, a later attempt takes the run directory over from an earlier one, which may be alive on a machine that
    nobody reaches any more. A launch that `rehearses_faults` may ask its processes for some; see `vitscale.train.faults`.
    """

    id: str
    attempt: int
    rehearses_faults: bool = False


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a run directory, as its lock file says."""

    token: str
    host: str
    pid: int
    launch: Launch | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class RunLock:
    """What the holder of a run directory has in hand; see `exclusive`."""

    def __init__(self, path: Path, *, token: str) -> None:
        self._path = path
        self.token = token
        """Different for every holder there ever was."""

    def check(self) -> None:
        """Raise `CheckpointError` unless the lock file still names this holder. Any thread may call it, before it commits anything."""
        owner = read_owner(self._path.parent)
        if self._is_mine(owner):
            return
        raise CheckpointError(
            f"{self._path.parent}: {_what_happened(self._path, owner)}. This process writes no checkpoint any more, so that two"
            " do not mix theirs; those that are committed stay as they are. If no other process trains in this run directory,"
            " the same command goes on from the newest checkpoint."
        )

    def is_lost(self) -> bool:
        """Whether `check` would raise."""
        return not self._is_mine(read_owner(self._path.parent))

    def _is_mine(self, owner: Owner | None) -> bool:
        return owner is not None and owner.token == self.token


@contextlib.contextmanager
def exclusive(directory: RunDirectory, launch: Launch | None = None) -> Iterator[RunLock]:
    """Hold the run directory; the kernel releases it when this process dies, however it dies.

    Another holder is left in peace, unless it is an earlier attempt of the same `launch`: that one is shut out, which it
    finds at its next `check`. Raises `UsageError` naming the holder when another process has the directory, `ConfigError`
    when it cannot be written or its file system has no locks.
    """
    with writing(directory):
        directory.root.mkdir(parents=True, exist_ok=True)
        owner = Owner(token=secrets.token_hex(16), host=socket.gethostname(), pid=os.getpid(), launch=launch)
        descriptor = _acquire(directory, owner)
    _held.add(descriptor)
    try:
        yield RunLock(directory.root / LOCK, token=owner.token)
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def read_owner(run_dir: Path) -> Owner | None:
    """Who holds, or was the last to hold, the run directory `run_dir`; None where its lock file is missing or does not say."""
    try:
        values = json.loads((run_dir / LOCK).read_bytes())
        launch = values["launch"]
        return Owner(**values | {"launch": None if launch is None else Launch(**launch)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


_held: set[int] = set()


def _close_in_child() -> None:
    """A child would hold the directory for as long as it lives, longer perhaps than the process that trains."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _acquire(directory: RunDirectory, owner: Owner) -> int:
    """Lock the file and put the owner's name into its place; returns the descriptor that holds the lock."""
    path = directory.root / LOCK
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_SECONDS_BETWEEN_TRIES)
        current = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            is_free = _try_lock(current, path=path)
            # Else somebody is putting a new file in its place at this moment, which names its owner better than this one.
            if not _is_at(path, current):
                continue
            holder = None if is_free else read_owner(directory.root)
            if not is_free and not _is_succeeded_by(holder, owner):
                if attempt == 0:
                    continue  # the holder may not have given its name yet
                raise UsageError(
                    f"{directory.root}: another process is training in this run directory ({holder or 'an unnamed process'})."
                    " Wait for it, stop it, or give this run another name (name=...)."
                )
            with contextlib.suppress(FileNotFoundError):  # another that came at the same moment has cleared it away
                return _put_in_place(path, owner)
        finally:
            os.close(current)
    raise UsageError(f"{directory.root}: several processes try to train in this run directory at once; start one of them")


def _try_lock(descriptor: int, *, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"output: {path} cannot be locked ({error.strerror}), so two runs could write to this run directory at once;"
            " set output to a folder on a file system with locks (NFS: version 4, or with the lock daemon running)"
        ) from error
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_succeeded_by(holder: Owner | None, owner: Owner) -> bool:
    if holder is None or holder.launch is None or owner.launch is None:
        return False
    return holder.launch.id == owner.launch.id and holder.launch.attempt < owner.launch.attempt


def _put_in_place(path: Path, owner: Owner) -> int:
    """A new file, locked and whole before anybody sees it: readers find one owner or the other, never half a name."""
    temporary = path.with_name(f"{LOCK}.{owner.token}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, json.dumps(dataclasses.asdict(owner)).encode() + b"\n")
        os.replace(temporary, path)
    except BaseException:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    for left_behind in path.parent.glob(f"{LOCK}.*"):  # by a process that was killed right here
        left_behind.unlink(missing_ok=True)
    return descriptor


def _what_happened(path: Path, owner: Owner | None) -> str:
    if owner is not None:
        return f"another process group has taken over this run directory ({owner})"
    try:
        path.read_bytes()
    except FileNotFoundError:
        return f"the lock file {path.name}, or the whole directory, was removed while this process trained in it"
    except OSError as error:
        return f"the lock file {path.name} cannot be read any more ({error.strerror})"
    return f"the lock file {path.name} was changed by hand while this process trained in it"
