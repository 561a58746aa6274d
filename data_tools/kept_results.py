"""Results that outlast a killed command: what a job found is kept in a folder until the whole command is done."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from .atomic import locked_folder, output_errors, replace_file
from .jobs import Advance

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Form(Generic[Job, Result]):
    """How the results of a task are kept. Picklable."""

    name: Callable[[Job], str]
    """File name of a job's result: other data or other options have other names."""
    size: Callable[[Job], int]
    """What a finished job adds to the progress."""
    encode: Callable[[Result], bytes]
    decode: Callable[[bytes], Result]


@dataclass(frozen=True, kw_only=True)
class Kept(Generic[Job, Result]):
    """A task that looks for its result in `folder` first, and leaves it there."""

    task: Callable[[Job, Advance], Result]
    folder: Path
    form: Form[Job, Result]

    def __call__(self, job: Job, advance: Advance) -> Result:
        path = self.folder / self.form.name(job)
        if path.is_file():
            advance(self.form.size(job))
            return self.form.decode(path.read_bytes())
        result = self.task(job, advance)
        replace_file(path, self.form.encode(result))
        return result


@contextmanager
def keeping(
    task: Callable[[Job, Advance], Result], *, folder: Path | None, form: Form[Job, Result]
) -> Iterator[Callable[[Job, Advance], Result]]:
    """The task with its results kept in `folder`, which is made, locked, and removed when all is done; None keeps nothing."""
    if folder is None:
        yield task
        return
    with output_errors(folder), locked_folder(folder):
        yield Kept(task=task, folder=folder, form=form)
        shutil.rmtree(folder)
