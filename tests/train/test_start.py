"""The start of a run: what is refused before anything is touched, and what a resume with allowed changes goes on with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.packed import pack
from tests.train.tiny_run import checkpoint_tensors, events, losses, sample_ids, stopped, tiny_config
from vitscale import api
from vitscale.config import CheckpointError, ConfigError, DataError, UserError
from vitscale.data.manifest import MANIFEST_NAME
from vitscale.run_config import RunConfig
from vitscale.train.build import open_run
from vitscale.train.watch import Watch


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
    with open_run(first) as run:
        num_held = sum(1 for _ in run.engine.store.held())
        assert len(signs) >= 3 + num_held, "the tensors, the state and the configuration of the checkpoint; then what is read of them"
    signs.clear()
    with open_run(tiny_config(tmp_path, "name=fine", f"init_from={{path: {first.run_dir}}}")):
        assert len(signs) >= 3


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
