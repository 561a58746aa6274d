"""How faults are done: to a process by the pid that its watchdog publishes, to a rank by request, to a disk by a nameless file."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.facilities import with_tmpfs
from tests.launch.networks import in_network_of_its_own
from vitscale.train.faults import FaultHook
from vitscale.train.hang_rules import RankState
from vitscale_launch import chaos_faults
from vitscale_launch.chaos_faults import FaultNotDone, Faults, Injection, dead_link, full_disk
from vitscale_launch.chaos_plan import ChaosPlan, Fault, FaultKind

PLAN = ChaosPlan(kinds=(FaultKind.KILL,), every_seconds=1.0, num_workers=2, seconds=0.2, factor=10.0)


def fault(kind: FaultKind, rank: int = 1) -> Fault:
    return Fault(kind=kind, rank=rank, pause_seconds=0.0)


def do(run_dir: Path, kind: FaultKind, *, plan: ChaosPlan = PLAN) -> Injection:
    told: list[Injection] = []
    over = threading.Event()
    Faults(run_dir=run_dir, plan=plan, wait=over.wait).do(fault(kind), tell=told.append)
    (injection,) = told
    return injection


def publish(run_dir: Path, pid: int, *, host: str = os.uname().nodename, closed: bool = False) -> None:
    (run_dir / "heartbeats").mkdir(exist_ok=True)
    state = RankState(attempt="a", rank=1, host=host, pid=pid, closed=closed)
    (run_dir / "heartbeats" / "rank-00001.json").write_text(json.dumps(asdict(state)).ljust(1023) + "\n")


@pytest.mark.parametrize(("kind", "state"), [(FaultKind.KILL, "Z"), (FaultKind.STOP, "T")])
def test_a_signal_reaches_the_ranks_process(tmp_path: Path, kind: FaultKind, state: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; print(); time.sleep(60)"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            publish(tmp_path, process.pid)
            (tmp_path / "metrics.jsonl").write_text('{"step": 12}\n')
            injection = do(tmp_path, kind)
            assert (injection.kind, injection.rank, injection.step) == (kind, 1, 12)
            assert abs(injection.time - time.time()) < 10
            deadline = time.monotonic() + 10
            while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_rank_without_a_sign_of_life_or_a_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(FaultNotDone, match="no sign of life"):
        do(tmp_path, FaultKind.KILL)
    publish(tmp_path, 2**22 + 1)
    with pytest.raises(FaultNotDone, match="cannot be signalled: No such process"):
        do(tmp_path, FaultKind.KILL)


def test_a_rank_that_has_ended_is_left_alone(tmp_path: Path) -> None:
    """Joining a cluster takes seconds, in which a run may end and its process become another one."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            publish(tmp_path, process.pid, closed=True)
            with pytest.raises(FaultNotDone, match="rank 1 has ended"):
                do(tmp_path, FaultKind.KILL)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
        finally:
            process.kill()


