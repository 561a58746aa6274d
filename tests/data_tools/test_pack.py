"""Packing as a whole: reproducible bytes, the global order, equality with the input through foreign readers, and failures."""

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from tests.data_tools.images import animated_webp, image_bytes, jpeg_of_size, png_of_size, rotated_jpeg, write_image_folder
from vitscale.config import DataError
from vitscale.data.dataset import open_dataset
from vitscale.data.reader import SampleReader
from vitscale_data_tools.fetch import SAMPLE_FOLDER
from vitscale_data_tools.images import ImagePolicy, Transcode
from vitscale_data_tools.options import SourceOptions
from vitscale_data_tools.pack import PackRequest, pack
from vitscale_data_tools.sources.fashion_mnist import open_fashion_mnist


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
        index = int(sample.key.removeprefix("train-"))
        assert bytes(sample.members["png"]) == split.images.read(index).image
        assert bytes(sample.members["cls"]) == split.members(index)["cls"]


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


def write_bad_images(folder: Path) -> dict[str, str]:
    """An image folder's worth of trouble; the reason of each by its path."""
    bad = {
        "ant/bomb.png": (png_of_size(60_000, 60_000), "more pixels than the limit"),
        "ant/cut.jpg": (image_bytes(0, size=(90, 70))[:-900], "truncated"),
        "ant/empty.jpg": (b"", "the file is empty"),
        "ant/huge header.jpg": (jpeg_of_size(30_000, 30_000), "more pixels than the limit"),
        "ant/text.jpg": (b"no image", "not a JPEG, PNG or WebP image"),
        "ant/gif inside.png": (image_bytes(0, file_format="GIF"), "not a JPEG, PNG or WebP image"),
    }
    for path, (data, _) in bad.items():
        (folder / path).write_bytes(data)
    (folder / "ant" / "dangling.jpg").symlink_to(folder / "none.jpg")
    return {**{path: reason for path, (_, reason) in bad.items()}, "ant/dangling.jpg": "No such file"}


