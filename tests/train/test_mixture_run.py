"""Whole runs on a mixture, and with several labels per image."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.data.packed import pack, pack_images, png_bytes
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, sample_ids, tiny_values
from vitscale import api
from vitscale.config import CheckpointError, ConfigError, DataError, StopRequested, apply_overrides, decode
from vitscale.run_config import RunConfig

SIZES = {"large": 60, "middle": 24, "small": 18}
WEIGHTS = {"large": 0.5, "middle": 0.25, "small": 0.25}


def mixture(root: Path, *overrides: str, weights: dict[str, float] = WEIGHTS) -> RunConfig:
    values = tiny_values(root)
    for name, size in SIZES.items():
        if not (root / name).exists():
            (root / name).mkdir()
            pack_images(root / name, num_samples=size, samples_per_shard=20)
    sets = {name: {"path": str(root / name), "weight": weight} for name, weight in weights.items()}
    order = {key: value for key, value in values["data"].items() if key not in ("kind", "path")}
    values["data"] = {"kind": "mixture", "sets": sets, **order, "lanes": "auto"}
    values["train"]["num_samples"] = 240
    return decode(RunConfig, values=apply_overrides(values, overrides=overrides), source="tiny")


def test_a_run_on_a_mixture_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, parts = mixture(tmp_path, "name=whole"), mixture(tmp_path, "name=parts")
    api.train(whole)
    ids = [sample_id for batch in sample_ids(whole.run_dir).values() for sample_id in batch]
    starts = {"small": 84, "middle": 60, "large": 0}
    counts = Counter(next(name for name, start in starts.items() if sample_id >= start) for sample_id in ids[:200])
    assert len(ids) == 240
    assert counts == {"large": 100, "middle": 50, "small": 50}, "one row of all lanes after the other: the shares are exact"
    for stop in (4, 9):
        with pytest.raises(StopRequested):
            api.train(parts, stop_at_step=stop)
    api.train(parts)
    assert sample_ids(parts.run_dir) == sample_ids(whole.run_dir)
    assert losses(parts.run_dir) == losses(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=15), checkpoint_tensors(whole.run_dir, step=15))


def test_a_mixture_that_changed_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        api.train(mixture(tmp_path), stop_at_step=2)
    with pytest.raises(CheckpointError, match=r"data\.sets"):
        api.train(mixture(tmp_path, weights=WEIGHTS | {"small": 0.5}))


def several_labels(root: Path, *overrides: str) -> RunConfig:
    (root / "several").mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    labels = [" ".join(str(label) for label in range(10) if label % 3 == i % 3 and label <= i % 7) for i in range(48)]
    samples = [{"cls": text.encode(), "png": png_bytes(random.integers(0, 256, (8, 8), dtype=np.uint8))} for text in labels]
    pack(root / "several", samples, samples_per_shard=20)
    values = tiny_values(root)
    values["data"]["path"] = str(root / "several")
    return decode(RunConfig, values=apply_overrides(values, overrides=overrides), source="tiny")


def test_a_run_with_several_labels_per_image(tmp_path: Path) -> None:
    settings = ("objective.labels.kind=multi", "objective.loss=sigmoid", "objective.mixup_alpha=0.5")
    config = several_labels(tmp_path, *settings)
    api.train(config)
    found = losses(config.run_dir)
    assert len(found) == 6
    assert np.mean([found[5], found[6]]) < found[1]


def test_several_labels_are_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="This data set gives several classes to an image") as caught:
        api.train(several_labels(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"objective\.labels: kind multi needs the sigmoid loss"):
        several_labels(tmp_path, "objective.labels.kind=multi")
    accuracy = f"evals={{val: {{kind: classification, path: {tmp_path / 'several'}}}}}"
    settings = ("objective.labels.kind=multi", "objective.loss=sigmoid")
    with pytest.raises(DataError, match="accuracy can be measured only on a set with one class per image"):
        api.train(several_labels(tmp_path, *settings, accuracy))
