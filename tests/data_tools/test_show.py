"""Which samples are drawn, what their tiles say, and that damage is drawn instead of raised."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.packed import pack, pack_images
from tests.data_tools.test_fingerprints import png
from tests.data_tools.test_perceptual_hash import picture
from vitscale.data.dataset import Dataset, open_dataset
from vitscale.data.reader import SampleReader
from vitscale.data.types import RawSample
from vitscale_data_tools.show import draw_samples, random_samples, sample_tiles


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_images(tmp_path_factory.mktemp("d"), num_samples=23, samples_per_shard=9)


@given(num=st.integers(1, 40), seed=st.integers(0, 1000))
def test_different_samples_the_same_for_the_same_seed(dataset: Dataset, num: int, seed: int) -> None:
    chosen = random_samples(dataset, num=num, seed=seed)
    assert chosen == sorted(set(chosen)) == random_samples(dataset, num=num, seed=seed)
    assert len(chosen) == min(num, 23)
    assert all(0 <= sample_id < 23 for sample_id in chosen)


def test_every_sample_has_the_same_chance(dataset: Dataset) -> None:
    counts = Counter(sample_id for seed in range(1500) for sample_id in random_samples(dataset, num=5, seed=seed))
    expected = 1500 * 5 / 23
    assert sum((counts[sample_id] - expected) ** 2 / expected for sample_id in range(23)) < 48  # chi squared, p = 0.001, 22 degrees


def captions(dataset: Dataset, *, views: object = None) -> list[list[str]]:
    task = partial(sample_tiles, reader=SampleReader(dataset), classes=dataset.classes, views=views)  # type: ignore[arg-type]
    return [[tile.caption for tile in task(sample_id, lambda _: None)] for sample_id in range(dataset.num_samples)]


def two_views(sample: RawSample) -> list[np.ndarray]:
    return [np.full((9, 9, 1), sample.sample_id, np.uint8)] * 2


def test_labels_captions_and_what_cannot_be_shown(tmp_path: Path) -> None:
    image = png(picture(0))
    samples = [
        {"png": image, "cls": b"3"},
        {"png": image, "cls": b"1 30", "txt": " a photo\nof a cat ü".encode()},
        {"png": b"broken", "cls": b"2"},
        {"txt": b"only words"},
        {"png": image},
    ]
    dataset = pack(tmp_path, samples, samples_per_shard=5)
    raw = bytearray((tmp_path / "train-00000.tar").read_bytes())
    raw[int(dataset.read_index(dataset.shards[0])[4]["offset"]) + 600] ^= 1
    (tmp_path / "train-00000.tar").write_bytes(raw)
    dataset = open_dataset(tmp_path)
    assert captions(dataset, views=two_views) == [
        ["3\n000000", "view 0", "view 1"],
        ["1, 30: a photo of a cat ü\n000001", "view 0", "view 1"],
        ["unreadable: 2\n000002"],
        ["no image only words\n000003"],
        ["sample 4 is damaged\ntrain-00000.tar"],
    ]


def test_a_grid_without_views_and_a_row_each_with_them(dataset: Dataset) -> None:
    progress: list[int] = []
    grid = draw_samples(dataset, sample_ids=range(10), views=None, report=progress.append)
    rows = draw_samples(dataset, sample_ids=range(10), views=two_views)
    assert progress[-1] == 10
    assert grid.size == (4 * 166 + 6, 3 * 194 + 6)
    assert rows.size == (3 * 166 + 6, 10 * 194 + 6)


@pytest.mark.dist
def test_several_processes_draw_the_same(dataset: Dataset) -> None:
    one, two = (draw_samples(dataset, sample_ids=range(6), views=two_views, workers=workers) for workers in (1, 2))
    assert np.array_equal(np.asarray(one), np.asarray(two))
