"""Every figure against a plain computation in numpy, the same for any number of workers, and damage counted instead of raised."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.packed import pack
from tests.data_tools.foreign import write_tar
from tests.data_tools.test_fingerprints import png
from vitscale.data.dataset import open_dataset
from vitscale_data_tools import stats as module
from vitscale_data_tools.index_dataset import IndexRequest, plan_index, write_index
from vitscale_data_tools.stats import (
    ASPECT_EDGES,
    BYTE_EDGES,
    SIDE_EDGES,
    Counts,
    Stats,
    as_json,
    measure,
    moments,
    quantile_edge,
    write_json,
)

SIZES = [(30, 40), (40, 30), (33, 33), (64, 16), (16, 90), (31, 31), (32, 32)]


def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in SIZES]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Stats:
    folder = tmp_path_factory.mktemp("d")
    dataset = pack(folder, [{"png": png(image), "cls": b"%d" % (number % 3)} for number, image in enumerate(images())], samples_per_shard=3)
    progress: list[int] = []
    stats = measure(dataset, report=progress.append)
    assert progress[-1] == len(SIZES)
    return stats


def test_mean_and_std_are_those_of_all_pixels(measured: Stats) -> None:
    pixels = np.concatenate([image.reshape(-1, 3) for image in images()]).astype(np.float64) / 255
    assert measured.mean == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    assert measured.std == pytest.approx(pixels.std(axis=0), rel=1e-12)


@given(st.lists(st.integers(0, 255), min_size=1))
def test_moments(values: list[int]) -> None:
    histogram = np.bincount(values, minlength=256).tolist()
    mean, std = moments(histogram)
    assert mean == pytest.approx(np.mean(values) / 255, abs=1e-12)
    assert std == pytest.approx(np.std(values) / 255, abs=1e-12)


def test_moments_of_more_pixels_than_floats_count() -> None:
    """JFT has 10**15 pixels; sums of their squares are far beyond 2**53."""
    histogram = [0] * 256
    histogram[100], histogram[101] = 10**15, 10**15
    assert moments(histogram) == (100.5 / 255, 0.5 / 255)
    assert moments([0] * 256) == (0.0, 0.0)


def test_histograms_are_those_of_numpy(measured: Stats) -> None:
    values = as_json(measured)

    def expected(numbers: list[float], edges: tuple[float, ...]) -> list[int]:
        return np.histogram(numbers, [-np.inf, *edges, np.inf])[0].tolist()

    heights, widths = np.array(SIZES).T
    assert values["short_side"] == {"edges": list(SIDE_EDGES), "counts": expected(np.minimum(heights, widths).tolist(), SIDE_EDGES)}
    assert values["aspect_ratio"] == {"edges": list(ASPECT_EDGES), "counts": expected((widths / heights).tolist(), ASPECT_EDGES)}
    sizes = [len(png(image)) + 1 for image in images()]
    assert values["bytes_per_sample"] == {"edges": list(BYTE_EDGES), "counts": expected([float(size) for size in sizes], BYTE_EDGES)}
    assert values["measured"] == {"samples": 7, "images": 7, "member_bytes": sum(sizes)}
    assert values["labels"] == {"0": 3, "1": 2, "2": 2}


@pytest.mark.dist
def test_any_number_of_workers_counts_the_same(measured: Stats, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.parts
    monkeypatch.setattr(module, "parts", lambda dataset: original(dataset, samples_per_part=2))
    assert as_json(measure(measured.dataset, workers=2)) == as_json(measured)


def test_a_share_of_the_samples(measured: Stats) -> None:
    stats = measure(measured.dataset, fraction=0.4)
    assert 0 < stats.counts.num_samples < 7
    assert as_json(stats) == as_json(measure(measured.dataset, fraction=0.4))


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    samples = [
        {"png": png(images()[0]), "cls": b"1"},
        {"png": b"no image", "cls": b"1"},
        {"txt": b"caption only"},
        {"png": png(images()[1])},
    ]
    pack(tmp_path, samples, samples_per_shard=2)
    raw = bytearray((tmp_path / "train-00001.tar").read_bytes())
    raw[-2000] ^= 1
    (tmp_path / "train-00001.tar").write_bytes(raw)
    stats = measure(open_dataset(tmp_path))
    assert (stats.counts.num_samples, stats.counts.num_images, stats.counts.num_labelled) == (3, 1, 2)
    assert ["'000001'" in stats.unreadable[0], "sample 3 " in stats.unreadable[1]] == [True, True]
    assert stats.counts.num_unreadable == 2


def test_several_labels_count_each(tmp_path: Path) -> None:
    dataset = pack(tmp_path, [{"cls": b"1 12"}, {"cls": b""}, {"cls": b" 12\n"}, {"cls": b"big cat"}], samples_per_shard=9)
    stats = measure(dataset)
    assert dict(stats.counts.labels) == {"1": 1, "12": 2, "big cat": 1}
    assert stats.counts.num_labelled == 4


def test_duplicate_keys_are_named(tmp_path: Path) -> None:
    for name, keys in (("a", ["x", "y"]), ("b", ["z", "x"])):
        write_tar(tmp_path / f"{name}.tar", {key: {"txt": name.encode()} for key in keys})
    write_index(plan_index(IndexRequest(source=str(tmp_path), allow_duplicate_keys=True)))
    stats = measure(open_dataset(tmp_path))
    assert (stats.num_duplicate_keys, stats.duplicate_keys) == (1, ("'x' in a.tar and b.tar",))


def test_counts_add_up() -> None:
    one, two = Counts(num_samples=1, num_bytes=5), Counts(num_samples=2, num_bytes=7)
    one.labels["a"], two.labels["a"] = 1, 2
    two.add_unreadable(7, "x")
    two.pixel_values[0, 3] = 9
    one.add(two)
    assert (one.num_samples, one.num_bytes, one.labels["a"], one.pixel_values[0, 3]) == (3, 12, 3, 9)
    assert (one.num_unreadable, one.unreadable) == (1, [(7, "x")])


def test_of_many_unreadable_samples_the_first_are_named(tmp_path: Path) -> None:
    dataset = pack(tmp_path, [{"png": b"no image"}] * 30, samples_per_shard=30)
    stats = measure(dataset)
    assert stats.counts.num_unreadable == 30
    assert [sentence.split("'")[1] for sentence in stats.unreadable] == [f"{number:06d}" for number in range(5)]


def test_quantiles_by_edges() -> None:
    histogram = Counts().byte_histogram
    histogram.update({0: 1, 1: 8, 2: 1})
    assert [quantile_edge(histogram, [10, 20, 30], share) for share in (0.1, 0.5, 0.95, 1.0)] == [10, 20, 30, 30]
    assert quantile_edge(histogram, [10], 1.0) == 10


def test_json_is_readable(measured: Stats, tmp_path: Path) -> None:
    write_json(measured, tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["num_samples"] == 7
