"""Time in collectives: a slow rank is told from those who wait for it, at every ZeRO stage, for next to nothing."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.engine.ranks_collective_time import SLOW_SECONDS, STEPS
from tests.launcher import run_ranks
from vitscale.engine.collective_time import CollectiveTime, ForwardTime


class SleepingWork:
    """Stands for torch's handle of a collective that takes a while."""

    def wait(self) -> bool:
        time.sleep(0.05)
        return True


@pytest.fixture
def sleeping_work(monkeypatch: pytest.MonkeyPatch) -> type[SleepingWork]:
    monkeypatch.setattr(dist, "Work", SleepingWork)
    return SleepingWork


def test_waits_are_counted_and_shown(sleeping_work: type[SleepingWork]) -> None:
    shown: list[str] = []
    timed = CollectiveTime(on_enter=lambda: shown.append("in"), on_leave=lambda: shown.append("out"))
    assert sleeping_work().wait() is True
    assert shown == ["in", "out"]
    assert (timed.num_waits, timed.seconds) == (1, pytest.approx(0.05, abs=0.04))
    timed.close()
    timed.close()
    sleeping_work().wait()
    assert timed.num_waits == 1, "closed is closed"


def test_a_wait_that_fails_is_left_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_work: SleepingWork) -> bool:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(SleepingWork, "wait", fail)
    monkeypatch.setattr(dist, "Work", SleepingWork)
    shown: list[str] = []
    timed = CollectiveTime(on_enter=lambda: shown.append("in"), on_leave=lambda: shown.append("out"))
    with pytest.raises(RuntimeError, match="connection closed"):
        SleepingWork().wait()
    timed.close()
    assert shown == ["in", "out"]


def test_a_second_replacement_is_noticed(sleeping_work: type[SleepingWork]) -> None:
    original = sleeping_work.wait
    first = CollectiveTime()
    second = CollectiveTime()
    with pytest.raises(AssertionError, match="somebody else"):
        first.close()
    second.close()
    first.close()
    assert sleeping_work.wait is original


def test_torch_still_waits_through_the_method_that_is_replaced() -> None:
    original = dist.Work.wait
    timed = CollectiveTime()
    assert dist.Work.wait is not original
    timed.close()
    assert dist.Work.wait is original


@pytest.mark.parametrize(("device", "stage"), [("cpu", 0), ("cpu", 3), ("cuda", 3)])
def test_no_forward_time_where_there_is_none(device: str, stage: int) -> None:
    forward = ForwardTime(device=torch.device(device), zero_stage=stage)
    with forward.measure():
        pass
    assert forward.take() is None


class FakeEvent:
    """Stands for a CUDA event: the times at which a device would have reached it, a second apart."""

    now = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.time = -1.0
        self.synchronized = False

    def record(self) -> None:
        FakeEvent.now += 1.0
        self.time = FakeEvent.now

    def synchronize(self) -> None:
        self.synchronized = True

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 1000.0 * (end.time - self.time)


def test_forward_passes_are_summed_between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    forward = ForwardTime(device=torch.device("cuda"), zero_stage=2)
    for _ in range(3):
        with forward.measure():
            pass
    assert forward.take() == 3.0
    assert forward.take() == 0.0


@pytest.mark.gpu
def test_forward_time_is_that_of_the_device() -> None:
    device = torch.device("cuda")
    values = torch.randn(4096, 4096, device=device)
    forward = ForwardTime(device=device, zero_stage=0)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with forward.measure():
        for _ in range(50):
            values = torch.tanh(values @ values)
    issued = time.perf_counter() - begin
    measured = forward.take()
    waited = time.perf_counter() - begin
    assert measured is not None
    assert 0.5 * (waited - issued) < measured <= waited


@pytest.mark.chaos
def test_the_slow_rank_waits_least_at_every_stage() -> None:
    fast, slow = run_ranks(Path(__file__).with_name("ranks_collective_time.py"))
    for stage, (quick, late) in enumerate(zip(fast["stages"], slow["stages"], strict=True)):
        assert quick["waits"] == late["waits"], f"stage {stage}: the ranks wait equally often"
        slept = STEPS * SLOW_SECONDS
        assert quick["collective"] > 0.8 * slept, f"stage {stage}: {quick}"
        assert late["step"] - late["collective"] > 0.9 * slept, f"stage {stage}: {late}"
        own = [figures["step"] - figures["collective"] for figures in (quick, late)]
        assert own[1] > 2.0 * own[0], f"stage {stage}: own seconds {own}"
    assert fast["waits"] > 0.8 * SLOW_SECONDS > slow["waits"]
