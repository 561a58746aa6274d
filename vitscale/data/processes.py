"""Loader processes: how they are started, what they ignore, how they end, and what the user hears when one dies."""

import atexit
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from vitscale.config import DataError, UsageError, UserError
from vitscale.data.orphans import end_with_parent
from vitscale.data.worker import Part

# A fork of the training process would copy locks that threads of gloo, Ray or autograd hold at that moment, and a CUDA context
# that cannot be used; spawn imports torch once more for every process (2 s each). The fork server does so once per
# training process, has one thread, and starts every loader process after that in milliseconds, sharing torch's pages.
_START_METHOD = "forkserver"
_PRELOAD = ["torch", "vitscale.data.process_server"]

# Launchers send these to whole process groups. What they mean is for the training process to decide: it may still need
# batches to finish a step and save.
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_JOIN_SECONDS = 5.0
_DEATH_SECONDS = 1.0


def start_fork_server() -> None:
    """Let the fork server import torch while other things are built: the first loader then starts in a tenth of the time.

    May be called twice, and need not be called at all.
    """
    multiprocessing.get_context(_START_METHOD).set_forkserver_preload(_PRELOAD)
    with _search_path_handed_on():
        multiprocessing.forkserver.ensure_running()


class PartStream(Iterator[Part]):
    """Iterates over `parts` in `num_workers` processes, taking one item of each worker in turn; in this process for 0 workers.

    Raises an error of a worker as the `UserError` that it was there, `DataError` when a process was killed, and `UsageError`
    when one ended by itself, as it does in a script that lacks `if __name__ == "__main__":`.
    """

    def __init__(self, parts: IterableDataset[Part], *, num_workers: int, prefetch: int) -> None:
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._items: Iterator[Part] | None
        if num_workers == 0:
            self._items = iter(parts)
            return
        before = set(multiprocessing.active_children())
        self._items = iter(_process_loader(parts, num_workers=num_workers, prefetch=prefetch))
        self._processes = [process for process in multiprocessing.active_children() if process not in before]
        # Before multiprocessing's own exit handler, which sends SIGTERM and waits: the processes ignore that signal.
        atexit.register(self.close)

    def __next__(self) -> Part:
        if self._items is None:
            raise StopIteration
        try:
            item = next(self._items)
        except (RuntimeError, OSError, EOFError):
            # Which of them torch raises depends on what the process was doing when it died.
            lost = self._lost_process()
            if lost is None:
                raise
            self.close()
            raise _explain_loss(lost.exitcode) from None
        if item.error is not None:
            self.close()
            raise item.error
        return item

    def close(self) -> None:
        """End the processes, at once unless one hangs in a read. May be called twice."""
        self._items = None  # the last reference: torch asks the processes to end and waits for them
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join(_JOIN_SECONDS)
        self._processes = []
        atexit.unregister(self.close)

    def _lost_process(self) -> multiprocessing.process.BaseProcess | None:
        # A dying process closes its sockets a moment before it can be seen to have ended.
        wait([process.sentinel for process in self._processes if process.is_alive()], timeout=_DEATH_SECONDS)
        return next((process for process in self._processes if process.exitcode), None)


def _explain_loss(exit_code: int | None) -> UserError:
    if exit_code is not None and exit_code > 0:
        return UsageError(
            f"A loader process ended by itself (exit code {exit_code}); its error stands above. Loader processes import the script that"
            ' trains: call vitscale from under `if __name__ == "__main__":` there, or set data.num_workers to 0.'
        )
    if exit_code == -signal.SIGBUS:
        return DataError(
            "A loader process was killed by SIGBUS: the shared memory in /dev/shm is full. Give the container more of it"
            " (docker run --shm-size=8g), or lower data.num_workers or data.prefetch."
        )
    return DataError(
        f"A loader process was killed (exit code {exit_code}), most often because memory ran out."
        " Lower data.num_workers, data.window or data.prefetch, or give the job more memory."
    )


def ignore_signals() -> None:
    """Leave the signals that end or stop a job to the training process."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _process_loader(parts: IterableDataset[Part], *, num_workers: int, prefetch: int) -> DataLoader[Part]:
    start_fork_server()
    return DataLoader(
        parts,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch,
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        multiprocessing_context=multiprocessing.get_context(_START_METHOD),
        # By default the loader draws a seed from torch's global generator, which would make it part of the run's state.
        generator=torch.Generator(),
    )


@contextlib.contextmanager
def _search_path_handed_on() -> Iterator[None]:
    """A Python that is started here finds modules where this process does. By itself the fork server, a `python -c`, would look into
    the working folder first, and in that of another checkout take its vitscale for this one."""
    settings = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _as_is(part: Any) -> Any:
    return part


def _start_worker(worker: int) -> None:  # noqa: ARG001  (torch passes the worker's number)
    ignore_signals()
    end_with_parent()  # torch would notice that the training process is gone only between two batches
