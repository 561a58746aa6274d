"""Tars of others: names, dialects, labels of each kind, and every way in which they can be damaged."""

import io
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import webdataset

from tests.data_tools.images import image_bytes
from vitscale.config import DataError
from vitscale_data_tools.fetch import SAMPLE_FOLDER
from vitscale_data_tools.pack import PackRequest, pack
from vitscale_data_tools.sources.tars import open_tars
from vitscale_data_tools.split import Split, UnusableImageError

JPEG = image_bytes(0)


def write_tar(path: Path, members: list[tuple[str, bytes]], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, *, label: str | None = "0", image: bytes = JPEG) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image), *([] if label is None else [(f"{key}.cls", label.encode())])]


def opened(path: Path) -> Split:
    (split,) = open_tars(path)
    return split


def keys(split: Split) -> list[str]:
    return [split.key(index) for index in range(split.num_samples)]


def test_tars_of_webdatasets_own_writer(tmp_path: Path) -> None:
    images = [image_bytes(number) for number in range(5)]
    with webdataset.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=2, verbose=0) as writer:
        for number, image in enumerate(images):
            writer.write({"__key__": f"k{number}", "jpg": image, "cls": number % 3, "json": {"n": number}, "txt": f"text {number}"})
    split = opened(tmp_path)
    assert keys(split) == [split.images.origin(i) for i in range(5)] == [f"k{i}" for i in range(5)]
    assert (split.classes, split.has_class_names) == (("0", "1", "2"), False)
    for index, image in enumerate(images):
        record = split.images.read(index)
        assert (record.image, record.extension) == (image, "jpg")
        assert record.members == {"json": b'{"n": %d}' % index, "txt": b"text %d" % index}
        assert split.members(index) == {"cls": b"%d" % (index % 3)}
    assert split.take(np.array([3])).images.read(0).image == images[3]


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_folders_long_names_and_dialects(tmp_path: Path, dialect: int) -> None:
    long = "n01440764/" + "x" * 80
    write_tar(tmp_path / "a.tar", [*sample("./b/one"), *sample(long), ("b/two.JPEG", JPEG), ("b/two.cls", b"3\n")], format=dialect)
    split = opened(tmp_path / "a.tar")
    assert keys(split) == ["b/one", long, "b/two"]
    assert split.images.read(2).extension == "jpg"
    assert split.members(2) == {"cls": b"3"}


def test_several_classes_none_and_no_labels_at_all(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*sample("a", label="2 0"), *sample("b", label="")])
    assert [opened(tmp_path).members(i) for i in range(2)] == [{"cls": b"0 2"}, {"cls": b""}]
    write_tar(tmp_path / "a.tar", [*sample("a", label=None), *sample("b", label=None)])
    assert (opened(tmp_path).classes, opened(tmp_path).members(0)) == (None, {})


def test_members_that_are_not_packed_are_told_and_never_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*sample("a"), ("a.pyd", b"cos\nsystem"), ("a.seg.png", b"x"), ("README", b"x"), ("a.webp", b"x")])
    split = opened(tmp_path)
    assert split.notes == ("leaving out members that are not packed: .pyd, .seg.png, .webp, without extension (README)",)
    assert split.images.read(0).members == {}


def test_a_sample_without_an_image_is_unusable(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*sample("a"), ("b.cls", b"1"), ("b.mp4", b"x")])
    with pytest.raises(UnusableImageError, match="no member jpg, jpeg, png or webp"):
        opened(tmp_path).images.read(1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*sample("a"), *sample("b"), ("a.txt", b"x")], r"a\.tar: the members of sample 'a' are not neighbours"),
        ([*sample("a"), ("a.jpg", JPEG)], "sample 'a' has two members .jpg"),
        ([*sample("a"), *sample("b", label=None)], "sample 'b' has no member .cls, while others have one"),
        (sample("a", label="dog"), "the member .cls of sample 'a' is no class index: b'dog'"),
        (sample("a", label="-1"), "-1 is no class index"),
        (sample("a", label="1" * 70_000), "has 70000 bytes: no class index"),
        ([("README", b"x")], "its tars hold no samples"),
    ],
)
def test_tars_that_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_a_key_in_two_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*sample("x"), *sample("y")])
    write_tar(tmp_path / "b.tar", sample("y"))
    with pytest.raises(DataError, match=r"b\.tar: the key 'y' is in a\.tar too"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"entry 'a\.jpg' is a link, a special or a sparse file"):
        opened(tmp_path)


