"""Accuracy: equal to independent implementations, each sample counted once at any world size, bad data refused."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.data.packed import NUM_CLASSES, pack, pack_images, png_bytes
from vitscale.config import Config, ConfigError, DataError, decode
from vitscale.config.base import is_operational
from vitscale.data.dataset import Dataset
from vitscale.data.types import Batch
from vitscale.dist.ranks import Ranks
from vitscale.evals import EVALS, ClassificationConfig, SpendingConfig
from vitscale.evals.classification import ClassificationEval, count_correct
from vitscale.models import ViTConfig

MODEL = ViTConfig(image_size=8, num_channels=1, patch_size=4, width=8, depth=1, num_heads=1)


def _evaluation(dataset: Dataset, *, rank: int = 0, world_size: int = 1, batch_size: int = 8) -> ClassificationEval:
    config = ClassificationConfig(path=str(dataset.storage.root), batch_size=batch_size)
    return ClassificationEval(config, dataset=dataset, model=MODEL, ranks=Ranks(rank=rank, world_size=world_size))


def _predict(batch: Batch) -> Tensor:
    """Logits that depend on the image alone, as a model's do."""
    pixels = batch["image"].flatten(1).double()
    weight = torch.sin(torch.arange(pixels.shape[1] * NUM_CLASSES, dtype=torch.float64)).view(pixels.shape[1], NUM_CLASSES)
    return (pixels @ weight).float()


@pytest.mark.parametrize("num_classes", [1, 2, 5, 10])
def test_counts_equal_timms_accuracy(num_classes: int) -> None:
    from timm.utils import accuracy

    generator = torch.Generator().manual_seed(num_classes)
    logits_BK = torch.randn(64, num_classes, generator=generator)
    labels_B = torch.randint(0, num_classes, (64,), generator=generator)
    expected = [float(value) for value in accuracy(logits_BK, labels_B, topk=(1, 5))]
    top1, top5, num_samples, unknown = count_correct(logits_BK, labels_B=labels_B).tolist()
    assert [100 * top1 / 64, 100 * top5 / 64] == pytest.approx(expected)
    assert (num_samples, unknown) == (64, 0)


