"""Sweeps: the grid becomes runs, and everything wrong with it is said at once, before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import tiny_values
from vitscale.config import ConfigError, dump_yaml
from vitscale.run_config import load_run_config
from vitscale_launch.sweep import describe_trials, load_sweep, trial_name

ROOT = Path(__file__).resolve().parents[2]


def write_sweep(root: Path, **replaced: Any) -> Path:
    """A sweep of a tiny run over resolution and rate below `root`, with fields replaced."""
    base = tiny_values(root) | {"evals": {"test": {"kind": "classification", "path": str(root / "shards")}}}
    (root / "base.yaml").write_text(dump_yaml(base))
    values = {
        "name": "sweep",
        "output": str(root / "runs"),
        "base": str(root / "base.yaml"),
        "grid": {"model.image_size": [8, 12], "optim.lr": [0.01, 0.001, 0.0001]},
        "metric": "eval/test/top1",
        "plot": {"x": "model.image_size", "line": "optim.lr"},
    }
    (root / "sweep.yaml").write_text(dump_yaml(values | replaced))
    return root / "sweep.yaml"


def test_every_combination_is_a_run(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path))
    assert [trial.name for trial in sweep.trials][:3] == ["image_size-8_lr-0.01", "image_size-8_lr-0.001", "image_size-8_lr-0.0001"]
    assert len(sweep.trials) == 6
    assert sweep.folder == tmp_path / "runs" / "sweep"
    for trial in sweep.trials:
        assert trial.config.model.image_size == trial.values["model.image_size"]
        assert trial.config.optim.lr == trial.values["optim.lr"]
        assert trial.config.run_dir == sweep.folder / trial.name


def test_overrides_change_the_sweep(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path), overrides=["parallel_trials=3", "name=other", "plot=null"])
    assert (sweep.config.parallel_trials, sweep.folder.name, sweep.config.plot) == (3, "other", None)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"model.image_size": 8, "init_from.positions": "timm"}, "image_size-8_positions-timm"),
        ({"a.lr": 1e-3, "b.lr": None}, "a.lr-0.001_b.lr-None"),
        ({"data.path": "shards/a b"}, "path-shards-a-b"),
        ({"optim.lr": 1e-05}, "lr-1e-05"),
    ],
)
def test_names_of_trials_are_names_of_folders(values: dict[str, Any], name: str) -> None:
    assert trial_name(values) == name


def test_all_problems_of_the_trials_are_told_once_and_together(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, grid={"model.imge_size": [8, 12], "optim.lr": [0.01, "fast"]}, plot=None)
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    text = str(caught.value)
    assert text.count("model.imge_size: unknown key; did you mean 'image_size'?") == 1
    assert text.count("optim.lr: ") == 1
    assert "2 problems" in text


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"metric": "eval/tst/top1"}, "no evaluation 'tst'; did you mean 'test'?"),
        ({"grid": {"optim.lr": [0.1, 0.1]}, "plot": None}, "grid.optim.lr: the same value is given twice"),
        ({"grid": {"data.path": ["a b", "a-b"]}, "plot": None}, "grid: 2 trials would be called path-a-b"),
        ({"plot": {"x": "model.image_size", "file": "metric.txt"}}, "plot.file"),
        ({"plot": {"x": "model.image_size", "file": "../metric.png"}}, "plot.file"),
        ({"grid": {"name": ["a", "b"]}, "plot": None}, "grid.name: the sweep names its runs itself"),
        ({"plot": {"x": "model.image_siz"}}, "plot.x: 'model.image_siz' is not in the grid; did you mean 'model.image_size'?"),
        ({"plot": {"x": "seed"}, "grid": {"seed": ["a"]}}, "plot.x: the values of seed are not numbers"),
        ({"grid": {}}, "grid"),
        ({"grid": {"optim.lr": []}}, "grid.optim.lr"),
        ({"paralel_trials": 2}, "paralel_trials: unknown key; did you mean 'parallel_trials'?"),
        ({"base": "missing.yaml"}, "missing.yaml: cannot read the configuration"),
        ({"grid": {"model.image_size": [8, 9]}, "plot": None}, "image_size"),
        ({"workers": 0}, "workers"),
    ],
)
def test_a_wrong_sweep_is_refused(tmp_path: Path, replaced: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write_sweep(tmp_path, **replaced))
    assert message in str(caught.value)


def test_the_description_lists_every_trial_with_its_settings(tmp_path: Path) -> None:
    text = describe_trials(load_sweep(write_sweep(tmp_path, grid={"seed": [1, 2]}, plot=None, workers=2)))
    first, *trials = text.splitlines()
    assert "2 trials" in first
    assert "2 workers each" in first
    assert trials == ["seed-1: seed=1", "seed-2: seed=2"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_this_repository_decode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = load_sweep(path.relative_to(ROOT))
    assert sweep.config.name == path.stem
    assert len(sweep.trials) > 1


def test_the_resolution_sweep_goes_on_with_the_quickstarts_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    quickstart = load_run_config(Path("configs/pretrain/fashion_mnist_vit.yaml"))
    for trial in load_sweep(Path("configs/sweeps/fashion_resolution.yaml")).trials:
        assert trial.config.init_from is not None
        assert Path(trial.config.init_from.path).absolute() == quickstart.run_dir
        assert trial.config.model.model_copy(update={"image_size": quickstart.model.image_size}) == quickstart.model
        assert (trial.config.data.path, trial.config.evals) == (quickstart.data.path, quickstart.evals)
