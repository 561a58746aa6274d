"""Writes shards in this process or in several on this machine."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing

from .jobs import Advance, results_as_done
from .shard_writer import ShardJob, ShardResult, write_shard

__all__ = ["Advance", "Results", "Runner", "write_shards"]

Results = Generator[ShardResult, None, None]

Runner = Callable[[Iterable[ShardJob], Advance], Results]
"""Writes all shards, in any order, and gives their results as they are done; told the samples done. Closing it ends the writing."""

_COUNT_EVERY = 64


def write_shards(jobs: Iterable[ShardJob], advance: Advance, *, workers: int) -> Results:
    """A `Runner` of `workers` processes; 1: this one. Raises `DataError` when one of them is killed."""
    with closing(results_as_done(_write, jobs, workers=workers, advance=advance)) as done:
        for _, result in done:
            yield result


def _write(job: ShardJob, advance: Advance) -> ShardResult:
    counted = _Counted(advance)
    result = write_shard(job, advance=counted)
    counted.flush()
    return result


class _Counted:
    """Gathers single samples, as passing on each would cost more than packing a small one."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._pending = 0

    def __call__(self, count: int) -> None:
        self._pending += count
        if self._pending >= _COUNT_EVERY:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self._advance(self._pending)
            self._pending = 0
