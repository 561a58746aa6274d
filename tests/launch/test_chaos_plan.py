"""Which faults a rehearsal makes: the same ones for the same seed, each kind as often as the others, and what is refused."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from vitscale.config import UsageError
from vitscale_launch import chaos_plan
from vitscale_launch.chaos_plan import ChaosPlan, FaultKind, check_plan, describe_faults

KINDS = (FaultKind.KILL, FaultKind.STOP, FaultKind.NAN)
PLAN = ChaosPlan(kinds=KINDS, every_seconds=60.0, num_workers=4)


def first(plan: ChaosPlan, num: int) -> list[chaos_plan.Fault]:
    return list(itertools.islice(plan.faults(), num))


def test_the_seed_decides_everything() -> None:
    assert first(PLAN, 30) == first(PLAN, 30)
    other = ChaosPlan(kinds=KINDS, every_seconds=60.0, num_workers=4, seed=1)
    assert first(PLAN, 30) != first(other, 30)


def test_each_kind_comes_once_before_any_comes_again() -> None:
    faults = first(PLAN, 300)
    assert all(set(KINDS) == {fault.kind for fault in faults[begin : begin + 3]} for begin in range(0, 300, 3))
    assert set(Counter(fault.rank for fault in faults)) == {0, 1, 2, 3}
    assert all(30.0 <= fault.pause_seconds <= 90.0 for fault in faults)
    assert 55.0 < sum(fault.pause_seconds for fault in faults) / 300 < 65.0


def test_a_rank_and_a_count_are_kept_to() -> None:
    plan = ChaosPlan(kinds=KINDS, every_seconds=1.0, num_workers=4, rank=2, count=7)
    assert [fault.rank for fault in first(plan, 100)] == [2] * 7
    assert describe_faults(plan).count("on rank 2") == 7
    assert describe_faults(PLAN).endswith("...\n")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": ()}, "--fault: say which, one or more of kill, stop"),
        ({"rank": 4}, "--rank 4: there are 4 workers"),
        ({"kinds": (FaultKind.NETWORK,)}, "--interface NAME"),
        ({"kinds": (FaultKind.NETWORK,), "interface": "nosuch0"}, "--fault network --interface nosuch0: not this one"),
        ({"kinds": (FaultKind.DISK_FULL,)}, r"has 3\.0 GiB free"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, object], message: str) -> None:
    monkeypatch.setattr(chaos_plan.shutil, "disk_usage", lambda _: Usage(3 * 2**30))
    monkeypatch.setattr(chaos_plan, "why_not", lambda _: "not this one")
    plan = ChaosPlan(**{"kinds": KINDS, "every_seconds": 1.0, "num_workers": 4} | values)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        check_plan(plan, run_dir=tmp_path / "not" / "there", is_watched=True, is_local=True, may_fill_disk=False)


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_small_disk_or_a_yes_may_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ChaosPlan(kinds=(FaultKind.DISK_FULL,), every_seconds=1.0, num_workers=1)
    check_plan(plan, run_dir=tmp_path / "run", is_watched=True, is_local=True, may_fill_disk=True)
    monkeypatch.setattr(chaos_plan.shutil, "disk_usage", lambda _: Usage(2**30))
    check_plan(plan, run_dir=tmp_path / "run", is_watched=True, is_local=True, may_fill_disk=False)


def test_what_machines_of_a_cluster_allow_is_not_asked_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_plan, "why_not", lambda _: "not here")
    plan = ChaosPlan(kinds=(FaultKind.NETWORK,), every_seconds=1.0, num_workers=1, interface="eth7")
    check_plan(plan, run_dir=tmp_path, is_watched=True, is_local=False, may_fill_disk=False)


def test_a_run_without_watchdogs_is_not_rehearsed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"watch\.hang_seconds: null leaves the ranks without watchdogs"):
        check_plan(PLAN, run_dir=tmp_path, is_watched=False, is_local=True, may_fill_disk=False)
