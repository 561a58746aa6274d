"""The lines that `stats` prints, for data sets with and without images, labels and names."""

from pathlib import Path

from tests.data.packed import pack, pack_images
from vitscale_data_tools.stats import measure
from vitscale_data_tools.stats_table import stats_rows


def test_images_with_labels(tmp_path: Path) -> None:
    rows = dict(stats_rows(measure(pack_images(tmp_path, num_samples=23, samples_per_shard=10))))
    assert rows["samples"].startswith("23 in 3 shards, ")
    assert rows["labels"] == "10 classes, 10 occur"
    assert rows["most frequent"] == "0 3, 1 3, 2 3, 3 2, 4 2"
    assert rows["least frequent"] == "9 2"
    assert rows["shorter side"] == "5 % below 32, half below 32, 95 % below 32"
    assert rows["width / height"] == "5 % below 1.19, half below 1.19, 95 % below 1.19"
    assert len(set(rows["mean of R, G, B"].split(", "))) == 1
    assert (rows["unreadable"], rows["duplicate keys"]) == ("none", "none")
    assert "without label" not in rows


def test_text_without_labels_and_some_damage(tmp_path: Path) -> None:
    dataset = pack(tmp_path, [{"txt": b"a"}, {"png": b"x"}, {"png": b"y"}, {"png": b"z", "cls": b"4"}], samples_per_shard=9)
    rows = dict(stats_rows(measure(dataset)))
    assert rows["most frequent"] == "4 1"
    assert rows["without label"] == "3"
    assert rows["unreadable"].startswith("3: train-00000.tar: ")
    assert rows["unreadable"].endswith(" ...")
    assert "shorter side" not in rows
