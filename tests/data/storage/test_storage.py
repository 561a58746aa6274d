"""Local files: exact, short, missing and replaced ones; conditions of the machine, which lose nothing; forks and pickles."""

import contextlib
import errno
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.forked import exit_code_of_fork
from tests.data.packed import pack
from tests.facilities import with_injection
from vitscale.config import DataError
from vitscale.data.reader import SampleReader
from vitscale.data.storage.retry import RetryPolicy
from vitscale.data.storage.storage import LocalStorage, open_storage
from vitscale.data.types import UnreachableDataError

CONTENT = bytes(range(256)) * 8
QUICK = RetryPolicy(num_tries=4, first_pause_seconds=0.001, longest_pause_seconds=0.001)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    return tmp_path


def test_reads(folder: Path) -> None:
    storage = open_storage(folder)
    assert storage.size("a.bin") == 2048
    assert storage.read_file("a.bin") == CONTENT
    assert storage.read_range("a.bin", offset=250, length=10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
    assert storage.read_range("a.bin", offset=5, length=0) == b""


@pytest.mark.parametrize(("offset", "length", "there"), [(2040, 9, 8), (2048, 1, 0), (5000, 4, 0)])
def test_a_short_file_is_an_error_that_names_it(folder: Path, offset: int, length: int, there: int) -> None:
    with pytest.raises(DataError, match=rf"a\.bin: cut short, {there} of the {length} bytes at offset {offset}") as caught:
        open_storage(folder).read_range("a.bin", offset=offset, length=length)
    assert not isinstance(caught.value, UnreachableDataError)


@pytest.mark.parametrize("operation", ["size", "read_file", "read_range"])
def test_a_missing_file_is_named(folder: Path, operation: str) -> None:
    arguments = {"offset": 0, "length": 1} if operation == "read_range" else {}
    with pytest.raises(DataError, match=r"none\.tar: cannot be read: No such file") as caught:
        getattr(open_storage(folder), operation)("none.tar", **arguments)
    assert not isinstance(caught.value, UnreachableDataError)


@pytest.mark.parametrize("address", ["pipe:cat a.tar", "file:///data", "ftp://host/x", "PIPE:x", "ais://b/x", "data:image"])
def test_other_schemes_are_refused_by_name(address: str) -> None:
    with pytest.raises(DataError, match=rf"^{address.split(':')[0].lower()}: is not a place that data is read from"):
        open_storage(address)


def test_a_folder_with_a_colon_is_reached_by_a_path(folder: Path) -> None:
    (folder / "v:2").mkdir()
    (folder / "v:2" / "a.bin").write_bytes(b"abc")
    assert open_storage(f"{folder}/v:2").read_file("a.bin") == b"abc"


def test_few_files_stay_open(folder: Path) -> None:
    storage = open_storage(folder)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        (folder / f"{number}.bin").write_bytes(bytes([number]))
        assert storage.read_range(f"{number}.bin", offset=0, length=1) == bytes([number])
    assert 0 < len(os.listdir("/proc/self/fd")) - before <= 64
    del storage
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_file_that_was_replaced_is_read_anew_where_the_old_one_fails(folder: Path) -> None:
    storage = LocalStorage(folder)
    (folder / "a.bin").write_bytes(CONTENT[:100])
    assert storage.read_range("a.bin", offset=0, length=100) == CONTENT[:100]
    (folder / "mended").write_bytes(CONTENT)
    (folder / "mended").rename(folder / "a.bin")
    assert storage.read_range("a.bin", offset=90, length=100) == CONTENT[90:190], "the old one is shorter"
    (folder / "mended").write_bytes(bytes(2048))
    (folder / "mended").rename(folder / "a.bin")
    assert storage.read_range("a.bin", offset=5, length=2) == CONTENT[5:7]
    assert storage.read_again("a.bin", offset=5, length=2) == bytes(2), "past the open file"


class _Failing:
    """A function of the system that fails at first."""

    def __init__(self, name: str, *, times: int, real: Callable[..., Any]) -> None:
        self.number = getattr(errno, name)
        self.left = times
        self.real = real

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*arguments, **options)


