"""Jobs that were done before a kill are not done again, stale results never count, and nothing is left when all are done."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.packed import pack_images
from vitscale.config import DataError, UsageError
from vitscale.data.dataset import open_dataset
from vitscale_data_tools.jobs import Advance, in_order
from vitscale_data_tools.kept_results import Form, KeptFolder, cache_root, cached_folder, kept_folder, kept_results, work_name


def work(job: int, advance: Advance) -> list[int]:
    if job == 3:
        raise KeyboardInterrupt
    advance(10)
    return [job, job * job]


def again(job: int, advance: Advance) -> list[int]:
    assert job >= 3, "done before"
    advance(10)
    return [job, job * job]


EXPECTED = [[job, job * job] for job in range(5)]
FORM: Form[int, list[int]] = Form(
    name=str,
    size=lambda _: 10,
    encode=lambda result: " ".join(map(str, result)).encode(),
    decode=lambda _, raw: list(map(int, raw.split())),
)


def run(task: object, kept: KeptFolder, *, report: object = None, workers: int = 1) -> list[list[int]]:
    return in_order(kept_results(task, range(5), kept=kept, form=FORM, workers=workers, report=report))  # type: ignore[arg-type]


def interrupt(folder: Path) -> None:
    """Leave the results of 0, 1 and 2."""
    with pytest.raises(KeyboardInterrupt), kept_folder(folder) as kept:
        run(work, kept)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.dist)])
def test_finished_jobs_are_not_done_again(tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "work"
    interrupt(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "lock"]
    progress: list[int] = []
    said: list[str] = []
    with kept_folder(folder, say=said.append) as kept:
        assert run(again, kept, report=progress.append, workers=workers) == EXPECTED
    assert progress[:3] == [10, 20, 30]
    assert progress[-1] == 50
    assert said == ["going on: 3 of 5 parts were done by an interrupted run"]
    assert not folder.exists()


def test_who_interrupts_learns_what_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), kept_folder(tmp_path / "work", say=said.append) as kept:
        run(work, kept)
    assert said == [f"what is done is kept in {tmp_path}/work: the same command goes on from it"]


def test_a_result_that_does_not_count_is_found_out_again(tmp_path: Path) -> None:
    interrupt(tmp_path / "work")
    for name, raw in (("0", b"\xff"), ("1", b"x y")):
        (tmp_path / "work" / name).write_bytes(raw)
    with kept_folder(tmp_path / "work") as kept:
        assert run(lambda job, _: [job, job * job], kept) == EXPECTED


def test_a_result_that_may_not_last_is_not_kept(tmp_path: Path) -> None:
    form = Form(name=FORM.name, size=FORM.size, encode=FORM.encode, decode=FORM.decode, lasts=lambda result: result[0] != 1)
    with pytest.raises(KeyboardInterrupt), kept_folder(tmp_path / "work") as kept:
        in_order(kept_results(work, range(5), kept=kept, form=form, workers=1))
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["0", "2", "lock"]


def test_a_failure_before_anything_was_done_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError), kept_folder(tmp_path / "work"):
        raise DataError("x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        kept_folder(tmp_path / "w"),
        pytest.raises(UsageError, match="another process is working there"),
        kept_folder(tmp_path / "w"),
    ):
        pass


def test_the_cache_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_root() == tmp_path / "c" / "vitscale" / "unfinished"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard: to be ignored
    monkeypatch.setenv("HOME", str(tmp_path / "h"))
    assert cache_root() == tmp_path / "h" / ".cache" / "vitscale" / "unfinished"


def test_a_cache_that_cannot_be_made_costs_only_the_keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said: list[str] = []
    with cached_folder("verify-1", say=said.append) as kept:
        assert run(lambda job, _: [job, job * job], kept) == EXPECTED
    assert len(said) == 1
    assert said[0].startswith("keeping no results (")
    assert "--work" in said[0]


def test_a_cache_that_is_full_costs_only_the_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitscale_data_tools.kept_results.replace_file", full)
    said: list[str] = []
    with cached_folder("verify-1", say=said.append) as kept:
        assert run(lambda job, _: [job, job * job], kept) == EXPECTED
    assert len(said) == 1
    assert "takes no more results (No space left on device)" in said[0]
    assert not any(cache_root().iterdir())


def test_a_folder_of_ones_own_that_is_full_stops_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitscale_data_tools.kept_results.replace_file", full)
    with pytest.raises(DataError, match="w: cannot be written: No space left"), kept_folder(tmp_path / "w") as kept:
        run(work, kept)


def test_the_same_command_twice_at_once_keeps_once() -> None:
    said: list[str] = []
    with cached_folder("verify-1", say=said.append) as first, cached_folder("verify-1", say=said.append) as second:
        first.save("a", b"1")
        second.save("b", b"2")
        assert (first.load("a"), second.load("a"), first.load("b")) == (b"1", None, None)
    assert len(said) == 1
    assert "the same command is running already" in said[0]


def test_what_nobody_goes_on_with_is_forgotten() -> None:
    interrupt(cache_root() / "stats-old")
    interrupt(cache_root() / "stats-new")
    with cached_folder("verify-1", say=lambda _: None):
        assert sorted(path.name for path in cache_root().iterdir()) == ["stats-new", "stats-old", "verify-1"]
    long_ago = time.time() - 40 * 24 * 3600
    os.utime(cache_root() / "stats-old", (long_ago, long_ago))
    with cached_folder("verify-1", say=lambda _: None):
        assert sorted(path.name for path in cache_root().iterdir()) == ["stats-new", "verify-1"]


def test_another_data_set_or_another_option_is_another_piece_of_work(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        pack_images(tmp_path / name, num_samples=size)
    a, b, c = (open_dataset(tmp_path / name) for name in "abc")
    names = {
        work_name("verify", a, options={"sample": 1.0}),
        work_name("verify", a, options={"sample": 0.5}),
        work_name("stats", a, options={"sample": 1.0}),
        work_name("verify", b, options={"sample": 1.0}),
        work_name("verify", c, options={"sample": 1.0}),
    }
    assert len(names) == 5
    assert work_name("verify", open_dataset(os.path.relpath(tmp_path / "a")), options={"sample": 1.0}) in names


NUM_SHARDS = 12


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    pack_images(tmp_path / "d", num_samples=20 * NUM_SHARDS, samples_per_shard=20)
    raw = bytearray((tmp_path / "d" / "train-00001.tar").read_bytes())
    raw[700] ^= 1
    (tmp_path / "d" / "train-00001.tar").write_bytes(raw)
    return tmp_path / "d"


# Runs a command with parts of 20 samples, each of which takes a while and leaves a mark when it is begun.
SLOW = """
import os, sys, time
from vitscale_data_tools import exclude, stats, verify
from vitscale_data_tools.cli import main
from vitscale_data_tools.samples import parts

