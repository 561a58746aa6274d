import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.data.packed import pack_images
from vitscale.config import ConfigError, DataError, decode
from vitscale.data.config import MixtureConfig, ShardsConfig
from vitscale.data.demand import Demand
from vitscale.data.images.transforms import AugmentConfig, TrainTransform
from vitscale.data.lanes import rank_slice
from vitscale.data.manifest import MANIFEST_NAME, decode_manifest, encode_manifest
from vitscale.data.source import MixtureData, ShardData, open_mixture, open_shards, open_training_data
from vitscale.data.types import StagedTransform
from vitscale.data.worker import TrainParts

WEIGHTS = {"large": 0.7, "middle": 0.2, "small": 0.1}
SIZES = {"large": 120, "middle": 45, "small": 40}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for name, size in SIZES.items():
        (root / name).mkdir()
        pack_images(root / name, num_samples=size, samples_per_shard=25)
    return root


def mixture_config(root: Path, **changes: object) -> MixtureConfig:
    sets = {name: {"path": str(root / name), "weight": weight} for name, weight in WEIGHTS.items()}
    values = {"kind": "mixture", "sets": sets, "lanes": 8, "block": 4, "window": 2, **changes}
    return decode(MixtureConfig, values=values, source="test.yaml")


def with_classes(root: Path, name: str, classes: tuple[str, ...] | None) -> Path:
    """A copy of a set whose manifest says other classes."""
    copy = root / f"{name}-{hash(classes)}"
    copy.mkdir()
    for file in (root / name).iterdir():
        (copy / file.name).symlink_to(file)
    manifest = decode_manifest((root / name / MANIFEST_NAME).read_bytes(), path=name)
    (copy / MANIFEST_NAME).unlink()
    (copy / MANIFEST_NAME).write_bytes(encode_manifest(manifest.model_copy(update={"classes": classes})))
    return copy


def demand(global_batch: int, *, start_samples: int = 0) -> Demand:
    return Demand(
        transform=StagedTransform(transforms=(TrainTransform(image_size=8, num_channels=1, augment=AugmentConfig()),)),
        seed=1,
        global_batch=global_batch,
        start_samples=start_samples,
        rank_slice=rank_slice(global_batch, rank=0, world_size=1),
        replaced_before={},
    )


def first_batches(parts: TrainParts, count: int) -> list[dict[str, torch.Tensor]]:
    batches = []
    stream = iter(parts)
    for _ in range(count):
        part = next(stream)
        assert part.error is None
        assert part.batch is not None
        batches.append(part.batch)
    stream.close()  # type: ignore[attr-defined]
    return batches


def test_one_packed_data_set(root: Path) -> None:
    config = ShardsConfig(path=str(root / "large"), lanes=8, block=4, window=2)
    data = open_training_data(config, seed=4)
    assert isinstance(data, ShardData)
    assert (data.epoch_samples, data.cursor_unit, len(data.classes or ())) == (120, 8, 10)
    assert data.identity() == {"manifest_sha256": data.dataset.sha256, "order": data.order.identity()}
    assert "120 samples in 5 shards" in data.notes[0]
    assert "up to 120 undecoded samples" in data.notes[0]
    batches = first_batches(data.parts(demand(16)), 9)
    assert [batch["sample_id"].tolist() for batch in batches] == [data.batch_ids(16 * i, global_batch=16) for i in range(9)]


def test_a_mixture_offers_the_same(root: Path) -> None:
    data = open_training_data(mixture_config(root), seed=4)
    assert isinstance(data, MixtureData)
    assert (data.epoch_samples, data.cursor_unit, len(data.classes or ())) == (205, 8, 10)
    batches = first_batches(data.parts(demand(40)), 25)
    assert [batch["sample_id"].tolist() for batch in batches] == [data.batch_ids(40 * i, global_batch=40) for i in range(25)]
    starts = {"large": range(120), "middle": range(120, 165), "small": range(165, 205)}
    counts = Counter(name for batch in batches for i in batch["sample_id"].tolist() for name, ids in starts.items() if i in ids)
    assert counts == {"large": 700, "middle": 200, "small": 100}
    for batch in batches:
        for sample_id, label in zip(batch["sample_id"].tolist(), batch["label"].tolist(), strict=True):
            start = max(ids.start for ids in starts.values() if ids.start <= sample_id)
            assert label == (sample_id - start) % 10


