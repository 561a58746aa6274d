"""Foreign tars become a data set that our reader reads as WebDataset's own does, from a folder or a store, also after a kill."""

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data_tools.foreign import photo_samples, write_tar
from vitscale.config import DataError, UsageError
from vitscale.data.dataset import open_dataset
from vitscale.data.reader import SampleReader
from vitscale_data_tools import index_dataset as module
from vitscale_data_tools.index_dataset import WORK_FOLDER, IndexRequest, IndexSummary, plan_index, read_class_names, write_index


def index(source: Path, **options: object) -> IndexSummary:
    return write_index(plan_index(IndexRequest(source=str(source), **options)))  # type: ignore[arg-type]


def ours(folder: Path) -> dict[str, dict[str, bytes]]:
    dataset = open_dataset(folder)
    samples = SampleReader(dataset).read(0, dataset.num_samples)
    return {sample.key: {name: bytes(view) for name, view in sample.members.items()} for sample in samples}


def theirs(tars: list[Path]) -> dict[str, dict[str, bytes]]:
    samples = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False)
    return {sample["__key__"]: {name: value for name, value in sample.items() if not name.startswith("__")} for sample in samples}


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three tars of two dialects, one of them in a subfolder."""
    write_tar(tmp_path / "in" / "a.tar", photo_samples(9), dialect=tarfile.PAX_FORMAT)
    write_tar(tmp_path / "in" / "b.tar", photo_samples(7, start=9), dialect=tarfile.GNU_FORMAT)
    write_tar(tmp_path / "in" / "part-1" / "a.tar", photo_samples(5, start=16))
    return tmp_path / "in"


def test_beside_the_tars(source: Path) -> None:
    before = tree(source)
    summary = index(source, split="train")
    assert ours(source) == theirs([source / "a.tar", source / "b.tar", source / "part-1" / "a.tar"])
    assert len(ours(source)) == 21
    manifest = summary.manifest
    assert (manifest.shards_root, manifest.split, manifest.classes, manifest.members) == (
        None,
        "train",
        ("0", "1", "2", "3", "4"),
        ("cls", "jpg", "txt"),
    )
    added = set(tree(source)) - set(before)
    assert added == {"a.tar.idx.npy", "b.tar.idx.npy", "part-1/a.tar.idx.npy", "manifest.json"}
    assert {name: digest for name, digest in tree(source).items() if name in before} == before


def test_into_a_folder_of_its_own(source: Path, tmp_path: Path) -> None:
    before = tree(source)
    summary = index(source, output=tmp_path / "out")
    assert tree(source) == before
    assert summary.manifest.shards_root == str(source)
    assert set(tree(tmp_path / "out")) == {"a.tar.idx.npy", "b.tar.idx.npy", "part-1/a.tar.idx.npy", "manifest.json"}
    assert len(ours(tmp_path / "out")) == 21


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(
    samples=st.lists(st.dictionaries(st.sampled_from(["jpg", "json", "seg.png", "txt"]), st.binary(max_size=900), min_size=1), min_size=1),
    maxcount=st.integers(1, 4),
)
def test_whatever_shard_writer_writes(tmp_path_factory: pytest.TempPathFactory, samples: list[dict[str, bytes]], maxcount: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=maxcount, encoder=False, verbose=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"k{number}", **sample})
    index(folder)
    assert ours(folder) == {f"k{number}": sample for number, sample in enumerate(samples)} == theirs(sorted(folder.glob("*.tar")))


@pytest.mark.dist
def test_the_bytes_do_not_depend_on_workers(source: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        output = tmp_path / f"out-{workers}"
        write_index(plan_index(IndexRequest(source=str(source), output=output)), workers=workers)
    assert tree(tmp_path / "out-1") == tree(tmp_path / "out-3")


@pytest.mark.dist
def test_killed_at_any_time_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    for number in range(24):
        write_tar(tmp_path / "in" / f"{number:02d}.tar", photo_samples(20, start=20 * number))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    index(tmp_path / "in", output=whole)
    command = [sys.executable, "-m", "vitscale_data_tools", "index", str(tmp_path / "in"), "--output", str(killed), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for wanted in (1, 5, 11):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while len(list(killed.glob("*.idx.npy"))) < wanted and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert wanted > 1 or not (killed / "manifest.json").exists(), "it was over before it could be killed"
    if not (killed / "manifest.json").exists():
        plan = plan_index(IndexRequest(source=str(tmp_path / "in"), output=killed))
        assert plan.num_finished >= 5
        write_index(plan)
    assert tree(killed) == tree(whole)


def test_a_tar_that_changed_since_the_kill_is_read_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            index(source)
    assert (source / WORK_FOLDER).is_dir()
    write_tar(source / "b.tar", photo_samples(3, start=50))
    plan = plan_index(IndexRequest(source=str(source)))
    assert plan.num_finished == 2
    write_index(plan)
    assert len(ours(source)) == 9 + 3 + 5
    assert not (source / WORK_FOLDER).exists()


def test_all_tars_that_cannot_be_indexed_are_named_at_once(source: Path) -> None:
    (source / "a.tar").write_bytes((source / "a.tar").read_bytes()[:3000])
    write_tar(source / "b.tar", {"x": {"jpg": b"1"}, "y": {"jpg": b"1"}, "../x": {"jpg": b"1"}})
    with pytest.raises(DataError, match=r"2 of 3 tars cannot be indexed: .*a\.tar: cut short .*b\.tar: entry '\.\./x\.jpg' .* climbs out"):
        index(source)
    assert not (source / "manifest.json").exists()
    write_tar(source / "a.tar", photo_samples(9))
    write_tar(source / "b.tar", {"x": {"jpg": b"1"}})
    assert index(source).manifest.num_samples == 15


def test_interleaved_members_are_refused_by_name(source: Path) -> None:
    with tarfile.open(source / "b.tar", "w") as archive:
        for name in ("cat.jpg", "dog.jpg", "cat.cls"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    with pytest.raises(DataError, match="members of sample cat are not neighbours"):
        index(source)


def test_a_key_in_two_tars_is_refused_or_reported_by_name(source: Path) -> None:
    key = next(iter(photo_samples(1)))
    write_tar(source / "c.tar", {"own": {"jpg": b"1"}, key: {"jpg": b"2"}})
    with pytest.raises(DataError, match=r"1 keys occur more than once: '.* 000000' in a\.tar and c\.tar\. Keys name"):
        index(source)
    summary = index(source, allow_duplicate_keys=True)
    assert any("000000' in a.tar and c.tar" in note for note in summary.notes)
    assert summary.manifest.source["duplicate_keys"] == 1


def test_class_names(source: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("tench\ngoldfish\ngreat white shark\nä\nhen\n")
    names = read_class_names(tmp_path / "names.txt")
    assert index(source, classes=names).manifest.classes == ("tench", "goldfish", "great white shark", "ä", "hen")


def test_labels_beyond_any_number_of_classes_name_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a": {"jpg": b"1", "cls": b"123456789"}})
    summary = index(tmp_path)
    assert summary.manifest.classes is None
    assert any(note.startswith("No classes") for note in summary.notes)


@pytest.mark.parametrize("text", ["", "a\n\nb\n", None])
def test_class_files_that_make_no_sense(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "names.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=r"names\.txt"):
        read_class_names(path)


def test_members_of_no_sample_are_reported(source: Path) -> None:
    write_tar(source / "c.tar", {"._x": {"jpg": b"1"}, "x": {"jpg": b"1"}})
    (note,) = index(source).notes[:1]
    assert note == "1 members belong to no sample (no key or extension) and were passed over: ._x.jpg."


@pytest.mark.parametrize(
    ("source_text", "error", "message"),
    [
        ("pipe:cat x.tar", UsageError, "runs a command, and vitscale never does"),
        ("missing/{000..009}.tar", DataError, "not a pattern of names"),
        ("s3://bucket/train", UsageError, "Name one with --output"),
    ],
)
def test_sources_that_are_refused(source_text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan_index(IndexRequest(source=source_text, output=Path("x") if source_text.startswith("missing") else None))


def test_a_folder_without_tars(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(DataError, match=r"holds no \.tar files"):
        index(tmp_path)


def test_a_tar_whose_name_is_no_name_of_a_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "my shard.tar", photo_samples(1))
    with pytest.raises(DataError, match=r"the tar 'my shard\.tar' has a name with other characters"):
        index(tmp_path)


def test_a_manifest_is_never_overwritten(source: Path) -> None:
    index(source)
    with pytest.raises(UsageError, match="exists already and is not overwritten"):
        index(source)


def test_a_folder_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/out: cannot be written"):
        index(source, output=tmp_path / "file" / "out")


@pytest.mark.dist
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_paragraph_and_what_is_done_stays(source: Path, tmp_path: Path, workers: int) -> None:
    """A limit on the size of files stands in for a full disk: the kernel refuses the write."""
    write_tar(source / "z.tar", {f"{number:06d}": {"txt": b"x"} for number in range(600)})
    output = tmp_path / "out"
    command = ["index", str(source), "--output", str(output), "--workers", str(workers)]
    result = subprocess.run(
        [sys.executable, "-m", "vitscale_data_tools", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)),
    )
    assert result.returncode == 10, result.stderr
    assert result.stderr.startswith(f"error: {output}: cannot be written: File too large. Free")
    assert result.stderr.count("\n") == 1
    assert not (output / "manifest.json").exists()
    plan = plan_index(IndexRequest(source=str(source), output=output))
    assert plan.num_finished >= 2
    assert write_index(plan).manifest.num_samples == 621