def test_unusable_images_are_all_refused_at_once_and_then_skipped_without_a_second_pass(tmp_path: Path) -> None:
    files = write_image_folder(tmp_path / "in")
    bad = write_bad_images(tmp_path / "in")
    settings = {"source": "image-folder", "input": tmp_path / "in", "samples_per_shard": 2}
    with pytest.raises(
        DataError, match=r"7 of 13 images cannot be packed: ant/bomb.*and 2 more\. All are listed in .*unusable\.txt"
    ) as refusal:
        pack(request(tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()
    (listing,) = (tmp_path / "out.partial").rglob("unusable.txt")
    assert str(listing) in str(refusal.value)
    summary = pack(request(tmp_path / "out", unusable="skip", **settings))
    assert summary.num_resumed_shards == 7
    (packed,) = summary.datasets
    assert (packed.num_skipped, packed.manifest.num_samples, packed.manifest.source["skipped"]) == (7, 6, 7)
    lines = [line.split("\t") for line in (tmp_path / "out" / "skipped.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == sorted(bad)
    assert all(bad[path] in reason for path, reason in lines)
    assert sorted(labels_in_order(tmp_path / "out")) == sorted(label for label, _ in files.values())
    pack(request(tmp_path / "again", unusable="skip", **settings))
    assert digests(tmp_path / "again") == digests(tmp_path / "out")


def test_a_header_check_lets_a_cut_jpeg_through(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "in")
    (tmp_path / "in" / "ant" / "cut.jpg").write_bytes(image_bytes(0, size=(90, 70))[:-900])
    settings = {"source": "image-folder", "input": tmp_path / "in"}
    with pytest.raises(DataError, match=r"1 of 7 images cannot be packed: ant/cut\.jpg \(.*truncated.*\)\. Repair"):
        pack(request(tmp_path / "a", **settings))
    assert pack(request(tmp_path / "b", **settings, policy=ImagePolicy(check="header"))).datasets[0].manifest.num_samples == 7


def test_odd_images_are_kept_counted_and_named_by_their_bytes(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "in")
    (tmp_path / "in" / "cat" / "turned.jpg").write_bytes(rotated_jpeg(3, orientation=8))
    (tmp_path / "in" / "cat" / "moves.webp").write_bytes(animated_webp())
    (packed,) = pack(request(tmp_path / "out", source="image-folder", input=tmp_path / "in")).datasets
    assert packed.traits == {"animated": 1, "misnamed": 1, "rotated": 1}


def test_transcoding_makes_jpegs_of_all(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "in")
    policy = ImagePolicy(transcode=Transcode(quality=80, max_short_side=16))
    for name, workers in {"a": 1, "b": 2}.items():
        pack(request(tmp_path / name, source="image-folder", input=tmp_path / "in", policy=policy, samples_per_shard=2), workers=workers)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    manifest = open_dataset(tmp_path / "a").manifest
    assert manifest.members == ("cls", "jpg")
    assert {"transcode": "jpeg", "quality": 80, "max_short_side": 16}.items() <= manifest.source.items()
    assert str(manifest.source["encoder"]).startswith("simplejpeg ")


def test_a_source_without_labels_has_no_cls_and_captions_are_txt(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(image_bytes(0))
    (tmp_path / "in" / "t.csv").write_text("file,words\na.jpg,ein Bär\n")
    options = SourceOptions(image_column="file", caption_column="words")
    table = request(tmp_path / "out", source="table", input=tmp_path / "in" / "t.csv", source_options=options)
    (packed,) = pack(table).datasets
    assert (packed.manifest.classes, packed.manifest.members) == (None, ("jpg", "txt"))
    (sample,) = SampleReader(open_dataset(tmp_path / "out")).read(0, 1)
    assert bytes(sample.members["txt"]).decode() == "ein Bär"


def test_several_classes_per_sample(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.jpg").write_bytes(image_bytes(0))
    (tmp_path / "in" / "t.csv").write_text("file,tags\na.jpg,sea;sun\nb.jpg,\n")
    options = SourceOptions(image_column="file", labels_column="tags")
    pack(request(tmp_path / "out", source="table", input=tmp_path / "in" / "t.csv", source_options=options, order="source"))
    samples = SampleReader(open_dataset(tmp_path / "out")).read(0, 2)
    assert [bytes(sample.members["cls"]) for sample in samples] == [b"0 1", b""]


def test_validation_and_removals_together(tmp_path: Path) -> None:
    (tmp_path / "remove.txt").write_text("train-000000003\ntrain image 7\n")
    summary = pack(request(tmp_path / "out", split="train", val_per_class=5, exclude=tmp_path / "remove.txt"))
    assert [(packed.path.name, packed.manifest.num_samples) for packed in summary.datasets] == [("train", 748), ("val", 50)]
    val = open_dataset(tmp_path / "out" / "val")
    assert (val.manifest.split, val.shards[0].name) == ("val", "val-00000.tar")
    assert val.manifest.source == {"kind": "fashion-mnist", "order": "shuffled", "seed": 0, "excluded": 2, "val_per_class": 5}
    keys = [sample.key for name in ("train", "val") for sample in SampleReader(open_dataset(tmp_path / "out" / name)).read(0, 50)]
    assert len(set(keys)) == 100
    assert not {"train-000000003", "train-000000007"} & set(keys)


def test_nothing_that_can_be_packed(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "1.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"not one image of the source can be packed, for example a/1\.jpg \(not a JPEG"):
        pack(request(tmp_path / "out", source="image-folder", input=tmp_path / "in", unusable="skip"))


def test_an_interrupted_pack_goes_on(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done >= 500:
            raise KeyboardInterrupt

    settings = {"samples_per_shard": 100}
    with pytest.raises(KeyboardInterrupt):
        pack(request(tmp_path / "out", **settings), report=interrupt)
    assert not (tmp_path / "out").exists()
    told: list[int] = []
    summary = pack(request(tmp_path / "out", **settings), report=told.append)
    assert (summary.num_resumed_shards, summary.has_discarded_others) == (5, False)
    assert told[0] == 500
    assert told[-1] == 1000
    pack(request(tmp_path / "undisturbed", **settings))
    assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("change", ["seed", "input"])
def test_another_plan_does_not_go_on(tmp_path: Path, change: str) -> None:
    def interrupt(done: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    write_image_folder(tmp_path / "in")
    settings = {"source": "image-folder", "input": tmp_path / "in", "samples_per_shard": 2}
    with pytest.raises(KeyboardInterrupt):
        pack(request(tmp_path / "out", **settings), report=interrupt)
    if change == "input":  # the same number of bytes, in the same file
        path = tmp_path / "in" / "ant" / "1.jpg"
        path.write_bytes(path.read_bytes()[::-1])
        with pytest.raises(DataError, match="1 of 6 images cannot be packed"):
            pack(request(tmp_path / "out", **settings))
    else:
        summary = pack(request(tmp_path / "out", seed=1, **settings))
        assert (summary.num_resumed_shards, summary.has_discarded_others) == (0, True)


def test_a_killed_worker_is_reported_and_the_next_attempt_goes_on(tmp_path: Path) -> None:
    def kill_workers(_: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(DataError, match=r"a working process was killed.*fewer --workers.*goes on"):
        pack(request(tmp_path / "out", samples_per_shard=100), workers=2, report=kill_workers)
    assert not (tmp_path / "out").exists()
    assert pack(request(tmp_path / "out", samples_per_shard=100)).datasets[0].manifest.num_samples == 800


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


@pytest.mark.dist
def test_killed_at_ten_moments_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 of the whole process group, each time a random moment after some more shards were whole."""
    photos = [image_bytes(number, size=(300, 200)) for number in range(6)]
    for number in range(220):
        (tmp_path / "in" / f"class{number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"class{number % 3}" / f"{number}.jpg").write_bytes(photos[number % len(photos)])
    policy = ImagePolicy(transcode=Transcode(max_short_side=100))
    pack(request(tmp_path / "whole", source="image-folder", input=tmp_path / "in", policy=policy, samples_per_shard=4))
    command = [sys.executable, "-m", "vitscale_data_tools", "pack", "image-folder", str(tmp_path / "in"), str(tmp_path / "out")]
    command += ["--transcode", "jpeg", "--max-short-side", "100", "--samples-per-shard", "4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    moments = random.Random(0)
    for attempt in range(10):
        workers = "2" if attempt % 5 == 0 else "1"
        process = subprocess.Popen([*command, "--workers", workers], env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
        while num_whole(tmp_path) < 5 * attempt + moments.randint(0, 4) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.02))
        assert process.poll() is None, "it ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out").exists()
    assert num_whole(tmp_path) >= 45
    finished = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "shards kept from an interrupted pack" in finished.stdout
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def num_whole(folder: Path) -> int:
    """Shards that attempts at `folder`/out have recorded as whole."""
    return len(list((folder / "out.partial").glob("*/records/*.json")))


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
