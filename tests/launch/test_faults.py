"""Faults of a whole launch: signals to the command, its death, workers that die again and again, machines and heads that go."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.facilities import require_named_networks
from tests.train.rank_processes import RankProcesses
from tests.train.tiny_run import (
    assert_equal_tensors,
    checkpoint_tensors,
    events,
    losses,
    read_lines,
    sample_ids,
    tiny_config,
    tiny_values,
)
from vitscale.api import train
from vitscale.config import dump_yaml
from vitscale.run_config import RunConfig
from vitscale.train.run_lock import read_owner
from vitscale_launch.environment import prepare_environment

NUM_STEPS = 400
LONG = (f"train.num_samples={16 * NUM_STEPS}", "checkpoint.every_steps=50", "train.log_every_steps=10", "train.log_images=0")
# Workers can go on for some seconds without a head: they must not be at the end by then.
NUM_LONGER_STEPS = 3000
LONGER = (*LONG, f"train.num_samples={16 * NUM_LONGER_STEPS}")
PATIENCE = 280.0
HEAD = "10.211.7.1:6399"


class Command:
    """`vitscale-launch` on the tiny run, in a session of its own, with its output in a file."""

    def __init__(
        self,
        root: Path,
        *options: str,
        verb: str = "train",
        length: tuple[str, ...] = LONG,
        prefix: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.run_dir = root / "runs" / "tiny"
        (root / "tiny.yaml").write_text(dump_yaml(tiny_values(root)))
        self.output = root / "output.txt"
        command = [*prefix, sys.executable, "-m", "vitscale_launch", verb, str(root / "tiny.yaml"), *length, *options]
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, env={**os.environ, **(environment or {})}
            )

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: any(reached >= step for reached in logged(self.run_dir)), f"step {step}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended before {what}: {self.text()}"
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.text()}"
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE)

    def text(self) -> str:
        return self.output.read_text()[-6000:]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def logged(run_dir: Path) -> list[int]:
    path = run_dir / "metrics.jsonl"
    return list(losses(run_dir)) if path.exists() else []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands and ends them with the test."""
    with ExitStack() as stack:

        def begin(*options: str, **settings: Any) -> Command:
            command = Command(tmp_path, *options, **settings)
            stack.callback(command.kill)
            return command

        yield begin


