"""Opening a run: what is refused before anything is touched, and what a resume with allowed changes goes on with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.packed import pack
from tests.train.tiny_run import checkpoint_tensors, events, losses, sample_ids, tiny_config
from vitscale import api
from vitscale.config import CheckpointError, ConfigError, DataError, StopRequested, UsageError, UserError
from vitscale.data.manifest import MANIFEST_NAME
from vitscale.run_config import RunConfig
from vitscale.train.build import open_run
from vitscale.train.watch import Watch


def stopped(root: Path, *overrides: str, step: int = 3) -> RunConfig:
    """A run that was stopped after a step."""
    config = tiny_config(root, *overrides)
    with pytest.raises(StopRequested):
        api.train(config, stop_at_step=step)
    return config


def contents(run_dir: Path) -> dict[str, bytes]:
    """Every file but the lock, which names its newest holder, and logs, which grow."""
    paths = [path for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock" and not {"logs", "heartbeats"} & {*path.parts}]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in paths}


def no_evaluation_data(root: Path) -> RunConfig:
    return tiny_config(root, f"evals.test={{kind: classification, path: {root}/nothing}}")


def no_training_data(root: Path) -> RunConfig:
    (root / "shards" / MANIFEST_NAME).unlink()
    return tiny_config(root)


def too_few_outputs(root: Path) -> RunConfig:
    return tiny_config(root, "objective.num_classes=9")


@pytest.mark.parametrize(
    ("spoil", "allow", "error_class", "message"),
    [
        (no_evaluation_data, [], DataError, "nothing: no such data set folder"),
        (no_training_data, [], DataError, "it has no manifest.json"),
        (too_few_outputs, ["objective"], ConfigError, "objective.num_classes: 9, but the data set .* has 10 classes"),
        (lambda root: tiny_config(root, "model.depth=3"), ["model"], CheckpointError, "does not fit this model"),
        (lambda root: tiny_config(root, "data.lanes=8"), ["data.lanes"], CheckpointError, "data.lanes 8 does not divide the 12 samples"),
        (lambda root: tiny_config(root, "data.block=5"), [], CheckpointError, "--allow-change data.block"),
    ],
)
def test_what_is_refused_leaves_the_run_as_it_was(
    tmp_path: Path, spoil: Callable[[Path], RunConfig], allow: list[str], error_class: type[UserError], message: str
) -> None:
    run_dir = stopped(tmp_path, "train.global_batch=4").run_dir
    before = contents(run_dir)
    config = spoil(tmp_path)
    config = config.model_copy(update={"train": config.train.model_copy(update={"global_batch": 8})})
    with pytest.raises(error_class, match=message):
        api.train(config, allow_change=["train.global_batch", *allow])
    assert contents(run_dir) == before


def test_the_directory_is_locked_while_the_run_is_open_and_free_after(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    for _ in range(2):
        with open_run(config), pytest.raises(UsageError, match="another process is training"), open_run(config):
            pass


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_output_that_cannot_be_written_is_a_configuration_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match=f"output: the run directory {tmp_path}/{where}/tiny cannot be written: .*Not a directory"):
        api.train(tiny_config(tmp_path, f"output={tmp_path}/{where}"))
    assert (tmp_path / "file").read_text() == "kept"


def test_a_log_that_cannot_be_written_is_one_too(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "logs").write_text("")
    with pytest.raises(ConfigError, match=r"output: the run directory .*logs: File exists"):
        api.train(config)


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


def test_a_moving_average_may_be_added_on_a_resume_and_starts_from_the_weights(tmp_path: Path) -> None:
    plain = stopped(tmp_path, "optim.ema_decay=null")
    averaged = tiny_config(tmp_path, "optim.ema_decay=0.5")
    with pytest.raises(CheckpointError, match=r"--allow-change optim\.ema_decay"):
        api.train(averaged)
    api.train(averaged, allow_change=["optim.ema_decay"])
    saved = {step: checkpoint_tensors(plain.run_dir, step=step) for step in (3, 4)}
    assert {kind for _, kind in saved[3]} == {"weight", "exp_avg", "exp_avg_sq"}
    for name, kind in saved[3]:
        if kind == "weight":
            expected = 0.5 * saved[3][name, "weight"] + 0.5 * saved[4][name, "weight"]
            torch.testing.assert_close(saved[4][name, "ema"], expected, rtol=1e-6, atol=1e-7)


def test_a_moving_average_may_be_dropped_on_a_resume(tmp_path: Path) -> None:
    stopped(tmp_path)
    config = tiny_config(tmp_path, "optim.ema_decay=null")
    api.train(config, allow_change=["optim"])
    assert "ema" not in {kind for _, kind in checkpoint_tensors(config.run_dir, step=6)}


def test_a_start_shows_life_while_it_hashes_what_it_goes_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stopped(tmp_path)
    signs: list[str] = []
    monkeypatch.setattr(Watch, "beat_again", lambda watch: signs.append(watch.device))
    with open_run(first):
        assert len(signs) >= 3, "the tensors, the state and the configuration of the checkpoint"
    signs.clear()
    with open_run(tiny_config(tmp_path, "name=fine", f"init_from={{path: {first.run_dir}}}")):
        assert len(signs) >= 3


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


@pytest.mark.parametrize("change", ["seed=7", "data.block=5", "data.path={root}/other"])
def test_another_order_or_data_set_may_be_allowed(tmp_path: Path, change: str) -> None:
    first = stopped(tmp_path)
    seen = sample_ids(first.run_dir)
    (tmp_path / "other").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    images = [{"cls": b"1", "png": (tmp_path / "one.png").read_bytes()}] * 40
    pack(tmp_path / "other", images, samples_per_shard=40)
    config = tiny_config(tmp_path, change.format(root=tmp_path))
    api.train(config, allow_change=[change.partition("=")[0]])
    ids = sample_ids(config.run_dir)
    assert {step: ids[step] for step in seen} == seen, "what was done stays"
    assert sorted(losses(config.run_dir)) == [1, 2, 3, 4, 5, 6]
    assert any("changed on request" in event["message"] for event in events(config.run_dir, "decision"))


def test_the_start_is_written_down(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with open_run(config) as run:
        assert (run.start.step, run.num_steps) == (0, 6)
        identity: dict[str, Any] = run.data_identity
    assert identity["order"]["lanes"] == 4
    assert len(identity["manifest_sha256"]) == 64
    plan = json.loads((config.run_dir / "plan.json").read_text())
    assert plan["reasons"]
    assert "zero_stage: auto" in (config.run_dir / "config.yaml").read_text(), "left open, so that the number of ranks may change"
    (start,) = events(config.run_dir, "start")
    assert "16 = 1 ranks x 16 x 1 accumulated" in start["message"]
    assert [event["message"] for event in events(config.run_dir, "decision")] == plan["reasons"]
