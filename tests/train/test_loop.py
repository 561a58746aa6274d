"""Whole runs in one process: what lands in the run directory, resuming bit for bit, and the ways a run ends early."""

import contextlib
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.limits import largest_file
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, events, losses, sample_ids, tiny_config
from vitscale import api
from vitscale.checkpoint import saver
from vitscale.checkpoint.manifest import FileEntry
from vitscale.config import NonFiniteLossError, StopRequested
from vitscale.train.loop import micro_batches


def test_a_run_leaves_everything_behind(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, f"evals.test={{kind: classification, path: {tmp_path}/shards, batch_size: 20, every_steps: 3}}")
    result = api.train(config)
    run_dir = config.run_dir
    assert (result.step, result.samples) == (6, 96)
    assert sorted(losses(run_dir)) == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == ["step-00000002", "step-00000004", "step-00000006"]
    evaluations = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines() if "eval/test/top1" in line]
    assert [record["step"] for record in evaluations] == [3, 6]
    assert result.values["eval/test/top1"] == evaluations[-1]["eval/test/top1"]
    assert sorted(i for ids in sample_ids(run_dir).values() for i in ids) == list(range(96)), "an epoch is every sample once"
    assert json.loads((run_dir / "plan.json").read_text())["num_steps"] == 6
    assert "lanes: 4" in (run_dir / "config.yaml").read_text()
    for name in ("environment.json", "logs/rank-00000.jsonl", "tensorboard"):
        assert (run_dir / name).exists(), name
    assert [event["step"] for event in events(run_dir, "checkpoint")] == [2, 4, 6]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_stopping_and_resuming_changes_nothing(tmp_path: Path, zero_stage: int) -> None:
    options = [f"parallel.zero_stage={zero_stage}"]
    whole = tiny_config(tmp_path, "name=whole", *options)
    api.train(whole)
    parts = tiny_config(tmp_path, "name=parts", *options)
    with pytest.raises(StopRequested, match="stopped on request after step 3 of 6"):
        api.train(parts, stop_at_step=3)
    api.train(parts)
    assert losses(parts.run_dir) == losses(whole.run_dir)
    assert sample_ids(parts.run_dir) == sample_ids(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))
    assert events(parts.run_dir, "resume")


def test_stages_change_the_image_size_and_a_resume_in_any_of_them_changes_nothing(tmp_path: Path) -> None:
    stages = ["model.image_size=16", "stages=[{until_samples: 24, image_size: 4}, {until_samples: 64, image_size: 8}]"]
    whole = tiny_config(tmp_path, "name=whole", *stages)
    api.train(whole)
    assert [(event["step"], event["message"]) for event in events(whole.run_dir, "stage")] == [
        (0, "stage 1 of 3: images of 4 pixels"),
        (2, "stage 2 of 3: images of 8 pixels"),  # the batch that begins at 16 < 24 still belongs to the first
        (4, "stage 3 of 3: images of 16 pixels"),
    ]
    parts = tiny_config(tmp_path, "name=parts", *stages)
    for stop in (1, 3, 4):
        with pytest.raises(StopRequested):
            api.train(parts, stop_at_step=stop)
    api.train(parts)
    assert losses(parts.run_dir) == losses(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))
    plain = tiny_config(tmp_path, "name=plain", "model.image_size=16")
    api.train(plain)
    assert losses(plain.run_dir) != losses(whole.run_dir)


def test_a_resume_makes_up_for_an_evaluation_that_a_stop_left_out(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, f"evals.test={{kind: classification, path: {tmp_path}/shards, every_steps: 3}}")
    with pytest.raises(StopRequested):
        api.train(config, stop_at_step=3)
    assert "eval/test/top1" not in (config.run_dir / "metrics.jsonl").read_text()
    for _ in range(2):
        api.train(config)
        records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records if "eval/test/top1" in record] == [3, 6]


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    api.train(config)
    before = (config.run_dir / "metrics.jsonl").read_text()
    assert api.train(config).step == 6
    assert (config.run_dir / "metrics.jsonl").read_text() == before


def test_a_loss_that_explodes_stops_the_run_and_names_step_samples_and_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, "optim.lr=1e25", "optim.schedule.warmup_samples=0", "train.log_every_steps=100", "checkpoint.every_steps=1"
    )
    with pytest.raises(NonFiniteLossError) as caught:
        api.train(config)
    (event,) = events(config.run_dir, "non_finite")
    step = event["step"]
    assert f"step {step}: " in str(caught.value)
    assert event["sample_ids"] == sample_ids(config.run_dir)[step]
    newest = max(path.name for path in (config.run_dir / "checkpoints").iterdir())
    assert newest == f"step-{step - 1:08d}", "nothing of the bad step is kept"
    assert newest in str(caught.value)


def test_micro_batches_are_consecutive_views() -> None:
    batch = {"sample_id": torch.arange(6), "image": torch.zeros(6, 1, 2, 2)}
    parts = micro_batches(batch, size=2)
    assert [part["sample_id"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert parts[1]["image"].data_ptr() == batch["image"][2:].data_ptr()


def test_training_goes_on_while_nothing_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 2 to step 5 no file may grow, those of the reports included: nothing of them is missing afterwards."""
    whole, full = (tiny_config(tmp_path, f"name={name}", "data.log_samples=false") for name in ("whole", "full"))
    api.train(whole)
    capsys.readouterr()
    steps = itertools.count(1)
    parts_ended, real_write_part = threading.Semaphore(0), saver.write_part

    def write_part(*args: Any, **kwargs: Any) -> FileEntry:
        try:
            return real_write_part(*args, **kwargs)
        finally:
            parts_ended.release()

    monkeypatch.setattr(saver, "write_part", write_part)
    with contextlib.ExitStack() as disk:

        def fill_and_free() -> bool:
            step = next(steps)
            if step == 2:
                disk.enter_context(largest_file(10 + (full.run_dir / "metrics.jsonl").stat().st_size))
            if step == 5:
                # Saves are written beside the steps: those of steps 2 and 4 have to have met the full disk.
                assert all(parts_ended.acquire(timeout=60) for _ in (2, 4))
                disk.close()
            return False

        api.train(full, stop_when=fill_and_free)
    assert losses(full.run_dir) == losses(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(full.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))
    assert [event["step"] for event in events(full.run_dir, "save_failed")] == [2, 4]
    assert [event["step"] for event in events(full.run_dir, "checkpoint")] == [6]
    assert [event["step"] for event in events(full.run_dir, "time")] == [0, 1, 2, 3, 4, 5, 6, 6]
    report = api.events(full.run_dir)
    assert report.counts.failed_saves == 2
    assert report.seconds["unrecorded"] == 0.0
    shown = EventAccumulator(str(full.run_dir / "tensorboard"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [(event.step, event.value) for event in shown.Scalars("checkpoint/failed_saves")] == [(2, 1.0), (4, 2.0)]
    told = capsys.readouterr().out
    assert told.count("cannot be written: File too large. Training goes on") == 3
    assert told.count("can be written again, nothing is missing") == 3