class Machines:
    """Notes what is asked of the machines of a cluster."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def reach(self) -> None:
        self.asked.append(("reach",))

    def signal(self, number: int, *, pid: int, host: str) -> None:
        self.asked.append((number, pid, host))

    def cut(self, interface: str, *, seconds: float, host: str) -> None:
        self.asked.append((interface, seconds, host))


@pytest.mark.parametrize("host", ["elsewhere", os.uname().nodename])
@pytest.mark.parametrize(("kind", "asked"), [(FaultKind.STOP, (signal.SIGSTOP, 77)), (FaultKind.NETWORK, ("eth0", 0.2))])
def test_in_a_cluster_the_machine_of_the_rank_is_asked(tmp_path: Path, host: str, kind: FaultKind, asked: tuple[object, ...]) -> None:
    machines, told, waited = Machines(), list[Injection](), list[float]()
    plan = replace(PLAN, interface="eth0")
    faults = Faults(run_dir=tmp_path, plan=plan, wait=lambda seconds: bool(waited.append(seconds)), machines=machines)
    with pytest.raises(FaultNotDone, match="no sign of life"):
        faults.do(fault(kind), tell=told.append)
    publish(tmp_path, 77, host=host)
    faults.do(fault(kind), tell=told.append)
    assert machines.asked == [("reach",), ("reach",), (*asked, host)]
    assert [(injection.kind, injection.rank) for injection in told] == [(kind, 1)]
    assert waited == ([0.2] if kind is FaultKind.NETWORK else [])


class Engine:
    def __init__(self) -> None:
        self.done: list[str] = []

    def flip_weight_bit(self) -> str:
        self.done.append("bit-flip")
        return ""

    def poison_next_gradient(self) -> None:
        self.done.append("nan")


@pytest.mark.parametrize("kind", [FaultKind.NAN, FaultKind.BIT_FLIP])
def test_a_rank_is_asked_and_answers_with_its_step(tmp_path: Path, kind: FaultKind) -> None:
    engine, over = Engine(), threading.Event()
    hook = FaultHook(tmp_path, rank=1, engine=engine)

    def train() -> None:
        step = 30
        while not over.wait(0.05):
            step += 1
            hook.after_step(step)

    rank = threading.Thread(target=train)
    rank.start()
    try:
        injection = do(tmp_path, kind)
    finally:
        over.set()
        rank.join()
    assert engine.done == [kind]
    assert injection.step > 30


def test_a_rank_that_never_looks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_faults, "_SECONDS_FOR_RECEIPT", 0.3)
    with pytest.raises(FaultNotDone, match="has not looked"):
        do(tmp_path, FaultKind.NAN)
    with pytest.raises(FaultNotDone, match="the run ended"):
        Faults(run_dir=tmp_path, plan=PLAN, wait=lambda _: True).do(fault(FaultKind.NAN), tell=lambda _: None)


def output_of(*prefix: str, program: str, arguments: tuple[str, ...] = ()) -> str:
    """What a Python program, begun in a machine that `prefix` makes for it, prints."""
    done = subprocess.run([*prefix, sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_full_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program = """
import os, shutil, sys
from pathlib import Path
from vitscale_launch.chaos_faults import full_disk
folder = Path(sys.argv[1])
before = shutil.disk_usage(folder).free
with full_disk(folder) as taken:
    free = shutil.disk_usage(folder).free
    assert 2**20 - 2**17 <= free <= 2**20 + 2**17 and taken == before - free, (before, free, taken)
    assert not any(path.stat().st_size for path in folder.iterdir()), "no name leads to it"
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
assert shutil.disk_usage(folder).free == before
pid = os.fork()
if not pid:
    with full_disk(folder):
        os.kill(os.getpid(), 9)
os.waitpid(pid, 0)
assert shutil.disk_usage(folder).free == before, "the ballast goes with a killed process"
print("done")
"""
    assert output_of(*with_tmpfs(tmp_path, size="64m"), program=program, arguments=(str(tmp_path),)) == "done\n"


def test_a_folder_that_is_gone_cannot_be_filled(tmp_path: Path) -> None:
    with pytest.raises(FaultNotDone, match="cannot be filled"), full_disk(tmp_path / "gone"):
        pass


def test_a_link_goes_down_and_comes_back_even_when_the_command_is_killed() -> None:
    program = """
from vitscale_launch.chaos_faults import dead_link
def is_down():
    return not is_up()
with dead_link("probe", seconds=1.0):
    wait_until(is_down)
assert is_up()
pid = os.fork()
if not pid:
    with dead_link("probe", seconds=1.0):
        wait_until(is_down)
        os.kill(os.getpid(), 9)
os.waitpid(pid, 0)
assert is_down()
wait_until(is_up)
print("done")
"""
    assert in_network_of_its_own(program) == "done\n"


def test_a_link_that_does_not_go_down_is_told() -> None:
    with pytest.raises(FaultNotDone, match="cannot be taken down"), dead_link("nosuch0", seconds=0.0):
        pass
