"""When a rank counts as hung and who is to blame, by tables."""

import json
from typing import Any

import pytest

from vitscale.train.hang_rules import (
    AUTO_SECONDS,
    STORAGE_SECONDS,
    SUSPENDED_SECONDS,
    Blame,
    Condition,
    RankState,
    SilenceClock,
    find_culprits,
    hang_message,
    lost_message,
    ranks_to_tell_of,
    ranks_waited_for,
)
from vitscale.train.heartbeat import Heartbeat, Signs, map_heartbeat, read_signs

CALM = Condition()
STOPPED = Condition(stopped=True)


class Rank:
    """A rank that beats, and its clock, which is shown after every beat that `seconds` have gone by."""

    def __init__(self, *, hang_seconds: float | None = None) -> None:
        self._heartbeat = Heartbeat()
        self.clock = SilenceClock(self._signs(), hang_seconds=hang_seconds, start_seconds=1800.0)

    def beat(self, phase: str, step: int, *, seconds: float = 0.0) -> None:
        self._heartbeat.beat(phase, step)
        self.clock.look(self._signs(), elapsed=0.1)
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        while seconds > 0:
            self.clock.look(self._signs(), elapsed=min(1.0, seconds))
            seconds -= 1.0

    def steps(self, count: int, *, seconds: float = 0.5) -> None:
        for step in range(count):
            self.beat("step", step, seconds=seconds)
            self.beat("data", step + 1)
            self.beat("vote", step + 1)

    def _signs(self) -> Signs:
        return read_signs(map_heartbeat(self._heartbeat.fileno()))


def test_silence_is_counted_between_looks() -> None:
    rank = Rank()
    rank.beat("data", 0, seconds=7.0)
    assert rank.clock.seconds == pytest.approx(7.0)
    rank.beat("data", 0)
    assert rank.clock.seconds == 0.0


@pytest.mark.parametrize("hang_seconds", [None, 5.0])
def test_the_first_step_may_take_half_an_hour(hang_seconds: float | None) -> None:
    rank = Rank(hang_seconds=hang_seconds)
    rank.beat("data", 40, seconds=100.0)
    rank.beat("step", 40, seconds=300.0)
    assert rank.clock.limit(CALM) == 1800.0
    rank.beat("vote", 41)
    assert rank.clock.limit(CALM) == (hang_seconds or AUTO_SECONDS)


def test_auto_waits_eight_times_the_longest_silence_of_the_phase() -> None:
    rank = Rank()
    rank.steps(3)
    rank.beat("step", 3, seconds=6.0)
    rank.beat("vote", 4)
    assert rank.clock.limit(CALM) == AUTO_SECONDS, "votes are as fast as ever"
    rank.beat("step", 4)
    assert rank.clock.limit(CALM) == pytest.approx(48.0, abs=1.0)


def test_what_the_first_step_took_is_no_measure_of_a_step() -> None:
    rank = Rank()
    rank.beat("step", 0, seconds=200.0)
    rank.steps(4)
    rank.beat("step", 4)
    assert rank.clock.limit(CALM) == AUTO_SECONDS


@pytest.mark.parametrize("phase", ["compare", "save", "evaluate", "end"])
def test_the_first_time_of_a_rare_phase_is_learnt(phase: str) -> None:
    rank = Rank()
    rank.steps(3)
    rank.beat(phase, 3, seconds=60.0)
    assert rank.clock.limit(CALM) == 1800.0
    rank.beat("step", 3)
    rank.beat(phase, 4)
    assert rank.clock.limit(CALM) == pytest.approx(480.0, abs=1.0)


def test_a_save_may_be_slow_though_those_before_were_fast() -> None:
    rank = Rank()
    rank.steps(3)
    rank.beat("save", 3)
    rank.beat("step", 3)
    rank.beat("save", 4)
    assert rank.clock.limit(CALM) == STORAGE_SECONDS
    assert rank.clock.limit(STOPPED) == AUTO_SECONDS


def test_with_seconds_of_the_users_a_save_has_no_more() -> None:
    rank = Rank(hang_seconds=30.0)
    rank.steps(3)
    for phase in ("save", "evaluate", "data", "step"):
        rank.beat(phase, 3)
        assert rank.clock.limit(Condition(idle=True)) == 30.0


def test_a_rank_asleep_over_its_data_may_be_waiting_for_a_store() -> None:
    rank = Rank()
    rank.steps(3)
    rank.beat("data", 3)
    assert rank.clock.limit(Condition(idle=True)) == STORAGE_SECONDS
    assert rank.clock.limit(Condition(idle=False)) == AUTO_SECONDS, "one that computes is not waiting"
    rank.beat("step", 3)
    assert rank.clock.limit(Condition(idle=True)) == AUTO_SECONDS


@pytest.mark.parametrize("phase", ["start", "data", "step", "save"])
def test_a_stopped_rank_is_hung_soon_in_every_phase(phase: str) -> None:
    rank = Rank()
    rank.beat(phase, 0)
    assert rank.clock.limit(STOPPED) == AUTO_SECONDS


def test_a_machine_that_slept_finds_its_ranks_alive() -> None:
    rank = Rank(hang_seconds=5.0)
    rank.steps(2)
    rank.beat("step", 2, seconds=4.0)
    signs = rank.clock.signs
    rank.clock.look(signs, elapsed=3600.0)
    assert rank.clock.seconds == 0.0
    rank.clock.look(signs, elapsed=SUSPENDED_SECONDS / 2)
    assert rank.clock.seconds == SUSPENDED_SECONDS / 2, "a late look of a busy machine counts"


