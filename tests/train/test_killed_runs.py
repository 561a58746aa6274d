"""SIGKILL of a random rank at a random moment: the same command, given again, ends as if nothing had happened."""

import itertools
import random
import signal
import time
from pathlib import Path

import pytest

from tests.train.rank_processes import RankProcesses, reached_step
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, events, pack_tiny, sample_ids

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000)]

NUM_STEPS = 80
NUM_RUNS = 5
LENGTH = (f"train.num_samples={16 * NUM_STEPS}", "checkpoint.every_steps=7", "train.log_every_steps=2", "train.log_images=0")
MAX_SECONDS_LATER = 0.1


@pytest.mark.parametrize(("in_background", "stage"), list(itertools.product(["false", "true"], [1, 3])))
def test_every_killed_run_ends_like_the_undisturbed_one(tmp_path: Path, in_background: str, stage: int) -> None:
    pack_tiny(tmp_path)
    settings = (*LENGTH, f"checkpoint.in_background={in_background}", f"parallel.zero_stage={stage}")
    reference = tmp_path / "runs" / "reference"
    train_to_the_end(tmp_path, *settings, "name=reference")
    rng = random.Random(f"{in_background} {stage}")
    for number in range(NUM_RUNS):
        run_dir = tmp_path / "runs" / f"killed-{number}"
        kill_while_training(tmp_path, *settings, f"name={run_dir.name}", run_dir=run_dir, rng=rng)
        train_to_the_end(tmp_path, *settings, f"name={run_dir.name}")
        assert len(events(run_dir, "start")) + len(events(run_dir, "resume")) == 2
        assert sample_ids(run_dir) == sample_ids(reference)
        assert_equal_tensors(checkpoint_tensors(run_dir, step=NUM_STEPS), checkpoint_tensors(reference, step=NUM_STEPS))


def train_to_the_end(root: Path, *overrides: str) -> None:
    with RankProcesses(root, *overrides) as ranks:
        assert ranks.wait() == [0, 0], ranks.text()


def kill_while_training(root: Path, *overrides: str, run_dir: Path, rng: random.Random) -> None:
    rank, step = rng.randrange(2), rng.randrange(2, NUM_STEPS - 10)
    with RankProcesses(root, *overrides) as ranks:
        ranks.wait_until(lambda: reached_step(run_dir) >= step)
        time.sleep(rng.uniform(0.0, MAX_SECONDS_LATER))
        ranks.send(signal.SIGKILL, rank=rank)
        codes = ranks.wait()
    assert codes[rank] == -signal.SIGKILL, "it was still training"
    assert codes[1 - rank] != 0, "nobody goes on alone"