def assert_same_end(run_dir: Path, reference: RunConfig) -> None:
    """Not the logged losses: a stop ends the stretch of steps that a logged mean is of."""
    assert sample_ids(run_dir) == sample_ids(reference.run_dir)
    assert_equal_tensors(checkpoint_tensors(run_dir, step=NUM_STEPS), checkpoint_tensors(reference.run_dir, step=NUM_STEPS))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_signals_lose_no_step_and_a_killed_command_is_given_again(tmp_path: Path, start: Callable[..., Command]) -> None:
    command = start("--workers", "1")
    command.wait_for_step(60)
    command.kill()
    command = start("--workers", "1")
    command.wait_until(lambda: events(command.run_dir, "resume"), "the resume")
    resumed = events(command.run_dir, "resume")[0]["step"]
    assert resumed >= 50, "from the checkpoint that the killed command had made"
    command.wait_for_step(resumed + 60)
    assert command.end(signal.SIGUSR1) == 75, command.text()
    stopped = events(command.run_dir, "ended")[-1]
    assert list(losses(command.run_dir))[-1] == stopped["step"], "the last step done is the last one kept"
    assert (command.run_dir / "checkpoints" / f"step-{stopped['step']:08d}").is_dir()

    train(tiny_config(tmp_path, *LONG))
    assert [event["step"] for event in events(command.run_dir, "resume")] == [resumed, stopped["step"]]
    reference = tiny_config(tmp_path, "name=reference", *LONG)
    train(reference)
    assert_same_end(command.run_dir, reference)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_worker_that_dies_again_and_again_ends_the_command_with_the_reason(start: Callable[..., Command]) -> None:
    command = start("--workers", "1", "--max-restarts", "9")
    command.wait_for_step(60)
    killed: set[int] = set()
    while command.process.poll() is None:
        holder = read_owner(command.run_dir)
        if holder is not None and holder.pid not in killed:
            killed.add(holder.pid)
            kill(holder.pid)
        time.sleep(0.05)
    assert command.process.returncode == 1, command.text()
    assert "the worker of rank 0 failed 3 times in the same place, after step" in command.text()
    assert "its process died" in command.text()
    assert [event["event"] for event in read_lines(command.run_dir / "events.jsonl") if event["event"] in ("restart", "gave_up")] == [
        "restart",
        "restart",
        "gave_up",
    ]
    assert len(killed) == 3


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Network:
    """Machines on one bridge, each a network namespace with a name of its own and what runs in it."""

    def __init__(self, num_machines: int, *, stack: ExitStack) -> None:
        # Ray leaves the address of the last cluster in its folder, where others would find it when this one is gone.
        folder = tempfile.mkdtemp(prefix="vray")  # short: sockets lie deep below
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self.environment = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "GLOO_SOCKET_IFNAME": "eth0", "RAY_TMPDIR": folder}
        # Names of its own: the kernel takes a namespace and its interfaces away some time after the last process in it.
        self._name = f"v{secrets.token_hex(3)}"
        ip("link", "add", self._name, "type", "bridge")
        stack.callback(ip, "link", "del", self._name)
        ip("link", "set", self._name, "up")
        for machine in range(1, num_machines + 1):
            space, cable = self.space(machine), f"{self._name}c{machine}"
            ip("netns", "add", space)
            stack.callback(self._remove, machine)
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", cable, "master", self._name, "up")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "addr", "add", f"10.211.7.{machine}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")

    def space(self, machine: int) -> str:
        """The machine's name, also for itself."""
        return f"{self._name}n{machine}"

    def entrance(self, machine: int) -> tuple[str, ...]:
        """The beginning of a command that runs there."""
        space = self.space(machine)
        return ("ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', space)

    def start_head(self) -> None:
        self._start_ray(1, "--head", "--port", HEAD.rpartition(":")[2], "--num-cpus", "0", "--include-dashboard", "false")

    def start_node(self, machine: int) -> None:
        self._start_ray(machine, "--address", HEAD, "--num-cpus", "1")

    def kill(self, machine: int, *, only: bytes = b"") -> None:
        """All of Ray on a machine, as when its power fails, or `only` what has this in its command line."""
        for pid in self._processes(machine):
            command = command_line(pid)
            if b"vitscale_launch" not in command and only in command:
                kill(pid)

    def _processes(self, machine: int) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.space(machine)], capture_output=True, text=True, check=False).stdout
        return [int(pid) for pid in found.split()]

    def _remove(self, machine: int) -> None:
        for pid in self._processes(machine):
            kill(pid)
        ip("netns", "del", self.space(machine))

    def _start_ray(self, machine: int, *options: str) -> None:
        ray = Path(sys.executable).with_name("ray")
        address = ("--node-ip-address", f"10.211.7.{machine}", "--object-store-memory", "100000000")
        command = [*self.entrance(machine), str(ray), "start", *options, *address]
        environment = {**os.environ, **self.environment}
        prepare_environment(environment, local=False)
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def network() -> Iterator[Network]:
    """A head without CPUs and two machines with one each, and the right to make them."""
    require_named_networks()
    with ExitStack() as stack:
        made = Network(3, stack=stack)
        made.start_head()
        made.start_node(2)
        made.start_node(3)
        yield made


