"""A folder complete or absent: success, errors, a full disk, a killed process, a second process, folders in the way."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vitscale.config import DataError, UsageError
from vitscale_data_tools.atomic import write_durably
from vitscale_data_tools.staging import partial_folder, resumable_folder, staged_folder


def test_it_appears_when_it_is_complete(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    with staged_folder(output) as staging:
        write_durably(staging / "a", b"1")
        assert not output.exists()
    assert [path.name for path in output.iterdir()] == ["a"]
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    def fill_and_fail() -> None:
        with staged_folder(tmp_path / "out") as staging:
            write_durably(staging / "a", b"1")
            raise failure

    with pytest.raises(failure):
        fill_and_fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_error_is_the_users_and_leaves_nothing(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DataError, match="out: cannot be written: No space left on device"), staged_folder(tmp_path / "out") as staging:
        (staging / "a").write_bytes(b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"), staged_folder(tmp_path / "file" / "out"):
        pass


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out") as staging:
        write_durably(staging / "a", b"1")
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    if kind == "folder":
        output.mkdir()
        (output / "precious").write_bytes(b"1")
    elif kind == "file":
        output.write_bytes(b"1")
    else:
        output.symlink_to(tmp_path / "none")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="exists already"), staged_folder(output):
        pytest.fail("must not be entered")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_killed_process_leaves_no_output_and_the_next_one_clears_up(tmp_path: Path) -> None:
    output = tmp_path / "out"
    script = (
        "import os, signal, sys; from pathlib import Path; from vitscale_data_tools.staging import staged_folder\n"
        "with staged_folder(Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half').write_bytes(b'x' * 1000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(output)], env=_environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    with staged_folder(output) as staging:
        assert list(staging.iterdir()) == []
        write_durably(staging / "whole", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in output.iterdir()] == ["whole"]


def test_a_second_process_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staging:
        write_durably(staging / "a", b"1")
        with pytest.raises(UsageError, match="another process is writing it"), staged_folder(tmp_path / "out"):
            pytest.fail("must not be entered")
        assert (staging / "a").exists()
    assert (tmp_path / "out" / "a").exists()


def test_a_folder_of_the_users_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_bytes(b"1")
    with pytest.raises(UsageError, match="in the way"), staged_folder(tmp_path / "out"):
        pytest.fail("must not be entered")
    assert (tmp_path / "out.partial" / "thesis.tex").exists()


def fail_after(output: Path, *, plan: str, names: list[str]) -> None:
    """An attempt that finishes some files and then breaks."""
    with resumable_folder(output, plan_digest=plan) as staging:
        for name in names:
            write_durably(staging.contents / name, name.encode())
            staging.record(name, f"about {name}")
        write_durably(staging.scratch / "half", b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_recorded_outlasts_a_failure_for_the_same_plan(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(DataError, match=rf"No space left.*are kept in {tmp_path}/out\.partial, and the same command goes on.*delete it"):
        fail_after(output, plan="a", names=["x", "sub+y"])
    with resumable_folder(output, plan_digest="a") as staging:
        assert [staging.recorded(name) for name in ("x", "sub+y", "z")] == ["about x", "about sub+y", None]
        assert list(staging.scratch.iterdir()) == []
        assert (staging.contents / "x").read_bytes() == b"x"
    assert sorted(path.name for path in output.iterdir()) == ["sub+y", "x"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_plan_starts_over(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fail_after(tmp_path / "out", plan="a", names=["x"])
    with resumable_folder(tmp_path / "out", plan_digest="b") as staging:
        assert staging.recorded("x") is None
        assert list(staging.contents.iterdir()) == []
        assert len(list(partial_folder(tmp_path / "out").iterdir())) == 2  # its own folder, and the lock


def test_an_attempt_that_finished_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No space left on device\. Nothing was left there"):
        fail_after(tmp_path / "out", plan="a", names=[])
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_folder_clears_what_a_resumable_one_left(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fail_after(tmp_path / "out", plan="a", names=["x"])
    with staged_folder(tmp_path / "out") as staging:
        assert list(staging.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
