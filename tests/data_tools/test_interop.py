"""Nobody is locked in: webdataset's own reader reads what `pack` writes, and so do `index` and our reader what webdataset writes."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import webdataset

from tests.data_tools.images import image_bytes, write_image_folder
from vitscale.config import DataError
from vitscale.data.dataset import Dataset, open_dataset
from vitscale.data.reader import SampleReader
from vitscale_data_tools.index_dataset import IndexRequest, plan_index, write_index
from vitscale_data_tools.pack import pack
from vitscale_data_tools.plan import PackRequest

Contents = list[tuple[str, dict[str, bytes]]]


def ours(dataset: Dataset) -> Contents:
    samples = SampleReader(dataset).read(0, dataset.num_samples)
    return [(sample.key, {name: bytes(view) for name, view in sample.members.items()}) for sample in samples]


def theirs(dataset: Dataset) -> Contents:
    urls = [f"{dataset.storage.root}/{shard.name}" for shard in dataset.shards]
    samples = webdataset.WebDataset(urls, shardshuffle=False, handler=webdataset.reraise_exception)
    return [(sample["__key__"], {name: value for name, value in sample.items() if not name.startswith("__")}) for sample in samples]


def index(folder: Path) -> Dataset:
    write_index(plan_index(IndexRequest(source=str(folder))))
    return open_dataset(folder)


def test_webdataset_reads_what_pack_writes(tmp_path: Path) -> None:
    files = write_image_folder(tmp_path / "in")
    pack(PackRequest(source="image-folder", input=tmp_path / "in", output=tmp_path / "out", samples_per_shard=4))
    dataset = open_dataset(tmp_path / "out")
    assert ours(dataset) == theirs(dataset)
    found = [(int(members["cls"]), next(data for name, data in members.items() if name != "cls")) for _, members in theirs(dataset)]
    assert sorted(found) == sorted(files.values())


def test_tars_of_pack_indexed_anew_are_the_same_data_set(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "in")
    pack(PackRequest(source="image-folder", input=tmp_path / "in", output=tmp_path / "out", samples_per_shard=4))
    packed = open_dataset(tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        if file.suffix != ".tar":
            file.unlink()
    again = index(tmp_path / "out")
    assert again.manifest.shards == packed.manifest.shards
    assert ours(again) == theirs(again)


@pytest.mark.parametrize("compressed", [False, True])
def test_we_read_what_shard_writer_writes(tmp_path: Path, compressed: bool) -> None:
    """With its own encoders, its default clock, nested keys and several members: as its users have them."""
    images = [np.array(PIL.Image.open(io.BytesIO(image_bytes(number)))) for number in range(11)]
    pattern = str(tmp_path / ("%06d.tar.gz" if compressed else "%06d.tar"))
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for number, image in enumerate(images):
            name = "long " * 25 if number % 2 else "short"
            members = {"jpg": image, "cls": number, "json": {"id": number}, "seg.png": image, "txt": "ä"}
            writer.write({"__key__": f"train/{name}/{number}", **members})
    if compressed:
        with pytest.raises(DataError, match=r"holds no \.tar files\. Compressed tars"):
            index(tmp_path)
        return
    dataset = index(tmp_path)
    assert ours(dataset) == theirs(dataset)
    assert dataset.num_samples == 11
    assert dataset.manifest.members == ("cls", "jpg", "json", "seg.png", "txt")
    assert [json.loads(members["json"])["id"] for _, members in ours(dataset)] == list(range(11))
    assert dataset.num_classes == 11


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg", "b.jpg", "a.cls", "b.cls"], "the members of sample a are not neighbours"),
        (["a.jpg", "a.cls", "b.cls", "a.txt"], "the members of sample a are not neighbours"),
        (["a.jpg", "a.cls", "a.jpg"], "sample a has two members .jpg"),
    ],
)
def test_what_webdataset_reads_wrongly_is_refused_by_name(tmp_path: Path, names: list[str], message: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match=message):
        index(tmp_path)
