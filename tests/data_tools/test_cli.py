"""The `vitscale-data` command: what it prints, its exit codes, one paragraph per error, and that `--help` loads little."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.data_tools.images import write_image_folder
from vitscale.data.dataset import open_dataset
from vitscale_data_tools.cli import app
from vitscale_data_tools.fetch import SAMPLE_FOLDER

RUNNER = CliRunner()


def test_pack_prints_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["pack", "fashion-mnist", str(SAMPLE_FOLDER), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"{tmp_path}/out/train: 800 samples of 10 classes in 1 shards, 2.0 MiB"
    assert lines[1].startswith(f"{tmp_path}/out/test: 200 samples")
    assert lines[2].startswith("packed in ")
    assert lines[3] == f"next: vitscale train CONFIG data.path={tmp_path}/out/train"
    assert open_dataset(tmp_path / "out" / "train").num_samples == 800


def test_options_reach_the_request(tmp_path: Path) -> None:
    arguments = "--split test --samples-per-shard 90 --order source --workers 1"
    result = RUNNER.invoke(app, ["pack", "fashion-mnist", str(SAMPLE_FOLDER), str(tmp_path / "out"), *arguments.split()])
    assert result.exit_code == 0, result.output
    manifest = open_dataset(tmp_path / "out").manifest
    assert [shard.num_samples for shard in manifest.shards] == [90, 90, 20]
    assert manifest.source["order"] == "source"


def test_a_seed_reaches_the_manifest(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["pack", "fashion-mnist", str(SAMPLE_FOLDER), str(tmp_path / "out"), "--seed", "5", "--split", "test"])
    assert result.exit_code == 0, result.output
    assert open_dataset(tmp_path / "out").manifest.source["seed"] == 5


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["pack", "fashion-mnist", str(SAMPLE_FOLDER), str(tmp_path / "out"), "--dry-run", "--shard-mebibytes", "1"])
    assert result.exit_code == 0, result.output
    assert f"{tmp_path}/out/train: 800 samples of 10 classes in 2 shards, 2.0 MiB" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fashion-mnist", "IN", "OUT"], 10, "holds no Fashion-MNIST"),
        (["image-folder", "IN", "OUT"], 10, "no class folders"),
        (["image-folder", "IN", "IN/out"], 2, "lies inside the input folder"),
        (["fashion-mnist", str(SAMPLE_FOLDER), "IN/.."], 2, "exists already"),
        (["fashion-mnist", str(SAMPLE_FOLDER), "OUT", "--seed", "1", "--order", "source"], 2, "--seed has no effect"),
        (["fashion-mnist", str(SAMPLE_FOLDER), "OUT", "--split", "val"], 2, "has train, test"),
        (["fashion-mnist", str(SAMPLE_FOLDER), "OUT", "--quality", "80"], 2, "--quality has no effect without --transcode"),
        (["fashion-mnist", str(SAMPLE_FOLDER), "OUT", "--transcode", "jpeg", "--check", "header"], 2, "--check has no effect with"),
        (["table", "IN/t.csv", "OUT", "--image-column", "a", "--url-root", "x"], 2, "expected PREFIX=FOLDER"),
        (["idx", str(SAMPLE_FOLDER), "OUT", "--classes", "IN/none.txt"], 10, "cannot be read: No such file"),
    ],
)
def test_an_error_is_one_paragraph_with_its_exit_code(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "in").mkdir()
    places = [text.replace("IN", str(tmp_path / "in")).replace("OUT", str(tmp_path / "out")) for text in arguments]
    result = RUNNER.invoke(app, ["pack", *places])
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["pack", "fashion-mnist", str(tmp_path), str(tmp_path / ".." / "out"), "--debug"])
    assert result.exit_code == 10
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path, workers: int) -> None:
    """A limit on the size of files stands in for a full disk: the kernel refuses the write in mid-shard."""
    command = ["pack", "fashion-mnist", str(SAMPLE_FOLDER), str(tmp_path / "out"), "--workers", str(workers), "--samples-per-shard", "400"]
    result = subprocess.run(
        [sys.executable, "-m", "vitscale_data_tools", *command],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert result.returncode == 10, result.stderr
    assert result.stderr.startswith(f"error: {tmp_path}/out: cannot be written: File too large. Nothing was left there.")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_whole_shards_outlast_a_full_disk(tmp_path: Path) -> None:
    """The next attempt, with room, goes on from them."""
    write_image_folder(tmp_path / "in")
    command = [sys.executable, "-m", "vitscale_data_tools", "pack", "image-folder", str(tmp_path / "in"), str(tmp_path / "out")]
    command += ["--samples-per-shard", "1", "--order", "source", "--workers", "1"]
    full = subprocess.run(
        command,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert full.returncode == 10, full.stderr
    assert f"File too large. The shards that were whole are kept in {tmp_path}/out.partial, and the same command goes on" in full.stderr
    assert full.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    finished = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert ", 2 shards kept from an interrupted pack" in finished.stdout
    assert open_dataset(tmp_path / "out").num_samples == 6
    assert not (tmp_path / "out.partial").exists()


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from vitscale_data_tools.cli import app\n"
        "try: app(['pack', '--help'])\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, sorted({'numpy', 'torch', 'PIL', 'vitscale', 'webdataset'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"
    assert "--dry-run" in result.stdout


def test_torch_is_loaded_for_views_of_a_run_only() -> None:
    # Two seconds and 190 MB for every process that packs, verifies or counts, of which a machine runs one a core.
    script = (
        "import importlib, pkgutil, sys, vitscale_data_tools as tools\n"
        "names = {module.name for module in pkgutil.walk_packages(tools.__path__, 'vitscale_data_tools.')}\n"
        "names -= {'vitscale_data_tools.__main__', 'vitscale_data_tools.run_views'}\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names), 'torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    num_modules, has_torch = result.stdout.split()
    assert int(num_modules) >= 40
    assert has_torch == "False"


def test_fetch_names_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []
    monkeypatch.setattr("vitscale_data_tools.fetch.fetch_fashion_mnist", fetched.append)
    result = RUNNER.invoke(app, ["fetch", str(tmp_path / "raw")])
    assert result.exit_code == 0, result.output
    assert fetched == [tmp_path / "raw"]
    assert f"vitscale-data pack fashion-mnist {tmp_path}/raw OUTPUT" in result.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
