"""A rank's signs of life: where it is in the loop, written into memory that another process can read whatever this one does."""

import mmap
import os
import struct
import sys
from dataclasses import dataclass
from typing import BinaryIO

# Imported by the watchdog's own small process as well: nothing but the standard library.

PHASES = ("start", "data", "step", "vote", "report", "compare", "save", "evaluate", "end")
"""What a rank can be busy with. All ranks go through the same sequence of phases and steps."""

_BEAT = struct.Struct("<7q")  # beats, moves, phase, step, first step, collectives before this phase, beats once more
_COLLECTIVES = struct.Struct("<q")  # twice the number entered so far, less one while inside
_COLLECTIVES_AT = 64  # a cache line of its own
_SIZE = 128
_NUMBER = {phase: number for number, phase in enumerate(PHASES)}
_NUM_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What a rank has shown so far. `moves` counts the changes of phase or step, in which all ranks agree; `collectives` those
    entered since the last move, `steps_done` the steps of this process."""

    beats: int
    moves: int
    phase: str
    step: int
    steps_done: int
    collectives: int
    in_collective: bool


class Heartbeat:
    """Shows where this process is, for 0.3 microseconds a beat. Made in every rank; nothing has to be watching.

    A beat says that the rank is about to do `phase` after `step` steps. A change of either is a move: every rank must make the
    same ones in the same order, since the rank with the fewest is the one that the others wait for. Repeated beats of the same
    phase and step are free, and long phases need them.
    """

    def __init__(self) -> None:
        self._file = anonymous_file("vitscale-heartbeat")
        os.truncate(self._file.fileno(), _SIZE)
        self._memory = mmap.mmap(self._file.fileno(), _SIZE)
        self._beats = self._moves = self._collectives = self._collectives_before = 0
        self._phase, self._step = "", -1
        self._first_step: int | None = None
        self.beat("start", 0)

    def fileno(self) -> int:
        """The descriptor of the memory, for a child process to inherit."""
        return self._file.fileno()

    def beat(self, phase: str, step: int) -> None:
        """Show that this rank is about to do `phase`, one of PHASES, after `step` steps."""
        if phase != self._phase or step != self._step:
            self._phase, self._step = phase, step
            self._moves += 1
            if self._first_step is None and phase != "start":
                self._first_step = step
            self._collectives_before = self._collectives
        self._beats = beats = self._beats + 1
        first = step if self._first_step is None else self._first_step
        _BEAT.pack_into(self._memory, 0, beats, self._moves, _NUMBER[phase], step, first, self._collectives_before, beats)

    def beat_again(self) -> None:
        """Show that this rank is still at it."""
        self.beat(self._phase, self._step)

    def enter_collective(self) -> None:
        """Show that this rank waits for others from now on."""
        self._collectives += 1
        _COLLECTIVES.pack_into(self._memory, _COLLECTIVES_AT, 2 * self._collectives - 1)

    def leave_collective(self) -> None:
        """Show that the wait is over."""
        _COLLECTIVES.pack_into(self._memory, _COLLECTIVES_AT, 2 * self._collectives)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        self._file.close()


def map_heartbeat(descriptor: int) -> mmap.mmap:
    """The memory of another process's heartbeat, to be read."""
    return mmap.mmap(descriptor, _SIZE, prot=mmap.PROT_READ)


def read_signs(memory: mmap.mmap) -> Signs:
    """What the heartbeat shows now, also when its process was stopped in the middle of a beat."""
    for _ in range(_NUM_TRIES):
        beats, moves, phase, step, first, before, again = _BEAT.unpack_from(memory, 0)
        if beats == again:
            break
    (word,) = _COLLECTIVES.unpack_from(memory, _COLLECTIVES_AT)
    return Signs(
        beats=beats,
        moves=moves,
        phase=PHASES[phase],
        step=step,
        steps_done=step - first,
        collectives=max(0, (word + 1) // 2 - before),
        in_collective=word % 2 == 1,
    )


def anonymous_file(name: str) -> BinaryIO:
    """A file in memory without a path, which is gone with the last process that holds it."""
    if sys.platform == "linux":
        return open(os.memfd_create(name), "r+b", buffering=0)
    # Imported where it is needed: it is two of the watchdog's megabytes.
    import tempfile

    return tempfile.TemporaryFile(buffering=0)
