"""The commands on data sets that exist: what they print, their exit codes, one paragraph per error, and that --dry-run writes nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.data_tools.foreign import photo_samples, write_tar
from vitscale.data.dataset import open_dataset
from vitscale_data_tools.cli import app

RUNNER = CliRunner()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(2):
        write_tar(tmp_path / "in" / f"{number}.tar", photo_samples(6, start=6 * number))
    return tmp_path / "in"


def run(*arguments: object, code: int = 0) -> list[str]:
    """The lines of stdout, or of stderr where the exit code is not 0 and nothing is printed."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    if code and not result.stdout:
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.splitlines()
    return result.stdout.splitlines()


def test_index(source: Path) -> None:
    lines = run("index", source, "--dry-run")
    assert lines[0].startswith("would index, and did not (--dry-run): 2 tars, 0.1 MiB, of ")
    assert sorted(path.name for path in source.iterdir()) == ["0.tar", "1.tar"]
    lines = run("index", source, "--split", "val")
    assert lines[0] == f"{source}: 12 samples of 5 classes in 2 shards, 0.1 MiB"
    assert lines[1] == "members: cls, jpg, txt"
    assert open_dataset(source).manifest.split == "val"
    assert "exists already" in run("index", source, code=2)[0]


def test_index_reads_class_names(source: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("a\nb\n")
    (error,) = run("index", source, "--classes", tmp_path / "names", code=10)
    assert "has the label '2', but --classes names the labels 0 to 1" in error
