"""Opening a run: what it writes at the start, reports that cannot be opened, and batches of another size after a resume."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import events, read_lines, sample_ids, stopped, tiny_config
from vitscale import api
from vitscale.config import CheckpointError, ConfigError
from vitscale.train.build import open_run


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_report_that_cannot_be_opened_is_one_too(tmp_path: Path, name: str) -> None:
    config = tiny_config(tmp_path)
    config.run_dir.mkdir(parents=True)
    if name == "tensorboard":
        (config.run_dir / name).write_text("in the way")
    else:
        (config.run_dir / name).symlink_to(tmp_path / "gone" / "metrics.jsonl")
    with pytest.raises(ConfigError, match=rf"cannot be written: .*{name}"), open_run(config):
        pass


def test_another_global_batch_trains_on_the_samples_that_are_left(tmp_path: Path) -> None:
    stopped(tmp_path)
    config = tiny_config(tmp_path, "train.global_batch=8")
    assert api.train(config, allow_change=["train.global_batch"]).samples == 96
    ids = sample_ids(config.run_dir)
    assert [len(ids[step]) for step in sorted(ids)] == [16] * 3 + [8] * 6
    assert sorted(i for batch in ids.values() for i in batch) == list(range(96)), "still every sample of the epoch once"


def test_a_bad_loss_after_another_global_batch_names_its_own_batch(tmp_path: Path) -> None:
    stopped(tmp_path, "optim.schedule.warmup_samples=0")
    config = tiny_config(tmp_path, "train.global_batch=8", "optim.lr=1e25", "optim.schedule.warmup_samples=0")
    with pytest.raises(CheckpointError, match="Training stopped"):
        api.train(config, allow_change=["train", "optim"])
    (event,) = events(config.run_dir, "non_finite")
    assert event["sample_ids"] == sample_ids(config.run_dir)[event["step"]]


def test_the_start_is_written_down(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with open_run(config) as run:
        assert (run.start.step, run.num_steps) == (0, 6)
        identity: dict[str, Any] = run.data.identity()
    assert identity["order"]["lanes"] == 4
    assert len(identity["manifest_sha256"]) == 64
    plan = json.loads((config.run_dir / "plan.json").read_text())
    assert plan["reasons"]
    assert "zero_stage: auto" in (config.run_dir / "config.yaml").read_text(), "left open, so that the number of ranks may change"
    (start,) = events(config.run_dir, "start")
    assert "16 = 1 ranks x 16 x 1 accumulated" in start["message"]
    assert [event["message"] for event in events(config.run_dir, "decision")] == plan["reasons"]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_checkpoint_stays_over_a_restart(tmp_path: Path, mode: str) -> None:
    evaluation = f"evals.test={{kind: classification, path: {tmp_path}/shards, batch_size: 20, every_steps: 1}}"
    best = f"checkpoint.keep_best={{metric: eval/test/top1, mode: {mode}}}"
    config = stopped(tmp_path, evaluation, best, "checkpoint.every_steps=1", "checkpoint.keep=1", step=5)
    api.train(config)
    records = read_lines(config.run_dir / "metrics.jsonl")
    # The last save comes before the last evaluation. Of equal figures the newest counts. Of 4 the first start knows, of 5 the second.
    found = {record["step"]: record["eval/test/top1"] for record in records if "eval/test/top1" in record and record["step"] < 6}
    assert sorted(found) == [1, 2, 3, 4, 5]
    expected = max(found, key=lambda step: (found[step] if mode == "max" else -found[step], step))
    kept = sorted(path.name for path in (config.run_dir / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (expected, 6)]