@hypothesis.given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**31))
@hypothesis.settings(max_examples=50, deadline=None)
def test_ties_go_to_the_lower_class_as_in_a_stable_sort(num_samples: int, num_classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BK = torch.randint(0, 3, (num_samples, num_classes), generator=generator).float()
    labels_B = torch.randint(-1, num_classes, (num_samples,), generator=generator)
    order = logits_BK.sort(dim=1, descending=True, stable=True).indices.tolist()
    places = [row.index(label) for row, label in zip(order, labels_B.tolist(), strict=True) if label >= 0]
    expected = [sum(place < 1 for place in places), sum(place < 5 for place in places), len(places), 0]
    assert count_correct(logits_BK, labels_B=labels_B).tolist() == expected


def test_a_model_of_zeros_is_right_for_class_0_only() -> None:
    assert count_correct(torch.zeros(10, 10), labels_B=torch.arange(10)).tolist() == [1, 5, 10, 0]


def test_nan_is_never_right() -> None:
    nan = float("nan")
    logits_BK = torch.tensor([[nan, nan, nan], [1.0, nan, 0.0], [nan, 1.0, 0.0]])
    assert count_correct(logits_BK, labels_B=torch.tensor([0, 1, 1])).tolist() == [0, 1, 3, 0]


def test_a_label_beyond_the_outputs_is_counted_apart() -> None:
    assert count_correct(torch.eye(3), labels_B=torch.tensor([0, 7, -1])).tolist() == [1, 1, 2, 1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A prime number of samples, so that no world size or batch size divides it."""
    return pack_images(tmp_path_factory.mktemp("held_out"), num_samples=23, samples_per_shard=9)


@pytest.fixture(scope="module")
def expected(dataset: Dataset) -> dict[str, float]:
    """The same accuracy by argmax and topk over all samples at once."""
    labels: list[Tensor] = []
    logits: list[Tensor] = []

    def record(batch: Batch) -> Tensor:
        labels.append(batch["label"])
        logits.append(_predict(batch))
        return logits[-1]

    _evaluation(dataset, batch_size=23).run(record)
    (labels_B,), (logits_BK,) = labels, logits
    assert labels_B.tolist() == [i % NUM_CLASSES for i in range(23)]
    hits = logits_BK.topk(5).indices == labels_B.unsqueeze(1)
    return {"top1": hits[:, 0].double().mean().item(), "top5": hits.any(dim=1).double().mean().item(), "num_samples": 23.0}


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 24])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_any_world_and_batch_size_gives_the_same_numbers(
    dataset: Dataset, expected: dict[str, float], world_size: int, batch_size: int
) -> None:
    shares, calls = _run_as_ranks(dataset, world_size=world_size, batch_size=batch_size)
    assert all(share == expected for share in shares)
    assert len(set(calls)) == 1, "a sharded model needs equally many forward passes on every rank"


def _run_as_ranks(dataset: Dataset, *, world_size: int, batch_size: int) -> tuple[list[dict[str, float]], list[int]]:
    barrier, counts, calls = threading.Barrier(world_size, timeout=20), [], [0] * world_size

    def summed(values: Tensor) -> Tensor:
        counts.append(values.clone())
        barrier.wait()
        return torch.stack(counts).sum(dim=0)

    def work(rank: int) -> dict[str, float]:
        def predict(batch: Batch) -> Tensor:
            calls[rank] += 1
            return _predict(batch)

        return _evaluation(dataset, rank=rank, world_size=world_size, batch_size=batch_size).run(predict)

    with mock.patch("vitscale.evals.classification.all_reduce_sum", summed), ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(work, range(world_size))), calls


def test_a_sample_counted_twice_is_our_bug(dataset: Dataset) -> None:
    doubled = mock.patch("vitscale.evals.classification.all_reduce_sum", lambda counts: counts * 2)
    with doubled, pytest.raises(AssertionError, match="counted 46 of 23 samples"):
        _evaluation(dataset).run(_predict)


def test_a_damaged_sample_ends_the_evaluation_and_the_message_says_what_for_it_was_read(tmp_path: Path) -> None:
    dataset = pack_images(tmp_path, num_samples=80, samples_per_shard=80)
    evaluation = _evaluation(dataset)
    tar = tmp_path / dataset.shards[0].name
    raw = bytearray(tar.read_bytes())
    raw[int(dataset.read_index(dataset.shards[0])["offset"][70]) + 600] ^= 1
    tar.write_bytes(raw)
    with pytest.raises(
        DataError, match=r"sample 70 .* is damaged: .* Restore .* This ended the evaluation on .* none is replaced\."
    ) as caught:
        evaluation.run(_predict)
    assert str(tmp_path) in str(caught.value)


def test_it_can_run_again(dataset: Dataset, expected: dict[str, float]) -> None:
    evaluation = _evaluation(dataset)
    assert evaluation.run(_predict) == evaluation.run(_predict) == expected


def test_a_model_with_too_few_outputs_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"10 classes and the model 4 outputs; set objective\.num_classes to 10"):
        _evaluation(dataset).run(lambda batch: _predict(batch)[:, :4])


@pytest.mark.parametrize("label", [b"1 2", b""])
def test_a_data_set_with_several_labels_is_refused_when_it_is_opened(tmp_path: Path, label: bytes) -> None:
    picture = png_bytes(np.zeros((8, 8), np.uint8))
    dataset = pack(tmp_path, [{"cls": text, "png": picture} for text in (b"1", b"7", label)], samples_per_shard=3)
    with pytest.raises(DataError, match=r"train-00000\.tar: .* accuracy can be measured only on a set with one class per image") as caught:
        _evaluation(dataset)
    assert "\n" not in str(caught.value)


def test_labels_of_a_foreign_set_are_read_from_its_json(tmp_path: Path) -> None:
    picture = png_bytes(np.zeros((8, 8), np.uint8))
    dataset = pack(tmp_path, [{"json": json.dumps({"y": i % 3}).encode(), "png": picture} for i in range(9)], samples_per_shard=9)
    config = ClassificationConfig.model_validate({"path": str(tmp_path), "labels": {"member": "json", "field": "y"}})
    evaluation = ClassificationEval(config, dataset=dataset, model=MODEL, ranks=Ranks(rank=0, world_size=1))
    values = evaluation.run(lambda batch: torch.eye(NUM_CLASSES)[torch.ones(len(batch["image"]), dtype=torch.int64)])
    assert values["top1"] == pytest.approx(1 / 3)


def test_a_data_set_without_classes_is_refused(dataset: Dataset) -> None:
    unlabelled = dataclasses.replace(dataset, manifest=dataset.manifest.model_copy(update={"classes": None}))
    with pytest.raises(DataError, match="has no classes"):
        _evaluation(unlabelled)


def test_labels_beyond_the_manifests_classes_are_refused(tmp_path: Path) -> None:

    samples = [{"cls": label.encode(), "png": png_bytes(np.zeros((8, 8), dtype=np.uint8))} for label in ("3", "10")]
    with pytest.raises(DataError, match="1 samples have a label beyond the 10 classes"):
        _evaluation(pack(tmp_path, samples, samples_per_shard=2)).run(_predict)


def test_the_images_are_those_of_the_configured_transform(dataset: Dataset) -> None:
    shapes = []
    config = ClassificationConfig(path="x", crop_fraction=0.5, resize="shorter_side", interpolation="bicubic")
    evaluation = ClassificationEval(config, dataset=dataset, model=MODEL.model_copy(update={"image_size": 12}), ranks=Ranks())
    transform = evaluation._transform
    assert (transform.crop_fraction, transform.resize, transform.interpolation) == (0.5, "shorter_side", "bicubic")
    evaluation.run(lambda batch: (shapes.append(tuple(batch["image"].shape[1:])), _predict({"image": batch["image"][..., :8, :8]}))[1])
    assert set(shapes) == {(1, 12, 12)}


def test_no_setting_of_an_evaluation_binds_a_run() -> None:
    fields = {name: field for name, field in ClassificationConfig.model_fields.items() if name != "kind"}
    assert all(is_operational(field) for field in fields.values())
    assert all(field.description for field in fields.values())


def test_the_table_finds_the_class_by_kind() -> None:
    assert list(EVALS.items()) == [("classification", ClassificationConfig), ("spending", SpendingConfig)]
    assert issubclass(EVALS["classification"], Config)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"crop_fraction": 1.5}, {"weights": "best"}, {"every_steps": 0}, {"colour": 1}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        decode(ClassificationConfig, values=json.loads(json.dumps({"path": "x", **wrong})), source="test.yaml")
