"""Evaluating a checkpoint gives what was measured in training, on any number of ranks; run as a script, it is one of the ranks."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.launcher import run_ranks
from tests.train.tiny_run import checkpoint_tensors, read_lines, tiny_config
from vitscale import api
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import CheckpointError, ConfigError
from vitscale.run_config import RunConfig
from vitscale.train.evaluate import load_objective

EVERY_STEPS = {"model": 2, "ema": 3}


def evaluated(root: Path, *overrides: str) -> RunConfig:
    """A run with an evaluation of either kind of weights; 7 divides neither the samples nor a rank's share."""
    evals = [
        f"evals.{weights}={{kind: classification, path: {root}/shards, batch_size: 7, weights: {weights}, every_steps: {every}}}"
        for weights, every in EVERY_STEPS.items()
    ]
    return tiny_config(root, "train.num_samples=288", "checkpoint.every_steps=6", "checkpoint.keep=9", *evals, *overrides)


def measured_in_training(run_dir: Path, step: int) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for record in read_lines(run_dir / "metrics.jsonl"):
        for key in record:
            if record["step"] == step and key.startswith("eval/"):
                _, name, value = key.split("/")
                values.setdefault(name, {})[value] = record[key]
    return values


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    api.train(evaluated(root))
    return root


@pytest.mark.parametrize("step", [6, 12, 18])
def test_the_result_is_that_of_training_at_the_same_step(trained: Path, step: int) -> None:
    config = evaluated(trained)
    results = api.evaluate(config, checkpoint=config.run_dir / "checkpoints" / f"step-{step:08d}")
    assert results == measured_in_training(config.run_dir, step)
    assert {values["num_samples"] for values in results.values()} == {96.0}


def test_the_newest_checkpoint_is_the_default_and_a_run_directory_will_do(trained: Path) -> None:
    config = evaluated(trained)
    last = measured_in_training(config.run_dir, 18)
    assert len({measured_in_training(config.run_dir, step)["model"]["top5"] for step in (6, 12, 18)}) > 1, "else equality says nothing"
    assert api.evaluate(config) == api.evaluate(config, checkpoint=config.run_dir) == last


@pytest.mark.dist
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_result_does_not_depend_on_the_number_of_ranks(trained: Path, num_ranks: int) -> None:
    results = run_ranks(Path(__file__), trained, num_ranks=num_ranks)
    assert results == [measured_in_training(evaluated(trained).run_dir, 18)] * num_ranks


@pytest.mark.parametrize("kind", ["weight", "ema"])
def test_the_weights_loaded_are_those_of_their_kind(trained: Path, kind: Any) -> None:
    config = evaluated(trained)
    reader = CheckpointReader(config.run_dir / "checkpoints" / "step-00000018")
    objective = load_objective(config, reader=reader, kind=kind, device=torch.device("cpu"), dtype=torch.float32)
    stored = {name: value for (name, stored_kind), value in checkpoint_tensors(config.run_dir, step=18).items() if stored_kind == kind}
    loaded = dict(objective.named_parameters())
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())
    assert not objective.training


def test_another_model_is_refused_with_what_differs(trained: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds another model .*backbone.cls_token: \(1, 1, 16\) .* \(1, 1, 32\)"):
        api.evaluate(evaluated(trained, "model.width=32"))


def test_averaged_weights_that_were_never_kept_are_refused(tmp_path: Path) -> None:
    plain = tiny_config(tmp_path, "train.num_samples=32", "optim.ema_decay=null")
    api.train(plain)
    with pytest.raises(CheckpointError, match="holds no moving average of the weights"):
        api.evaluate(evaluated(tmp_path))


def test_nothing_to_evaluate(trained: Path) -> None:
    with pytest.raises(ConfigError, match="evals: nothing to evaluate"):
        api.evaluate(tiny_config(trained))


def test_no_checkpoint_yet(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no whole checkpoint here"):
        api.evaluate(evaluated(trained), checkpoint=tmp_path)


if __name__ == "__main__":
    print(json.dumps(api.evaluate(evaluated(Path(sys.argv[1])))))
