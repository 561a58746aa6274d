"""The plan: sizes of shards, the global order, requests that make no sense, and what makes two plans the same."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data_tools.foreign import photo_samples, write_tar
from tests.data_tools.images import image_bytes, write_image_folder
from vitscale.config import DataError, UsageError
from vitscale_data_tools.fetch import SAMPLE_FOLDER
from vitscale_data_tools.images import ImagePolicy, Transcode
from vitscale_data_tools.options import SourceOptions
from vitscale_data_tools.pack import pack
from vitscale_data_tools.plan import PackRequest, absolute, plan_pack
from vitscale_data_tools.sources import SOURCES, Source
from vitscale_data_tools.sources.fashion_mnist import open_fashion_mnist


def request(output: Path, **changes: Any) -> PackRequest:
    return PackRequest(**{"source": "fashion-mnist", "input": SAMPLE_FOLDER, "output": output, **changes})


def test_shards_are_of_about_equal_size_below_the_limit(tmp_path: Path) -> None:
    train = plan_pack(request(tmp_path / "out", shard_mebibytes=1)).datasets[0]
    assert sorted(np.concatenate(train.shards).tolist()) == list(range(800))
    assert [len(shard) for shard in train.shards] == [400, 400]  # 800 samples of 2560 bytes
    summary = pack(request(tmp_path / "out", shard_mebibytes=1))
    assert [shard.bytes for shard in summary.datasets[0].manifest.shards] == [400 * 2560 + 1024] * 2
    assert train.num_bytes == 2 * (400 * 2560 + 1024)


def test_a_sample_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(image_bytes(number, file_format="PNG", size=(700, 700)))
    plan = plan_pack(request(tmp_path / "out", source="image-folder", input=tmp_path / "in", shard_mebibytes=1))
    assert [len(shard) for shard in plan.datasets[0].shards] == [1, 1, 1]


@pytest.mark.parametrize("name", ["../up", "/somewhere", "..", "a/b", "", ".hidden"])
def test_the_name_of_a_split_never_leads_out_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Names of splits come from files that somebody else may have written."""
    splits = [replace(open_fashion_mnist(SAMPLE_FOLDER)[1], name=name)]
    monkeypatch.setitem(SOURCES, "idx", Source(open=lambda *_: splits))
    with pytest.raises(DataError, match="which names no folder"):
        plan_pack(request(tmp_path / "out", source="idx"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "imagenet"}, "unknown source 'imagenet'. Known: fashion-mnist, image-folder"),
        ({"samples_per_shard": 5, "shard_mebibytes": 5}, "both set the size"),
        ({"samples_per_shard": 0}, "at least 1"),
        ({"split": "val"}, "--split val: .* has train, test"),
        ({"source_options": SourceOptions(label_column="a")}, "--label-column has no meaning for the source fashion-mnist"),
        ({"val_fraction": 0.1, "val_per_class": 3}, "both choose the validation split"),
        ({"val_fraction": 1.5}, "--val-fraction 1.5: must lie between 0 and 1"),
        ({"val_fraction": 0.1}, "has the splits train, test: say with --split which"),
        ({"policy": ImagePolicy(transcode=Transcode(quality=0))}, "--quality 0"),
        ({"output": SAMPLE_FOLDER / "out"}, "lies inside the input folder"),
    ],
)
def test_requests_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_pack(request(changes.pop("output", tmp_path / "out"), **changes))
    assert list(tmp_path.iterdir()) == []


def test_an_image_folder_has_no_splits(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "in")
    with pytest.raises(UsageError, match="has no splits"):
        pack(request(tmp_path / "out", source="image-folder", input=tmp_path / "in", split="train"))


def test_what_is_left_out_does_not_change_the_order_of_the_rest(tmp_path: Path) -> None:
    (tmp_path / "remove.txt").write_text("".join(f"train image {number}\n" for number in range(0, 800, 3)))
    whole = plan_pack(request(tmp_path / "out", split="train")).datasets[0]
    part = plan_pack(request(tmp_path / "out", split="train", exclude=tmp_path / "remove.txt")).datasets[0]
    order = whole.split.numbers[np.concatenate(whole.shards)]
    assert part.split.numbers[np.concatenate(part.shards)].tolist() == [number for number in order.tolist() if number % 3]


