"""Training through Ray: the same run as without it, whatever dies on the way."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, events, losses, read_lines, sample_ids, tiny_config
from vitscale.api import train
from vitscale.config import DataError, NonFiniteLossError, StopRequested
from vitscale.run_config import RunConfig
from vitscale.train.run_lock import read_owner
from vitscale_launch.task import make_task
from vitscale_launch.trainer import run_training
from vitscale_launch.workers import Workers

NUM_STEPS = 240
LONG = (f"train.num_samples={16 * NUM_STEPS}", "checkpoint.every_steps=50", "train.log_every_steps=10", "train.log_images=0")


def ray_train(config: RunConfig, *, num_workers: int, max_restarts: int = 0, stop_at_step: int | None = None) -> dict[str, Any]:
    workers = Workers(num_workers=num_workers, cpus=1, use_gpu=False)
    task = make_task(config, stop_at_step=stop_at_step)
    return run_training(task, run_dir=config.run_dir, workers=workers, max_restarts=max_restarts)


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:  # noqa: ARG001
    """A finished run of two workers."""
    config = tiny_config(tmp_path_factory.mktemp("undisturbed"), *LONG)
    outcome = ray_train(config, num_workers=2)
    assert (outcome["step"], outcome["samples"]) == (NUM_STEPS, 16 * NUM_STEPS)
    return config


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_one_worker_is_bitwise_the_plain_run_and_either_goes_on_with_the_other(tmp_path: Path) -> None:
    plain, mixed = tiny_config(tmp_path, "name=plain"), tiny_config(tmp_path, "name=mixed")
    train(plain)
    with pytest.raises(StopRequested, match="stopped on request after step 2"):
        train(mixed, stop_at_step=2)
    with pytest.raises(StopRequested, match="stopped on request after step 4"):
        ray_train(mixed, num_workers=1, stop_at_step=4)
    assert train(mixed).step == 6
    assert losses(mixed.run_dir) == losses(plain.run_dir)
    assert sample_ids(mixed.run_dir) == sample_ids(plain.run_dir)
    assert_equal_tensors(checkpoint_tensors(mixed.run_dir, step=6), checkpoint_tensors(plain.run_dir, step=6))
    assert [event["step"] for event in events(mixed.run_dir, "resume")] == [2, 4]
    assert not (mixed.run_dir / ".ray").exists(), "Ray's own records of a run are of no use"


@pytest.mark.ray
def test_two_workers_see_the_plain_runs_batches_and_losses(undisturbed: RunConfig, tmp_path: Path) -> None:
    plain = tiny_config(tmp_path, *LONG)
    with pytest.raises(StopRequested):
        train(plain, stop_at_step=50)
    ours, theirs = losses(undisturbed.run_dir), losses(plain.run_dir)
    assert sorted(theirs) == [10, 20, 30, 40, 50]
    for step in (10, 20):
        assert ours[step] == pytest.approx(theirs[step], rel=1e-5)
    assert {step: ids for step, ids in sample_ids(undisturbed.run_dir).items() if step <= 50} == sample_ids(plain.run_dir)


@pytest.mark.ray
def test_a_killed_worker_changes_nothing(undisturbed: RunConfig, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, *LONG, "data.num_workers=1")
    killer = threading.Thread(target=kill_holder, args=(config.run_dir, 120), daemon=True)
    killer.start()
    assert ray_train(config, num_workers=2, max_restarts=1)["step"] == NUM_STEPS
    killer.join()
    restarts, resumes = events(config.run_dir, "restart"), events(config.run_dir, "resume")
    assert len(restarts) == len(resumes) == 1
    assert 100 <= resumes[0]["step"] < NUM_STEPS
    assert restarts[0]["rank"] == 0
    assert "its process died" in restarts[0]["message"]
    assert losses(config.run_dir) == losses(undisturbed.run_dir)
    assert sample_ids(config.run_dir) == sample_ids(undisturbed.run_dir)
    assert_equal_tensors(checkpoint_tensors(config.run_dir, step=NUM_STEPS), checkpoint_tensors(undisturbed.run_dir, step=NUM_STEPS))


def kill_holder(run_dir: Path, step: int) -> None:
    """kill -9 the process that holds the run directory, rank 0, once it has logged `step`."""
    deadline = time.monotonic() + 200.0
    while time.monotonic() < deadline:
        metrics = run_dir / "metrics.jsonl"
        if metrics.exists() and any(f'"step": {step},' in line for line in metrics.read_text().splitlines()):
            holder = read_owner(run_dir)
            assert holder is not None
            os.kill(holder.pid, signal.SIGKILL)
            return
        time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_loss_that_is_nan_is_the_users_error_and_not_restarted(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "optim.lr=1e30", "optim.clip_grad_norm=null")
    with pytest.raises(NonFiniteLossError, match="step 6: the gradient is not finite, in the last of 4 steps"):
        ray_train(config, num_workers=2, max_restarts=3)
    assert events(config.run_dir, "restart") == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_an_error_on_one_rank_ends_all(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "data.num_workers=1")
    damage(tmp_path / "shards", sample=second_ranks_sample(tmp_path, step=4))
    begin = time.monotonic()
    with pytest.raises(DataError, match="is damaged"):
        ray_train(config, num_workers=2, max_restarts=3)
    assert time.monotonic() - begin < 150.0, "rank 0 waited in a collective"
    assert events(config.run_dir, "restart") == []


def second_ranks_sample(root: Path, *, step: int) -> int:
    """A sample of the second half of a step's batch, from a plain run."""
    config = tiny_config(root, "name=order")
    train(config)
    ids: list[int] = read_lines(config.run_dir / "samples" / "rank-00000.jsonl")[step - 1]["ids"]
    return ids[12]


def damage(shards: Path, *, sample: int) -> None:
    """Change some bytes inside a sample's image, and leave the file's size and time as they were."""
    shard = shards / f"train-{sample // 40:05d}.tar"
    before = shard.stat()
    raw = bytearray(shard.read_bytes())
    image = raw.index(b"\x89PNG", raw.index(f"{sample:06d}.png".encode()))
    raw[image + 40 : image + 50] = bytes(byte ^ 0xFF for byte in raw[image + 40 : image + 50])
    shard.write_bytes(raw)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
