"""The evaluations of a configuration: opened in its order, and refused where accuracy would mean nothing."""

from pathlib import Path

import pytest

from tests.train.tiny_run import tiny_config
from vitscale.config import DataError
from vitscale.data.manifest import MANIFEST_NAME
from vitscale.dist.ranks import Ranks
from vitscale.run_config import RunConfig
from vitscale.train.evaluations import build_evaluations

CLASSES = tuple(str(label) for label in range(10))


def config_with(root: Path, *settings: str) -> RunConfig:
    evals = [f"evals.{name}.kind=classification" for name in ("first", "second")]
    paths = [f"evals.{name}.path={root}/shards" for name in ("first", "second")]
    return tiny_config(root, *evals, *paths, *settings)


def test_each_is_opened_as_configured(tmp_path: Path) -> None:
    config = config_with(tmp_path, "evals.second.weights=ema", "evals.second.every_steps=7")
    first, second = build_evaluations(config, ranks=Ranks(), train_classes=CLASSES)
    assert (first.name, first.weights, first.every_steps) == ("first", "model", None)
    assert (second.name, second.weights, second.every_steps) == ("second", "ema", 7)
    assert first.evaluator.dataset.num_samples == 96


def test_none_is_configured(tmp_path: Path) -> None:
    assert build_evaluations(tiny_config(tmp_path), ranks=Ranks()) == ()


@pytest.mark.parametrize("classes", [CLASSES[:9], CLASSES[::-1]])
def test_other_classes_than_those_trained_on_are_refused(tmp_path: Path, classes: tuple[str, ...]) -> None:
    config = config_with(tmp_path)
    with pytest.raises(DataError, match=r"evals\.first\.path: .* accuracy would compare different things"):
        build_evaluations(config, ranks=Ranks(), train_classes=classes)
    assert len(build_evaluations(config, ranks=Ranks(), train_classes=None)) == 2, "no names to compare with"


def test_a_missing_data_set_is_an_error_of_all_ranks(tmp_path: Path) -> None:
    config = config_with(tmp_path)
    (tmp_path / "shards" / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match="it has no manifest") as caught:
        build_evaluations(config, ranks=Ranks())
    assert caught.value.scope == "run"
