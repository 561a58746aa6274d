"""Packing as a whole: reproducible bytes, the global order, equality with the input through foreign readers, and failures."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from tests.data_tools.images import image_bytes, write_image_folder
from vitscale.config import DataError, UsageError
from vitscale.data.dataset import open_dataset
from vitscale.data.reader import SampleReader
from vitscale_data_tools.fashion_mnist import open_fashion_mnist
from vitscale_data_tools.fetch import SAMPLE_FOLDER
from vitscale_data_tools.pack import PackRequest, pack, plan_pack


def request(output: Path, **changes: Any) -> PackRequest:
    return PackRequest(**{"source": "fashion-mnist", "input": SAMPLE_FOLDER, "output": output, **changes})


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def labels_in_order(folder: Path) -> list[int]:
    dataset = open_dataset(folder)
    return [int(bytes(sample.members["cls"])) for sample in SampleReader(dataset).read(0, dataset.num_samples)]


def test_both_splits_of_fashion_mnist(tmp_path: Path) -> None:
    summary = pack(request(tmp_path / "out"))
    assert [(packed.path.name, packed.manifest.num_samples) for packed in summary.datasets] == [("train", 800), ("test", 200)]
    train = open_dataset(tmp_path / "out" / "train")
    assert train.manifest.split == "train"
    assert train.manifest.members == ("cls", "png")
    assert train.manifest.source == {"kind": "fashion-mnist", "order": "shuffled", "seed": 0}
    split = open_fashion_mnist(SAMPLE_FOLDER)[0]
    for sample in SampleReader(train).read(0, 800):
        expected = split.read(int(sample.key.removeprefix("train-")))
        assert bytes(sample.members["png"]) == expected.image
        assert int(bytes(sample.members["cls"])) == expected.label


def test_webdataset_reads_an_image_folder_back(tmp_path: Path) -> None:
    files = write_image_folder(tmp_path / "in")
    (packed,) = pack(request(tmp_path / "out", source="image-folder", input=tmp_path / "in", samples_per_shard=4)).datasets
    assert packed.path == tmp_path / "out"
    assert packed.manifest.classes == ("ant", "bee (wild)", "cat")
    assert packed.manifest.members == ("cls", "jpg", "png", "webp")
    urls = [str(packed.path / shard.name) for shard in packed.manifest.shards]
    read = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        image = next(sample[extension] for extension in ("jpg", "png", "webp") if extension in sample)
        read[sample["__key__"]] = (int(sample["cls"]), image)
    assert read == {f"{i:09d}": files[path] for i, path in enumerate(sorted(files))}


@pytest.mark.parametrize("workers", [1, 2])
def test_same_input_same_bytes_and_progress_reaches_the_total(tmp_path: Path, workers: int) -> None:
    told: list[int] = []
    pack(request(tmp_path / "a", samples_per_shard=170))
    pack(request(tmp_path / "b", samples_per_shard=170), workers=workers, report=told.append)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 2 * (5 + 2) + 2
    assert told == sorted(told)
    assert told[-1] == 1000


GOLDEN_TAR = "b020ddcc4318b5c7bcd31440549622afe12c0de29e7591b3bda812fe528503fd"


def test_the_bytes_of_a_release_stay(tmp_path: Path) -> None:
    """Golden: whoever changes them breaks everybody's data set identity, and raises the format's version."""
    pack(request(tmp_path / "out", split="test"))
    assert hashlib.sha256((tmp_path / "out" / "test-00000.tar").read_bytes()).hexdigest() == GOLDEN_TAR


def test_the_order_is_global_and_depends_on_the_seed(tmp_path: Path) -> None:
    """A class-sorted input becomes a mixture: in every stretch of 60, labels differ about as in a random draw."""
    folder = tmp_path / "in"
    data = image_bytes(0, file_format="PNG", size=(2, 2))
    for label in range(6):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(60):
            (folder / f"class{label}" / f"{number}.png").write_bytes(data)
    for name, changes in {"a": {}, "b": {"seed": 1}, "sorted": {"order": "source"}}.items():
        pack(request(tmp_path / name, source="image-folder", input=folder, samples_per_shard=60, **changes))
    a, b, in_order = (labels_in_order(tmp_path / name) for name in ("a", "b", "sorted"))
    assert in_order == sorted(a) == sorted(b)
    assert a != b
    for start in range(0, 360, 60):
        assert np.bincount(a[start : start + 60], minlength=6).min() >= 2
    assert open_dataset(tmp_path / "sorted").manifest.source == {"kind": "image-folder", "order": "source"}


def test_one_split_is_the_output_itself(tmp_path: Path) -> None:
    pack(request(tmp_path / "out", split="test"))
    assert open_dataset(tmp_path / "out").num_samples == 200


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "imagenet"}, "unknown source 'imagenet'. Known: fashion-mnist, image-folder"),
        ({"samples_per_shard": 5, "shard_mebibytes": 5}, "both set the size"),
        ({"samples_per_shard": 0}, "at least 1"),
        ({"split": "val"}, "--split val: .* has train, test"),
        ({"output": SAMPLE_FOLDER / "out"}, "lies inside the input folder"),
    ],
)
def test_requests_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pack(request(changes.pop("output", tmp_path / "out"), **changes))
    assert list(tmp_path.iterdir()) == []


def test_an_image_folder_has_no_splits(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "in")
    with pytest.raises(UsageError, match="has no splits"):
        pack(request(tmp_path / "out", source="image-folder", input=tmp_path / "in", split="train"))


def test_unusable_images_are_counted_over_all_shards_and_nothing_is_written(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "in")
    for number in range(9):
        (tmp_path / "in" / "ant" / f"bad{number}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"9 of 15 images cannot be packed: ant/bad.*\(not a JPEG.* and 4 more\. Repair"):
        pack(request(tmp_path / "out", source="image-folder", input=tmp_path / "in", samples_per_shard=2))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_interrupted_pack_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(request(tmp_path / "out"), report=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_reported_and_nothing_is_left(tmp_path: Path) -> None:
    def kill_workers(_: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(DataError, match=r"a packing process was killed.*fewer --workers"):
        pack(request(tmp_path / "out", samples_per_shard=100), workers=2, report=kill_workers)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from vitscale_data_tools.pack import PackRequest, pack

def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    source, output = map(Path, sys.argv[1:])
    pack(PackRequest(source="fashion-mnist", input=source, output=output, samples_per_shard=100), workers=2, report=kill)
"""


def test_a_killed_pack_leaves_no_processes(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py"), str(SAMPLE_FOLDER), str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        # The workers hold its other end: the pipe ends with the last of them.
        process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
