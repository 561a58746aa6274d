"""Tables of paths and urls: CSV, TSV and Parquet, labels of each kind, captions, and rows that do not fit."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data_tools.images import image_bytes
from vitscale.config import DataError, UsageError
from vitscale_data_tools.options import SourceOptions, UrlRoot
from vitscale_data_tools.sources.table import open_table
from vitscale_data_tools.split import Split, UnusableImageError

HEADER = ["path", "class", "tags", "text"]
ROWS = [
    ["photos/0.jpg", "dog", "wet;brown", "a dog, wet"],
    ["photos/1.png", "cat", "", 'says "no"'],
    ["photos/2.jpg", "dog", "brown", "zwei\nZeilen"],
]


def write_photos(folder: Path) -> None:
    (folder / "photos").mkdir(parents=True)
    for number, name in enumerate(("0.jpg", "1.png", "2.jpg")):
        (folder / "photos" / name).write_bytes(image_bytes(number, file_format="PNG" if name.endswith("png") else "JPEG"))


def write_csv(path: Path, rows: Sequence[Sequence[str]], *, header: Sequence[str] = HEADER) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def opened(path: Path, **options: Any) -> Split:
    (split,) = open_table(path, SourceOptions(**{"image_column": "path", **options}))
    return split


def members(split: Split) -> list[dict[str, bytes]]:
    return [split.members(index) for index in range(split.num_samples)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_text_tables(tmp_path: Path, suffix: str) -> None:
    write_photos(tmp_path)
    path = write_csv(tmp_path / f"t{suffix}", ROWS)
    split = opened(path, label_column="class", caption_column="text")
    assert split.classes == ("cat", "dog")
    assert members(split) == [
        {"cls": b"1", "txt": b"a dog, wet"},
        {"cls": b"0", "txt": b'says "no"'},
        {"cls": b"1", "txt": b"zwei\nZeilen"},
    ]
    assert split.images.read(1).image == image_bytes(1, file_format="PNG")
    assert split.images.origin(2) == "photos/2.jpg"


def test_several_classes_or_none_at_all(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", ROWS)
    tagged = opened(path, labels_column="tags")
    assert tagged.classes == ("brown", "wet")
    assert members(tagged) == [{"cls": b"0 1"}, {"cls": b""}, {"cls": b"0"}]
    plain = opened(path)
    assert (plain.classes, members(plain)) == (None, [{}, {}, {}])


def test_parquet_has_types(tmp_path: Path) -> None:
    write_photos(tmp_path)
    columns = {
        "path": [row[0] for row in ROWS],
        "class": pa.array([3, None, 1], pa.int32()),
        "tags": [["wet", "brown"], [], None],
        "text": ["a", None, "b"],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    split = opened(tmp_path / "t.parquet", label_column="class", caption_column="text")
    assert split.classes == ("0", "1", "2", "3")
    assert split.labels is not None
    assert split.labels.values.tolist() == [3, -1, 1]
    assert split.captions == ("a", None, "b")
    assert members(opened(tmp_path / "t.parquet", labels_column="tags")) == [{"cls": b"0 1"}, {"cls": b""}, {"cls": b""}]
    assert split.images.read(0).image == image_bytes(0)


def test_whole_numbers_that_pandas_made_floats(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a", "b", "c"], "class": [2.0, float("nan"), 0.0]}), tmp_path / "t.parquet")
    split = opened(tmp_path / "t.parquet", label_column="class")
    assert split.classes == ("0", "1", "2")
    assert split.labels is not None
    assert split.labels.values.tolist() == [2, -1, 0]


def test_urls_lie_in_the_folder_of_their_longest_prefix(tmp_path: Path) -> None:
    write_photos(tmp_path / "mirror")
    urls = ["https://a.org/x/photos/0.jpg", "https://a.org/x/photos/1.png", "https://a.org/2.jpg", "photos/0.jpg"]
    path = write_csv(tmp_path / "t.csv", [[url] for url in urls], header=["path"])
    roots = (
        UrlRoot(prefix="https://a.org/", folder=tmp_path / "mirror/photos"),
        UrlRoot(prefix="https://a.org/x/", folder=tmp_path / "mirror"),
    )
    split = opened(path, url_roots=roots, image_root=tmp_path / "mirror")
    assert [split.images.read(i).image for i in (0, 2, 3)] == [image_bytes(0), image_bytes(2), image_bytes(0)]
    assert [split.images.origin(i) for i in range(4)] == urls


@pytest.mark.parametrize("url", ["https://b.org/1.jpg", "https://a.org/../secret.jpg", "https://a.org/x/../../secret.jpg", "s3://a/1.jpg"])
def test_a_url_without_a_local_copy_is_refused(tmp_path: Path, url: str) -> None:
    path = write_csv(tmp_path / "t.csv", [["https://a.org/fine.jpg"], [url]], header=["path"])
    with pytest.raises(DataError, match=r"urls that no --url-root covers: .*Nothing is downloaded"):
        opened(path, url_roots=(UrlRoot(prefix="https://a.org/", folder=tmp_path),))


def test_a_missing_file_is_an_unusable_image(tmp_path: Path) -> None:
    split = opened(write_csv(tmp_path / "t.csv", [["none.jpg"]], header=["path"]))
    with pytest.raises(UnusableImageError, match="No such file"):
        split.images.read(0)


def test_repeated_rows_are_told(tmp_path: Path) -> None:
    split = opened(write_csv(tmp_path / "t.csv", [["a.jpg"], ["a.jpg"], ["b.jpg"], ["a.jpg"]], header=["path"]))
    assert split.notes == ("2 rows name an image that an earlier row names too; all are packed",)
    assert len({split.key(i) for i in range(4)}) == 4


def test_the_manifest_tells_tables_apart(tmp_path: Path) -> None:
    a, b = (opened(write_csv(tmp_path / f"{name}.csv", [[name]], header=["path"])).description for name in "ab")
    assert a["kind"] == b["kind"] == "table"
    assert a["sha256"] != b["sha256"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'path'; its columns are "),
        ("file,class\na,b\n", "has no column 'path'; its columns are file, class"),
        ("path,path\na,b\n", "more than one column 'path'"),
        ("path,class\na\n", "row 2 has another number of fields"),
        ("path,class\n", "a table without rows"),
        ("path,class\na,b\n,b\n", "row 2 has no path or url in the column 'path'"),
        ('path,class\n"a,b\n', "not a table of UTF-8 text"),
        ("path,class\na,\n", "not one sample has a class"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "t.csv", label_column="class" if "class\na,\n" in text else None)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path\n\xff\xfe\n")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not")
    (tmp_path / "t.xlsx").write_bytes(b"")
    for name, message in {
        "t.csv": "not a table of UTF-8",
        "t.parquet": "not readable as Parquet",
        "t.xlsx": "not a table by its name",
    }.items():
        with pytest.raises(DataError, match=message):
            opened(tmp_path / name)
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(DataError, match=r"cannot be read|no such file"):
            opened(tmp_path / name)


def test_options_that_are_needed_or_exclude_each_other(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", ROWS)
    with pytest.raises(UsageError, match="needs --image-column"):
        open_table(path, SourceOptions())
    with pytest.raises(UsageError, match="Give one of them"):
        opened(path, label_column="class", labels_column="tags")


def test_csv_needs_no_pyarrow_and_parquet_says_that_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert opened(write_csv(tmp_path / "t.csv", ROWS)).num_samples == 3
    with pytest.raises(DataError, match="needs pyarrow"):
        opened(tmp_path / "t.parquet")