MACHINE = ("EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "ENETUNREACH", "ENOTCONN", "EBADF", "EACCES")


@pytest.mark.parametrize("name", MACHINE)
@pytest.mark.parametrize("call", ["pread", "open"])
def test_what_the_machine_lacks_is_waited_for_and_never_taken_for_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    storage, failing = LocalStorage(folder, policy=QUICK), _Failing(name, times=3, real=getattr(os, call))
    monkeypatch.setattr(os, call, failing)
    assert storage.read_range("a.bin", offset=1, length=2) == b"\x01\x02"
    assert storage.io_counters() == {"reads": 1, "bytes_read": 2, "retries": 3}
    storage, failing.left = LocalStorage(folder, policy=QUICK), 100
    words = os.strerror(failing.number)
    with pytest.raises(UnreachableDataError, match=rf"a\.bin: could not be read: 4 tries in .* with {words}\. .*ulimit") as caught:
        storage.read_range("a.bin", offset=1, length=2)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 10


@pytest.mark.parametrize(
    ("operation", "call", "expected"),
    [
        ("size", (os, "stat"), 2048),
        ("read_file", (Path, "read_bytes"), CONTENT),
        ("list_files", (os, "scandir"), ["a.bin"]),
    ],
)
def test_so_it_is_whatever_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, operation: str, call: tuple[Any, str], expected: Any
) -> None:
    storage, failing = LocalStorage(folder, policy=QUICK), _Failing("ESTALE", times=2, real=getattr(*call))
    monkeypatch.setattr(*call, lambda *arguments, **options: failing(*arguments, **options))
    name = ".bin" if operation == "list_files" else "a.bin"
    found = getattr(storage, operation)(name)
    assert ([file.name for file in found] if operation == "list_files" else found) == expected
    assert storage.io_counters()["retries"] == 2


def test_a_disk_that_cannot_give_the_bytes_back_is_asked_once_more_where_the_file_was_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(folder, policy=QUICK)
    failing = _Failing("EIO", times=0, real=os.pread)
    monkeypatch.setattr(os, "pread", failing)
    storage.read_range("a.bin", offset=1, length=2)
    failing.left = 1
    assert storage.read_range("a.bin", offset=1, length=2) == b"\x01\x02"
    failing.left = 2
    with pytest.raises(DataError, match=r"a\.bin: cannot be read: Input/output error") as caught:
        storage.read_range("a.bin", offset=1, length=2)
    assert not isinstance(caught.value, UnreachableDataError)
    assert failing.left == 0


def test_an_unmounted_folder_loses_nothing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    storage = LocalStorage(folder)
    folder.rename(tmp_path_factory.mktemp("elsewhere") / "set")
    with pytest.raises(UnreachableDataError, match=r"a\.bin: cannot be read: there is no folder .*mounted"):
        storage.read_range("a.bin", offset=0, length=1)
    folder.mkdir()


def _use_up_descriptors(limit: int = 128) -> list[int]:
    """Lower this process's limit and open files until there is no descriptor left."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    descriptors = []
    with contextlib.suppress(OSError):
        while True:
            descriptors.append(os.open("/dev/null", os.O_RDONLY))
    return descriptors


def test_our_own_files_are_closed_where_descriptors_run_out(folder: Path) -> None:
    def work() -> None:
        for number in range(20):
            (folder / f"{number}.bin").write_bytes(bytes([number]))
        storage = LocalStorage(folder, policy=QUICK)
        for number in range(10):
            storage.read_range(f"{number}.bin", offset=0, length=1)
        assert _use_up_descriptors(limit=os.dup(0) + 2)
        for number in range(20):
            assert storage.read_range(f"{number}.bin", offset=0, length=1) == bytes([number])
        assert storage.io_counters()["retries"] > 0

    assert exit_code_of_fork(work) == 0


def test_a_process_without_descriptors_loses_no_sample_and_goes_on_when_it_has_some(tmp_path: Path) -> None:
    dataset = pack(tmp_path, [{"png": b"x", "cls": b"1"}] * 6, samples_per_shard=3)

    def work() -> None:
        storage = LocalStorage(tmp_path, policy=QUICK)
        reader = SampleReader(replace(dataset, storage=storage, index_storage=storage))
        descriptors = _use_up_descriptors()
        with pytest.raises(UnreachableDataError, match="with Too many open files"):
            list(reader.scan(0, 6, epoch=0))
        for descriptor in descriptors:
            os.close(descriptor)
        assert len(reader.read(0, 6)) == 6

    assert exit_code_of_fork(work) == 0


_STRACED = """
import sys
from pathlib import Path
from vitscale.config import DataError
from vitscale.data.storage.retry import RetryPolicy
from vitscale.data.storage.storage import LocalStorage

