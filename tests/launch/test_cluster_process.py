"""The process that is connected to Ray: what it answers, and that it ends with the command."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import tiny_config
from vitscale.config import UsageError
from vitscale_launch import cluster_process
from vitscale_launch.outcome import Finished, Stopped, outcome_from_json
from vitscale_launch.task import TrainTask, make_task
from vitscale_launch.workers import ClusterResources, Workers

WORKERS = Workers(num_workers=2, cpus=1, use_gpu=False)


@contextlib.contextmanager
def joined(*, address: str | None, num_cpus: int) -> Iterator[ClusterResources]:
    if address is not None:
        raise UsageError("cannot join")
    yield ClusterResources(num_cpus=num_cpus, num_gpus=0, is_local=True)


def answer(question: dict[str, Any]) -> Any:
    with contextlib.ExitStack() as stack:
        return json.loads(cluster_process._answer(json.loads(json.dumps(question)), stack=stack))


def test_it_joins_counts_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[TrainTask, Path, Workers]] = []

    def attempt(task: TrainTask, *, run_dir: Path, workers: Workers) -> Finished:
        seen.append((task, run_dir, workers))
        return Finished(values={"step": 6})

    monkeypatch.setattr(cluster_process, "ray_cluster", joined)
    monkeypatch.setattr(cluster_process, "room_for", lambda workers: 5 if workers == WORKERS else 0)
    monkeypatch.setattr(cluster_process, "run_attempt", attempt)
    assert answer({"do": "join", "address": None, "num_cpus": 3}) == {"num_cpus": 3, "num_gpus": 0, "is_local": True}
    refusal = outcome_from_json(json.dumps(answer({"do": "join", "address": "x", "num_cpus": 3})))
    assert not isinstance(refusal, Finished | Stopped)
    assert answer({"do": "count", "workers": dataclasses.asdict(WORKERS)}) == 5
    task = make_task(tiny_config(tmp_path))
    question = {"do": "train", "task": task.to_json(), "run_dir": str(tmp_path), "workers": dataclasses.asdict(WORKERS)}
    assert outcome_from_json(json.dumps(answer(question))) == Finished(values={"step": 6})
    assert seen == [(task, tmp_path, WORKERS)]


def test_it_passes_on_what_a_rehearsal_asks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_process, "send_signal", lambda number, *, pid, host: None if (number, pid, host) == (9, 77, "m2") else "x")
    monkeypatch.setattr(cluster_process, "cut_link", lambda name, *, seconds, host: f"{name} {seconds} {host}")
    assert answer({"do": "signal", "number": 9, "pid": 77, "host": "m2"}) == {"reason": None}
    assert answer({"do": "cut", "interface": "eth0", "seconds": 5.0, "host": "m3"}) == {"reason": "eth0 5.0 m3"}


def test_an_answer_is_there_at_once() -> None:
    out = io.StringIO()
    cluster_process._say(out, "{}")
    assert out.getvalue() == "{}\n"


@pytest.mark.dist
def test_it_ends_when_the_command_does() -> None:
    read, write = os.pipe()
    command = [sys.executable, "-m", "vitscale_launch.cluster_process", str(write)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(write,))
    os.close(write)
    assert process.stdin is not None
    process.stdin.close()
    begin = time.monotonic()
    process.wait(timeout=100)
    os.close(read)
    assert time.monotonic() - begin < 100
    assert process.returncode != 0