def test_how_samples_are_spread_over_tars_does_not_change_their_order(tmp_path: Path) -> None:
    samples = photo_samples(12)
    for name, sizes in {"one": [12], "three": [5, 1, 6], "turned": [12]}.items():
        keys = sorted(samples, reverse=name == "turned")
        for number, size in enumerate(sizes):
            write_tar(tmp_path / name / f"{number}.tar", {key: samples[key] for key in keys[:size]})
            keys = keys[size:]
    orders = []
    for name in ("one", "three", "turned"):
        plan = plan_pack(request(tmp_path / "out", source="tars", input=tmp_path / name)).datasets[0]
        assert plan.split.keys is not None
        orders.append([plan.split.keys[index] for shard in plan.shards for index in shard])
    assert orders[1:] == orders[:1] * 2
    assert sorted(samples) == sorted(orders[0]) != orders[0]


def test_nothing_left_to_pack(tmp_path: Path) -> None:
    (tmp_path / "remove.txt").write_text("".join(f"test image {number}\n" for number in range(200)))
    with pytest.raises(DataError, match="not one sample is left to pack"):
        plan_pack(request(tmp_path / "out", split="test", exclude=tmp_path / "remove.txt"))


def test_notes_of_all_splits_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "remove.txt").write_text("nobody\n")
    plan = plan_pack(request(tmp_path / "out", exclude=tmp_path / "remove.txt"))
    assert plan.notes == (f"{tmp_path}/remove.txt: 1 of 1 lines name no sample here",)


CHANGES: list[dict[str, Any]] = [
    {"seed": 1},
    {"order": "source"},
    {"split": "train"},
    {"samples_per_shard": 50},
    {"policy": ImagePolicy(transcode=Transcode())},
    {"policy": ImagePolicy(transcode=Transcode(quality=80))},
    {"policy": ImagePolicy(transcode=Transcode(max_short_side=9))},
    {"policy": ImagePolicy(transcode=Transcode(max_side=9))},
    {"policy": ImagePolicy(check="header")},
    {"source": "idx"},
    {"split": "train", "val_fraction": 0.1},
]


def test_plans_that_write_other_bytes_have_other_digests(tmp_path: Path) -> None:
    digests = {plan_pack(request(tmp_path / "out", **changes)).digest() for changes in ({}, *CHANGES)}
    assert len(digests) == 1 + len(CHANGES)


def test_what_does_not_change_a_byte_does_not_change_the_digest(tmp_path: Path) -> None:
    digests = {plan_pack(request(tmp_path / name, unusable=unusable)).digest() for name, unusable in {"a": "refuse", "b": "skip"}.items()}
    assert len(digests) == 1


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "in")
    made = absolute(
        PackRequest(source="table", input=Path("in/t.csv"), output=Path("out"), source_options=SourceOptions(image_root=Path("r")))
    )
    assert (made.input, made.output, made.source_options.image_root) == (tmp_path / "in/t.csv", tmp_path / "out", tmp_path / "r")


@pytest.mark.parametrize("source", ["image-folder", "table", "tars", "idx"])
def test_a_plan_of_relative_paths_is_that_of_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """So that either command goes on where the other was interrupted."""
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "photos")
    (tmp_path / "t.csv").write_text("file\nphotos/ant/1.jpg\n")
    pack(request(tmp_path / "tars", split="test"))
    inputs = {"image-folder": "photos", "table": "t.csv", "tars": "tars", "idx": os.path.relpath(SAMPLE_FOLDER)}
    options = SourceOptions(image_column="file") if source == "table" else SourceOptions()
    relative = PackRequest(source=source, input=Path(inputs[source]), output=Path("out"), source_options=options)
    assert plan_pack(relative).digest() == plan_pack(absolute(relative)).digest()