def test_every_cut_is_found(tmp_path: Path) -> None:
    """Wherever a tar ends too early; only its padding, behind the first block of the end mark, may be missing."""
    whole = write_tar(tmp_path / "a.tar", [*sample("a"), *sample("b")]).read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512
    for length in [*range(0, end, 211), end - 1, end, end + 1, end + 511]:
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tar: (not a whole tar|cut short or damaged)"):
            opened(tmp_path)


def test_a_damaged_header_is_found(tmp_path: Path) -> None:
    """`tarfile` ends quietly at an invalid header that is not the first."""
    whole = bytearray(write_tar(tmp_path / "a.tar", [*sample("a"), *sample("b")]).read_bytes())
    start = bytes(whole).index(b"b.jpg")
    whole[start + 130] ^= 4
    (tmp_path / "a.tar").write_bytes(bytes(whole))
    with pytest.raises(DataError, match="cut short or damaged at byte"):
        opened(tmp_path)


@pytest.mark.parametrize(("name", "message"), [("none", "no tars"), ("a.tar.gz", "no tars"), ("text.tar", "not a whole tar")])
def test_what_is_no_tar(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "in").mkdir()
    if name != "none":
        (tmp_path / "in" / name).write_bytes(b"just some text " * 100)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "in")


def test_a_key_that_cannot_name_a_member_is_listed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "a.tar", [*sample("fine"), *sample("../up"), *sample("x" * 97), *sample("ü")])
    request = PackRequest(source="tars", input=tmp_path / "in", output=tmp_path / "out", unusable="skip")
    (packed,) = pack(request).datasets
    assert (packed.manifest.num_samples, packed.num_skipped) == (1, 3)
    assert "../up\tits key '../up' cannot name a member" in (packed.path / "skipped.txt").read_text()


@pytest.mark.parametrize("order", ["shuffled", "source"])
def test_a_key_that_is_not_unicode_is_listed_in_either_order(tmp_path: Path, order: Literal["shuffled", "source"]) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "a.tar", [*sample("fine"), *sample("b\udcff")])
    request = PackRequest(source="tars", input=tmp_path / "in", output=tmp_path / "out", unusable="skip", order=order)
    (packed,) = pack(request).datasets
    assert (packed.manifest.num_samples, packed.num_skipped) == (1, 1)
    assert r"b\udcff" in (packed.path / "skipped.txt").read_text()


def test_packing_anew_keeps_keys_and_names_of_classes(tmp_path: Path) -> None:
    """A packed data set, packed again in source order with other shard sizes, gives the samples in the same order."""
    first = PackRequest(source="fashion-mnist", input=SAMPLE_FOLDER, output=tmp_path / "a", split="test", samples_per_shard=70)
    pack(first)
    again = PackRequest(source="tars", input=tmp_path / "a", output=tmp_path / "b", samples_per_shard=50, order="source")
    (packed,) = pack(again).datasets
    assert packed.manifest.classes is not None
    assert packed.manifest.classes[9] == "Ankle boot"
    samples = [
        list(webdataset.WebDataset([str(path) for path in sorted(folder.glob("*.tar"))], shardshuffle=False))
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    fields = [[(found["__key__"], found["png"], found["cls"]) for found in listed] for listed in samples]
    assert fields[0] == fields[1]
    assert len(fields[0]) == 200
