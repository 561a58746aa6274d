"""Joining a process group: alone, from torchrun's environment, twice, and on a device that is not there."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.engine.tiny import micro_batches, tiny_engine
from tests.launcher import ROOT, run_ranks
from vitscale.config import ConfigError
from vitscale.dist.ranks import Ranks
from vitscale.engine import processes


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes.shutdown()
    yield
    processes.shutdown()


def test_one_process_needs_no_launcher_and_no_port() -> None:
    assert processes.init_process_group("cpu") == Ranks()
    assert dist.get_backend() == "gloo"
    assert processes.init_process_group("cpu") == Ranks(), "a second call joins the same group"


def test_a_group_can_be_left_and_joined_again() -> None:
    for _ in range(2):
        engine = tiny_engine(stage=3)
        engine.train_step(micro_batches(0), step=0, lr=1e-2)
        engine.close()
        processes.shutdown()
        assert not dist.is_initialized()


def test_a_group_of_somebody_else_is_used_and_left_standing() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    processes.init_process_group("cpu")
    processes.shutdown()
    assert dist.is_initialized()
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_the_users_to_mend() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.device: cuda was asked for"):
        processes.init_process_group("cuda")


@pytest.mark.parametrize(
    ("local_ranks", "omp", "expected"), [("2", None, 4), ("3", None, 2), ("16", None, 1), ("2", "8", None), ("1", None, None)]
)
def test_ranks_on_one_node_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, local_ranks: str, omp: str | None, expected: int | None
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local_ranks)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    monkeypatch.setattr(processes, "_num_cores", lambda: 8)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    processes.init_process_group("cpu")
    assert chosen == ([] if expected is None else [expected])


@pytest.mark.dist
def test_ranks_wait_for_what_one_of_them_does_for_all() -> None:
    assert run_ranks(Path(__file__).with_name("ranks_patience.py")) == ["downloaded"] * 2


@pytest.mark.dist
def test_deepspeed_writes_nothing_to_the_console() -> None:
    script = """
import json
from tests.engine.tiny import micro_batches, tiny_engine
losses = []
for stage in (0, 1, 2, 3):
    engine = tiny_engine(stage=stage)
    losses.append(engine.train_step(micro_batches(0), step=0, lr=1e-2).loss.item())
    engine.close()
print(json.dumps(losses))
"""
    env = {name: value for name, value in os.environ.items() if name not in ("DS_ACCELERATOR", "PYTHONWARNINGS")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, check=True
    )
    assert len(json.loads(done.stdout)) == 4, "standard output holds what the program printed and nothing else"
    assert done.stderr == ""


def test_deepspeed_warnings_go_to_standard_error() -> None:
    processes.init_process_group("cpu")
    logger = logging.getLogger("DeepSpeed")
    assert logger.level == logging.WARNING
    assert [handler.stream for handler in logger.handlers if type(handler) is logging.StreamHandler] == [sys.stderr]


@pytest.mark.dist
def test_peak_memory_is_this_processs_own() -> None:
    """A child begins anew, whatever its parent, which holds half a gigabyte, has had."""
    ballast = bytearray(b"x") * (512 << 20)
    command = "from vitscale.engine.processes import peak_resident_bytes; print(peak_resident_bytes())"
    child = int(subprocess.run([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.split()[-1])
    assert processes.peak_resident_bytes() > len(ballast)
    assert 10 << 20 < child < processes.peak_resident_bytes() - (100 << 20)