def test_waiting_for_a_slower_rank_is_not_learnt() -> None:
    rank = Rank()
    rank.steps(3)
    rank.beat("vote", 4, seconds=100.0)
    rank.clock.excuse()
    rank.beat("step", 4)
    rank.beat("vote", 5)
    assert rank.clock.limit(CALM) == AUTO_SECONDS


def state(rank: int, **changes: Any) -> RankState:
    usual = {"host": f"host{rank}", "pid": 100 + rank, "moves": 50, "phase": "step", "step": 12, "limit_seconds": 20.0}
    return RankState(attempt="a", rank=rank, **usual | changes)


def hung(rank: int, **changes: Any) -> RankState:
    return state(rank, **{"silent_seconds": 21.0} | changes)


@pytest.mark.parametrize(
    ("others", "waited_for"),
    [
        ([], []),
        ([hung(1)], []),
        ([state(1)], [1]),
        ([state(1, moves=49), state(2, moves=51)], [1]),
        ([state(1, closed=True)], []),
        ([state(1, stopped=True)], []),
        ([state(1, silent_seconds=100.0, limit_seconds=300.0)], [1]),
        ([state(1, collectives=1)], []),
    ],
)
def test_whom_a_silent_rank_waits_for(others: list[RankState], waited_for: list[int]) -> None:
    assert ranks_waited_for(hung(0), others) == waited_for


CULPRITS: list[tuple[str, list[RankState], list[int], Blame]] = [
    ("alone", [hung(0)], [], Blame(ranks=(0,), certain=True)),
    ("fewer moves", [hung(0), hung(1, moves=48), hung(2)], [], Blame(ranks=(1,), certain=True)),
    ("fewer collectives", [hung(0, collectives=3, in_collective=True), hung(1, collectives=2)], [], Blame(ranks=(1,), certain=True)),
    (
        "still in an earlier collective",
        [hung(0, collectives=3, in_collective=True), hung(1, collectives=2, in_collective=True)],
        [],
        Blame(ranks=(1,), certain=True),
    ),
    (
        "out of the collective that the others wait in",
        [hung(0, collectives=3, in_collective=True), hung(1, collectives=3)],
        [],
        Blame(ranks=(1,), certain=True),
    ),
    ("all in one collective", [hung(0, in_collective=True), hung(1, in_collective=True)], [], Blame(ranks=(0, 1), certain=False)),
    ("two behind", [hung(0), hung(1, moves=48), hung(2, moves=48)], [], Blame(ranks=(1, 2), certain=True)),
    ("stopped while ahead", [hung(0), hung(1, moves=51, stopped=True)], [], Blame(ranks=(1,), certain=True)),
    ("its machine is gone", [hung(0)], [1], Blame(ranks=(1,), certain=True)),
    ("another one has come to its end", [state(0, moves=3, closed=True), hung(1)], [], Blame(ranks=(1,), certain=True)),
]


@pytest.mark.parametrize(("case", "states", "lost", "blame"), CULPRITS, ids=[case[0] for case in CULPRITS])
def test_who_is_to_blame(case: str, states: list[RankState], lost: list[int], blame: Blame) -> None:
    assert find_culprits({s.rank: s for s in states}, lost=lost) == blame, case


@pytest.mark.parametrize(
    ("blame", "told"),
    [
        (Blame(ranks=(1,), certain=True), {0: (), 1: (1,), 2: ()}),
        (Blame(ranks=(1, 2), certain=True), {0: (), 1: (1,), 2: (2,)}),
        (Blame(ranks=(0, 1, 2), certain=False), {0: (0, 1, 2), 1: (), 2: ()}),
        (Blame(ranks=(3,), certain=True), {0: (3,), 1: (), 2: ()}),
        (Blame(ranks=(0, 3), certain=True), {0: (0, 3), 1: (), 2: ()}),
    ],
)
def test_every_culprit_is_told_of_once(blame: Blame, told: dict[int, tuple[int, ...]]) -> None:
    assert {rank: ranks_to_tell_of(rank, blame=blame, answering=[0, 1, 2]) for rank in told} == told


def test_messages_name_the_rank_its_place_and_who_waited() -> None:
    states = {0: hung(0, collectives=1, in_collective=True), 1: hung(1, stopped=True)}
    message = hang_message(states[1], states=states, blame=Blame(ranks=(1,), certain=True))
    assert message.startswith("rank 1 (process 101 on host1) has shown no progress for 21 s in phase step after step 12, stopped by")
    assert message.endswith("Others waited: rank 0 in phase step after step 12, waiting in a collective")
    unknown = hang_message(states[0], states=states, blame=Blame(ranks=(0, 1), certain=False))
    assert unknown.startswith("ranks 0, 1 have shown no progress for 21 s")
    for told in (message, unknown):
        assert "as in a debugger, set watch.hang_seconds=null" in told
    assert "its watchdog: its machine or the shared folder is out of reach" in lost_message(3, last=None)
    assert "process 103 on host3" in lost_message(3, last=hung(3))


def test_many_who_waited_are_counted() -> None:
    states = {rank: hung(rank, moves=50 + (rank > 0)) for rank in range(100)}
    message = hang_message(states[0], states=states, blame=find_culprits(states))
    assert message.endswith("rank 4 in phase step after step 12, 95 more")


def test_a_state_travels_as_json() -> None:
    assert RankState.from_json(hung(1).to_json()) == hung(1)
    for text in ("", "{", hung(1).to_json()[:40]):
        with pytest.raises(json.JSONDecodeError):
            RankState.from_json(text)
    with pytest.raises(ValueError, match="flavour"):
        RankState.from_json(json.dumps({"rank": 1, "flavour": "sweet"}))
