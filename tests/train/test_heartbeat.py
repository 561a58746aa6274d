"""The heartbeat shows another process where this one is, and costs next to nothing."""

import os
import subprocess
import sys
import time

import pytest

from vitscale.train.heartbeat import PHASES, Heartbeat, Signs, map_heartbeat, read_signs


def shown(heartbeat: Heartbeat) -> Signs:
    return read_signs(map_heartbeat(heartbeat.fileno()))


def test_a_beat_shows_phase_and_step() -> None:
    heartbeat = Heartbeat()
    assert shown(heartbeat) == Signs(beats=1, moves=1, phase="start", step=0, steps_done=0, collectives=0, in_collective=False)
    for phase in PHASES:
        heartbeat.beat(phase, 7)
        assert (shown(heartbeat).phase, shown(heartbeat).step) == (phase, 7)
    heartbeat.close()


def test_only_a_change_of_phase_or_step_is_a_move() -> None:
    heartbeat = Heartbeat()
    for phase, step in [("data", 4), ("data", 4), ("data", 4), ("step", 4), ("step", 4), ("step", 5)]:
        heartbeat.beat(phase, step)
    assert (shown(heartbeat).beats, shown(heartbeat).moves) == (7, 4)


def test_what_takes_long_may_be_shown_again() -> None:
    heartbeat = Heartbeat()
    heartbeat.beat("end", 5)
    heartbeat.beat_again()
    signs = shown(heartbeat)
    assert (signs.beats, signs.moves, signs.phase, signs.step) == (3, 2, "end", 5)


def test_the_steps_of_this_process_are_counted_from_the_first_phase_after_the_start() -> None:
    heartbeat = Heartbeat()
    heartbeat.beat("start", 0)
    heartbeat.beat("data", 100)
    assert shown(heartbeat).steps_done == 0
    heartbeat.beat("step", 103)
    assert shown(heartbeat).steps_done == 3


def test_collectives_are_counted_within_a_phase_and_are_signs_of_life() -> None:
    heartbeat = Heartbeat()
    heartbeat.enter_collective()
    heartbeat.leave_collective()
    before = shown(heartbeat)
    heartbeat.enter_collective()
    inside = shown(heartbeat)
    heartbeat.leave_collective()
    after = shown(heartbeat)
    assert [(s.collectives, s.in_collective) for s in (before, inside, after)] == [(1, False), (2, True), (2, False)]
    assert len({before, inside, after}) == 3
    heartbeat.beat("step", 0)
    assert shown(heartbeat).collectives == 0
    heartbeat.enter_collective()
    assert (shown(heartbeat).collectives, shown(heartbeat).in_collective) == (1, True)


def test_a_phase_that_nobody_knows_is_refused() -> None:
    with pytest.raises(KeyError):
        Heartbeat().beat("lunch", 1)


def test_another_process_sees_it_and_cannot_write_it() -> None:
    heartbeat = Heartbeat()
    heartbeat.beat("save", 12)
    code = (
        "import sys; sys.path.append('.'); from vitscale.train.heartbeat import *; memory = map_heartbeat(int(sys.argv[1]));"
        "print(read_signs(memory).phase, read_signs(memory).step)\n"
        "try: memory[0] = 1\n"
        "except TypeError: print('refused')"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(heartbeat.fileno())]
    result = subprocess.run(command, capture_output=True, text=True, pass_fds=[heartbeat.fileno()], check=True)
    assert result.stdout.split() == ["save", "12", "refused"]


def test_a_beat_that_was_cut_short_can_be_read() -> None:
    heartbeat = Heartbeat()
    heartbeat.beat("vote", 3)
    os.pwrite(heartbeat.fileno(), (99).to_bytes(8, "little"), 0)
    assert (shown(heartbeat).beats, shown(heartbeat).phase) == (99, "vote")


def test_a_beat_costs_less_than_five_microseconds() -> None:
    heartbeat = Heartbeat()
    rounds = []
    for _ in range(20):  # the best of several: the machine may be busy
        begin = time.perf_counter()
        for step in range(1000):
            heartbeat.beat("step", step)
        rounds.append((time.perf_counter() - begin) / 1000)
    assert min(rounds) < 5e-6
