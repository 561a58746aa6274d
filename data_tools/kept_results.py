"""Results that outlast a killed command: what a job found is kept in a folder until the whole command is done."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from vitscale.config import UsageError
from vitscale.data.dataset import Dataset
from vitscale.data.storage.storage import LocalStorage

from .atomic import LOCK_NAME, locked_folder, output_errors, replace_file
from .jobs import Job, Result, Task, Total, results_as_done

_VERSION = 1
"""Counts up when another version of this package finds or writes something else for the same job."""

_SECONDS_KEPT = 30 * 24 * 3600

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Form(Generic[Job, Result]):
    """How the results of a task are kept."""

    name: Callable[[Job], str]
    """File name of a job's result. What the job looks at is in it: when that has changed, the result is not found."""
    size: Callable[[Job], int]
    """What a finished job adds to the progress."""
    encode: Callable[[Result], bytes]
    decode: Callable[[Job, bytes], Result]
    """Raises `ValueError` for what does not count any more: the job is done again."""
    lasts: Callable[[Result], bool] = lambda _: True
    """Whether a result may be kept. One that tells of damage may not where its name cannot show that the damage was mended."""


class KeptFolder:
    """Where results are kept by name; without a path nothing is."""

    def __init__(self, path: Path | None = None, *, is_optional: bool = False, say: Say = lambda _: None) -> None:
        """`is_optional`: a disk that takes no more costs only the keeping, which `say` tells; otherwise `save` raises `OSError`."""
        self._path = path
        self._is_optional = is_optional
        self.say = say

    def load(self, name: str) -> bytes | None:
        """What was saved under the name; None where nothing was, or it cannot be read."""
        try:
            return None if self._path is None else (self._path / name).read_bytes()
        except OSError:
            return None

    def save(self, name: str, data: bytes) -> None:
        if self._path is None:
            return
        try:
            replace_file(self._path / name, data)
        except OSError as error:
            if not self._is_optional:
                raise
            self.say(f"{self._path}: takes no more results ({error.strerror}): if this command is killed, the next one does the rest again")
            self._path = None

    def holds_results(self) -> bool:
        try:
            return self._path is not None and any(entry.name != LOCK_NAME for entry in self._path.iterdir())
        except OSError:
            return False


def kept_results(
    task: Task[Job, Result],
    jobs: Sequence[Job],
    *,
    kept: KeptFolder,
    form: Form[Job, Result],
    workers: int,
    report: Callable[[int], None] | None = None,
) -> Generator[tuple[int, Result], None, None]:
    """The number of each job and its result: first those that are kept, then the others as they are done, see `results_as_done`."""
    total = Total(report)
    # Before anything is read: what changes while it is read has another name in the next attempt.
    names = [form.name(job) for job in jobs]
    left = []
    for number, name in enumerate(names):
        found = _load(name, job=jobs[number], kept=kept, form=form)
        if found is None:
            left.append(number)
        else:
            total(form.size(jobs[number]))
            yield number, found
    if len(left) < len(jobs):
        kept.say(f"going on: {len(jobs) - len(left)} of {len(jobs)} parts were done by an interrupted run")
    # Saved by this process alone, so that one word suffices where the disk takes no more.
    with closing(results_as_done(task, [jobs[number] for number in left], workers=min(workers, len(left)), advance=total)) as done:
        for place, result in done:
            if form.lasts(result):
                kept.save(names[left[place]], form.encode(result))
            yield left[place], result


@contextmanager
def kept_folder(path: Path, *, say: Say = lambda _: None) -> Iterator[KeptFolder]:
    """Keep results in `path`, which is made, locked, and removed with all it holds when the body is done; a failure leaves it.

    Raises `UsageError` while another process works there, `DataError` where it cannot be written.
    """
    with output_errors(path), locked_folder(path):
        kept = KeptFolder(path, say=say)
        with _removed_when_done(path, kept=kept):
            yield kept


@contextmanager
def cached_folder(name: str, *, say: Say) -> Iterator[KeptFolder]:
    """`kept_folder` in the user's cache. Where that cannot be used, `say` tells and nothing is kept."""
    with ExitStack() as stack:
        try:
            path = cache_root() / name
            stack.enter_context(locked_folder(path))
            _forget_old(path.parent)
        except (OSError, RuntimeError, UsageError) as error:
            reason = "the same command is running already" if isinstance(error, UsageError) else str(error)
            say(f"keeping no results ({reason}): if this command is killed, the next one starts over, unless --work names a folder")
            kept = KeptFolder()
        else:
            kept = KeptFolder(path, is_optional=True, say=say)
            stack.enter_context(_removed_when_done(path, kept=kept))
        yield kept


def work_name(command: str, dataset: Dataset, *, options: Mapping[str, object]) -> str:
    """Name of the folder for what a command finds out about a data set: another data set or other options have another one."""
    root = dataset.index_storage.root
    place = os.path.abspath(root) if isinstance(dataset.index_storage, LocalStorage) else root
    values = [_VERSION, command, place, dataset.sha256, sorted(options.items())]
    return f"{command}-{hashlib.sha256(json.dumps(values).encode(errors='surrogateescape')).hexdigest()[:32]}"


def cache_root() -> Path:
    """Where results are kept by default. Raises `RuntimeError` for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "vitscale" / "unfinished"


def _load(name: str, *, job: Job, kept: KeptFolder, form: Form[Job, Result]) -> Result | None:
    raw = kept.load(name)
    try:
        return None if raw is None else form.decode(job, raw)
    except (ValueError, KeyError, TypeError):
        return None


@contextmanager
def _removed_when_done(path: Path, *, kept: KeptFolder) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not kept.holds_results():
            shutil.rmtree(path, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            kept.say(f"what is done is kept in {path}: the same command goes on from it")
        raise
    shutil.rmtree(path, ignore_errors=True)


def _forget_old(root: Path) -> None:
    """Clear away what commands left that were killed long ago and never started again."""
    for path in root.iterdir():
        with suppress(OSError, UsageError):
            if time.time() - path.stat().st_mtime > _SECONDS_KEPT:
                with locked_folder(path):
                    shutil.rmtree(path)