storage = LocalStorage(Path(sys.argv[1]), policy=RetryPolicy(num_tries=3, first_pause_seconds=0.001))
for _ in range(3):
    try:
        print(storage.read_range("a.bin", offset=1, length=2).hex(), storage.io_counters()["retries"])
    except DataError as error:
        print(type(error).__name__)
"""


@pytest.mark.dist
@pytest.mark.parametrize(
    ("injection", "expected"),
    [
        ("ESTALE:when=1", ["0102 1", "0102 1", "0102 1"]),  # a new descriptor, at the second try
        ("ESTALE", ["UnreachableDataError"] * 3),
        ("EIO", ["DataError"] * 3),
    ],
)
def test_errors_of_the_kernel(folder: Path, injection: str, expected: list[str]) -> None:
    prefix = with_injection("pread64", error=injection, file=folder / "a.bin")
    command = [*prefix, sys.executable, "-c", _STRACED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[3])
    assert done.stdout.splitlines() == expected, done.stderr


def test_a_fork_reads_even_if_a_thread_was_reading(folder: Path) -> None:
    storage = LocalStorage(folder)
    storage.read_range("a.bin", offset=0, length=1)

    def work() -> None:
        assert storage.read_range("a.bin", offset=1, length=1) == b"\x01"

    with storage._files._lock:
        assert exit_code_of_fork(work) == 0


def test_pickle(folder: Path) -> None:
    storage = LocalStorage(folder, policy=QUICK)
    storage.read_range("a.bin", offset=0, length=1)
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read_range("a.bin", offset=1, length=2) == b"\x01\x02"
    assert (copy.root, copy._policy, copy.io_counters()["reads"]) == (str(folder), QUICK, 1)


def test_names_are_listed_by_their_ending_in_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "part/0.tar", "a.tar.idx.npy", "tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "broken.tar").symlink_to("nothing")
    (tmp_path / "link.tar").symlink_to("b.tar")
    assert [file.name for file in open_storage(tmp_path).list_files(".tar")] == ["a.tar", "b.tar", "link.tar", "part/0.tar"]
    assert open_storage(tmp_path / "part").list_files(".zip") == []


def test_a_file_that_is_written_anew_has_another_version(tmp_path: Path) -> None:
    """Even where size and time are those of the old one, as of a copy that keeps times."""
    (tmp_path / "a.tar").write_bytes(b"one")
    (old,) = open_storage(tmp_path).list_files(".tar")
    assert open_storage(tmp_path).list_files(".tar") == [old]
    (tmp_path / "new").write_bytes(b"two")
    os.utime(tmp_path / "new", ns=(0, (tmp_path / "a.tar").stat().st_mtime_ns))
    os.replace(tmp_path / "new", tmp_path / "a.tar")
    (new,) = open_storage(tmp_path).list_files(".tar")
    assert (new.name, new.size) == (old.name, old.size) == ("a.tar", 3)
    assert new.version != old.version


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "part").mkdir()
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("part"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="Permission denied"):
        LocalStorage(folder, policy=QUICK).list_files(".bin")
    with pytest.raises(DataError, match="there is no folder"):
        LocalStorage(folder / "none").list_files(".bin")