def test_what_a_mixture_is_called_in_checkpoints_is_plain_json_and_names_all_that_decides_it(root: Path) -> None:
    base = open_mixture(mixture_config(root), seed=4).identity()
    assert json.loads(json.dumps(base)) == base
    sets = {name: {"path": str(root / name), "weight": weight} for name, weight in WEIGHTS.items()}
    others = (
        mixture_config(root, block=5),
        mixture_config(root, repeats=2),
        mixture_config(root, sets=sets | {"small": {"path": str(root / "small"), "weight": 0.2}}),
        mixture_config(root, sets=sets | {"small": {"path": str(root / "middle"), "weight": 0.1}}),
        mixture_config(root, sets=dict(reversed(sets.items()))),
        mixture_config(root, sets={name.upper(): value for name, value in sets.items()}),
    )
    assert all(open_mixture(config, seed=4).identity() != base for config in others)
    assert open_mixture(mixture_config(root), seed=5).identity() != base
    assert open_mixture(mixture_config(root, num_workers=3), seed=4).identity() == base


def test_a_set_keeps_its_order_when_another_is_added(root: Path) -> None:
    sets = {name: {"path": str(root / name), "weight": 1.0} for name in WEIGHTS}
    three = open_mixture(mixture_config(root, sets=sets), seed=4)
    two = open_mixture(mixture_config(root, sets={name: sets[name] for name in ("large", "middle")}), seed=4)
    assert three.order.orders[:2] == two.order.orders
    assert three.order.starts[:2] == two.order.starts


def test_notes_tell_the_actual_shares(root: Path) -> None:
    size, *shares = open_mixture(mixture_config(root), seed=4).notes
    assert "205 samples in 9 shards" in size
    assert shares[0] == "data.sets.large: 70 of every 100 samples; one epoch of its 120 samples in 171"
    sets = {name: {"path": str(root / name), "weight": weight} for name, weight in {"large": 0.12345, "small": 0.87655}.items()}
    rounded = open_mixture(mixture_config(root, sets=sets), seed=4).notes[1]
    assert rounded.startswith("data.sets.large: 123 of every 1000 samples, rounded from 0.12345;")


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        (None, "it has no classes and not 10 classes"),
        (tuple("012"), "it has 3 classes and not 10 classes"),
        (tuple("0123x56789"), "class 4 is 'x' and not '4'"),
    ],
)
def test_sets_with_other_classes_are_not_mixed(root: Path, classes: tuple[str, ...] | None, difference: str) -> None:
    other = with_classes(root, "small", classes)
    sets = {"a": {"path": str(root / "large"), "weight": 1}, "b": {"path": str(other), "weight": 1}}
    with pytest.raises(DataError, match=f"^{other}: its classes are not those of {root / 'large'}.*: {difference}\\. Pack all"):
        open_mixture(mixture_config(root, sets=sets), seed=0)


def test_a_set_with_fewer_samples_than_lanes_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.sets\.small: data\.lanes: 44 lanes need at least as many samples, .* has 40\."):
        open_mixture(mixture_config(root, lanes=44), seed=0)


def test_a_missing_set_is_named(root: Path) -> None:
    sets = {"a": {"path": str(root / "large"), "weight": 1}, "b": {"path": str(root / "nowhere"), "weight": 1}}
    with pytest.raises(DataError, match="nowhere: no such data set folder"):
        open_mixture(mixture_config(root, sets=sets), seed=0)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"a": {"path": "x", "weight": 1}}, r"sets"),
        ({"a": {"path": "x", "weight": 1}, "b": {"path": "y", "weight": 0}}, r"sets\.b\.weight"),
        ({"a": {"path": "x", "weight": 1}, "b": {"path": "y", "weight": float("inf")}}, r"sets\.b\.weight"),
        ({"a": {"path": "x", "weight": 1}, "b": {"path": "y", "weight": 0.0001}}, r"sets: b: its share of 0\.0001 is less than 1/1000"),
        ({"a": {"path": "x", "weight": 1}, "b/c": {"path": "y", "weight": 1}}, r"sets\.b/c"),
        ({"a": {"path": "x", "weight": 1}, "b": {"path": "y"}}, r"sets\.b\.weight"),
    ],
)
def test_bad_sets_are_named(root: Path, sets: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mixture_config(root, sets=sets)


def test_shards_that_do_not_fit_the_batch_are_refused_at_once(root: Path) -> None:
    for data in (open_mixture(mixture_config(root), seed=0), open_shards(ShardsConfig(path=str(root / "large"), lanes=8), seed=0)):
        with pytest.raises(ConfigError, match=r"train\.global_batch: 12 is not a multiple of data\.lanes 8"):
            data.parts(demand(12))


def test_where_the_data_lies_for_messages(root: Path) -> None:
    assert mixture_config(root).shown == ", ".join(str(root / name) for name in WEIGHTS)