def slow(task):
    def begin(job, advance, **rest):
        with open(os.environ["MARKS"], "a") as file:
            print(job, file=file)
        time.sleep(float(os.environ["SECONDS"]))
        return task(job, advance, **rest)
    return begin

stats.parts = lambda dataset: parts(dataset, samples_per_part=20)
stats.measure_part, verify.verify_shard, exclude.choose_rows = map(slow, (stats.measure_part, verify.verify_shard, exclude.choose_rows))
main()
"""


class Command:
    """One command in a process of its own, killed and run again."""

    def __init__(self, *arguments: object, marks: Path, kept: Path) -> None:
        self.command = [sys.executable, "-c", SLOW, *map(str, arguments), "--workers", "1"]
        self.marks = marks
        self.kept = kept

    def kill_after(self, num_kept: int) -> None:
        process = subprocess.Popen(self.command, env=self.environment(0.1), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while self.num_kept() < num_kept and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def finish(self) -> "subprocess.CompletedProcess[str]":
        self.marks.write_text("")
        return subprocess.run(self.command, env=self.environment(0.0), capture_output=True, text=True, check=False)

    def num_begun(self) -> int:
        return len(self.marks.read_text().splitlines())

    def num_kept(self) -> int:
        files = [path for path in self.kept.rglob("*") if path.is_file() and path.suffix != ".npy"]
        return len([path for path in files if path.name != "lock" and not path.name.startswith(".")])

    def environment(self, seconds: float) -> dict[str, str]:
        path = os.pathsep.join(path for path in sys.path if path)
        return {**os.environ, "PYTHONPATH": path, "MARKS": str(self.marks), "SECONDS": str(seconds)}


def lines(output: str) -> list[str]:
    """What was printed, but for the seconds that it took."""
    return [line for line in output.splitlines() if not line.endswith(" s")]


@pytest.mark.dist
@pytest.mark.parametrize(
    ("arguments", "place"), [(["verify"], "cache"), (["stats"], "cache"), (["verify", "--decode", "--sample", "0.5"], "--work")]
)
def test_killed_it_goes_on_to_the_same_findings(dataset: Path, tmp_path: Path, cache_home: Path, arguments: list[str], place: str) -> None:
    chosen = ["--work", tmp_path / "w"] if place == "--work" else []
    kept = tmp_path / "w" if chosen else cache_home
    command = Command(*arguments, dataset, *chosen, "--json", tmp_path / "found.json", marks=tmp_path / "marks", kept=kept)
    command.kill_after(5)
    assert not (tmp_path / "found.json").exists()
    resumed = command.finish()
    num_begun = command.num_begun()
    assert 0 < num_begun <= NUM_SHARDS - 5
    assert f"going on: {NUM_SHARDS - num_begun} of {NUM_SHARDS} parts were done by an interrupted run" in resumed.stderr
    assert command.num_kept() == 0
    assert not any(path.is_file() for path in kept.rglob("*"))
    found = (tmp_path / "found.json").read_bytes()
    undisturbed = command.finish()
    assert command.num_begun() == NUM_SHARDS
    assert "going on" not in undisturbed.stderr
    assert lines(resumed.stdout) == lines(undisturbed.stdout)
    assert (tmp_path / "found.json").read_bytes() == found
    assert resumed.returncode == undisturbed.returncode == (10 if arguments[0] == "verify" else 0)


@pytest.mark.chaos
def test_a_killed_exclusion_goes_on_to_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = Command("exclude", dataset, output, "--damaged", marks=tmp_path / "marks", kept=output)
    command.kill_after(5)
    assert [path.name for path in output.iterdir()] == [".vitscale-exclude"]
    resumed = command.finish()
    assert 0 < command.num_begun() <= NUM_SHARDS - 5
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    output.rename(tmp_path / "resumed")
    undisturbed = command.finish()
    assert command.num_begun() == NUM_SHARDS
    assert {path.name: path.read_bytes() for path in output.iterdir()} == files
    assert len(files) == NUM_SHARDS + 1
    assert lines(resumed.stdout) == lines(undisturbed.stdout)


@pytest.mark.chaos
def test_a_shard_that_was_mended_or_damaged_since_the_kill_is_looked_at_again(dataset: Path, tmp_path: Path, cache_home: Path) -> None:
    """Also where size, and all other shards, are as they were."""
    command = Command("verify", dataset, marks=tmp_path / "marks", kept=cache_home)
    command.kill_after(5)
    for name, place in (("train-00001.tar", 700), ("train-00003.tar", 900)):
        raw = bytearray((dataset / name).read_bytes())
        raw[place] ^= 1
        (dataset / name).write_bytes(raw)
    found = command.finish()
    assert 2 <= command.num_begun() <= NUM_SHARDS - 5 + 2
    states = [line.split(",")[0] for line in found.stdout.splitlines()[:5] if ".tar: " in line]
    assert "train-00001.tar: ok" in states
    assert "train-00003.tar: damaged" in found.stdout
    assert found.returncode == 10


@pytest.mark.dist
def test_files_of_the_users_in_a_work_folder_stay(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.tex").write_text("mine")
    Command("verify", dataset, "--work", tmp_path / "w", marks=tmp_path / "marks", kept=tmp_path / "w").finish()
    Command("stats", dataset, "--work", dataset, marks=tmp_path / "marks", kept=tmp_path / "w").finish()
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["thesis.tex"]
    assert open_dataset(dataset).num_samples == 20 * NUM_SHARDS