def on_head(network: Network) -> dict[str, Any]:
    # The settings of a local cluster, which the test session has, are not for one that is joined.
    environment = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_API_SERVER_ADDRESS": ""}
    return {"length": LONGER, "prefix": network.entrance(1), "environment": network.environment | environment}


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_head_that_dies_and_comes_back_is_waited_for(tmp_path: Path, network: Network, start: Callable[..., Command]) -> None:
    command = start("--workers", "2", "--address", HEAD, **on_head(network))
    command.wait_for_step(100)
    network.kill(1)
    command.wait_until(lambda: bool(events(command.run_dir, "wait")), "the command to notice")
    for machine in (2, 3):
        network.kill(machine)
    network.start_head()
    network.start_node(2)
    network.start_node(3)
    assert command.process.wait(timeout=PATIENCE) == 0, command.text()
    assert len(events(command.run_dir, "restart")) == len(events(command.run_dir, "resume")) == 1
    assert events(command.run_dir, "resume")[0]["step"] < NUM_LONGER_STEPS
    assert_ends_like(command.run_dir, tmp_path, [(2, None)])


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("killed", [b"", b"raylet/raylet"], ids=["machine", "raylet"])
def test_after_the_loss_of_a_machine_fewer_workers_go_on(
    tmp_path: Path, network: Network, start: Callable[..., Command], killed: bytes
) -> None:
    command = start("--workers", "2", "--min-workers", "1", "--address", HEAD, **on_head(network))
    command.wait_for_step(100)
    network.kill(3, only=killed)
    assert command.process.wait(timeout=PATIENCE) == 0, command.text()
    assert [event["num_workers"] for event in events(command.run_dir, "shrink")] == [1]
    (resume,) = events(command.run_dir, "resume")
    assert resume["world_size"] == 1
    assert_ends_like(command.run_dir, tmp_path, [(2, resume["step"]), (1, None)])


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_rehearsal_reaches_the_ranks_of_all_machines(network: Network, start: Callable[..., Command]) -> None:
    faults = ("--fault", "kill", "--fault", "stop", "--fault", "nan", "--every", "2", "--count", "3")
    command = start("--workers", "2", "--address", HEAD, *faults, "watch.hang_seconds=6", **on_head(network), verb="chaos")
    assert command.process.wait(timeout=2 * PATIENCE) == 0, command.text()
    assert events(command.run_dir, "fault_not_done") == []
    assert sorted(event["reason"] for event in events(command.run_dir, "fault")) == ["kill", "nan", "stop"]
    assert len(events(command.run_dir, "resume")) == 2
    assert len(events(command.run_dir, "skipped_step")) == 1
    assert "hang, worker_failed" in command.text()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_machine_behind_a_cut_network_is_done_without(tmp_path: Path, network: Network, start: Callable[..., Command]) -> None:
    # Rank 0 holds the run directory, which it still sees here while nobody sees it.
    faults = ("--fault", "network", "--interface", "eth0", "--rank", "0", "--for", "200", "--every", "2", "--count", "1")
    options = ("--workers", "2", "--min-workers", "1", "--address", HEAD, "watch.hang_seconds=6")
    command = start(*options, *faults, **on_head(network), verb="chaos")
    # Until Ray takes a machine that is silent for lost, more than a minute passes.
    assert command.process.wait(timeout=2 * PATIENCE) == 0, command.text()
    assert [event["reason"] for event in events(command.run_dir, "fault")] == ["network"]
    resumes = events(command.run_dir, "resume")
    assert resumes[-1]["world_size"] == 1
    assert_ends_like(command.run_dir, tmp_path, [(2, resumes[-1]["step"]), (1, None)])


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_notice_of_preemption_saves_and_stops(network: Network, start: Callable[..., Command]) -> None:
    command = start("--workers", "2", "--address", HEAD, **on_head(network))
    command.wait_for_step(100)
    program = (
        f"import ray; ray.init(address='{HEAD}', logging_level='ERROR');"
        "node = next(n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == '10.211.7.3');"
        f"gcs = ray._raylet.GcsClient(address='{HEAD}');"
        "import time; print(gcs.drain_node(node, 2, 'test', int(time.time() * 1000) + 60000))"
    )
    done = subprocess.run(
        [*network.entrance(1), sys.executable, "-c", program],
        env={**os.environ, **network.environment, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert command.process.wait(timeout=60.0) == 75, command.text()
    stopped = events(command.run_dir, "ended")[0]
    assert list(losses(command.run_dir))[-1] == stopped["step"] < NUM_LONGER_STEPS


def assert_ends_like(run_dir: Path, root: Path, stretches: list[tuple[int, int | None]]) -> None:
    """Bit for bit as without Ray and without faults: so many ranks up to a step, then so many."""
    name = ("name=reference", *LONGER)
    for num_ranks, until in stretches:
        stop = () if until is None else ("--stop-at", str(until))
        with RankProcesses(root, *name, *stop, num_ranks=num_ranks) as ranks:
            assert ranks.wait() == [0 if until is None else 75] * num_ranks, ranks.text()
    reference = run_dir.with_name("reference")
    assert sample_ids(run_dir) == sample_ids(reference)
    ours, theirs = (checkpoint_tensors(folder, step=NUM_LONGER_STEPS) for folder in (run_dir, reference))
    assert_equal_tensors(ours, theirs)
