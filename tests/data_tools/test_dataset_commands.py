"""The commands on data sets that exist: what they print, their exit codes, one paragraph per error, and that --dry-run writes nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.data_tools.foreign import photo_samples, write_tar
from tests.data_tools.images import image_bytes
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


@pytest.fixture
def dataset(source: Path) -> Path:
    run("index", source)
    return source


def test_verify_says_what_is_damaged_and_ends_with_10(dataset: Path, tmp_path: Path) -> None:
    lines = run("verify", dataset)
    assert lines[0] == "0.tar: ok, 6 of 6 samples checked, 0 unusable"
    assert lines[-1].startswith(f"{dataset}: 12 samples of 2 shards checked in ")
    raw = bytearray((dataset / "1.tar").read_bytes())
    raw[9000] ^= 1
    (dataset / "1.tar").write_bytes(raw)
    result = RUNNER.invoke(app, ["verify", str(dataset), "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 10
    assert "1.tar: damaged, 6 of 6 samples checked, 1 unusable" in result.stdout
    assert result.stderr.startswith(f"error: {dataset}: 1 of 2 shards are damaged, with 1 samples that cannot be used.")
    assert "--damaged" in result.stderr
    assert (tmp_path / "r.json").is_file()
    run("exclude", dataset, tmp_path / "out", "--damaged")
    assert run("verify", tmp_path / "out", "--decode")[1].startswith("1.tar: ok, 5 of 5")


def test_the_advice_of_verify_leaves_a_sound_data_set(tmp_path: Path) -> None:
    """An empty file is whole, so a check of the bytes takes it, and a run would lose it."""
    samples = {str(number): {"jpg": image_bytes(number) if number % 3 else b"", "cls": b"1"} for number in range(6)}
    write_tar(tmp_path / "in" / "a.tar", samples)
    run("index", tmp_path / "in")
    result = RUNNER.invoke(app, ["verify", str(tmp_path / "in"), "--decode"])
    assert result.exit_code == 10
    assert "with 2 samples that cannot be used" in result.stderr
    advice = result.stderr.strip().partition("vitscale-data exclude ")[2].rstrip(".").replace("OUTPUT", str(tmp_path / "out")).split()
    assert run("exclude", *advice)[0] == "left out: 0 samples by key, 2 that cannot be read"
    assert run("verify", tmp_path / "out", "--decode")[0] == "a.tar: ok, 4 of 4 samples checked, 0 unusable"


@pytest.mark.parametrize(
    "arguments",
    [["verify", "D", "--json", "F/x"], ["stats", "D", "--json", "F/x"], ["stats", "D", "--plots", "F/x"], ["show", "D", "--output", "F/x"]],
)
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    (tmp_path / "file").touch()
    for module, name in (("verify", "verify_dataset"), ("stats", "measure"), ("show", "draw_samples")):
        monkeypatch.setattr(f"vitscale_data_tools.{module}.{name}", lambda *_, **__: pytest.fail("worked first"))
    (error,) = run(*(text.replace("D", str(dataset)).replace("F", str(tmp_path / "file")) for text in arguments), code=10)
    assert f"{tmp_path}/file/x" in error
    assert "cannot be written" in error


def test_stats(dataset: Path, tmp_path: Path) -> None:
    lines = run("stats", dataset, "--json", tmp_path / "s.json", "--plots", tmp_path / "plots")
    assert lines[1].split(maxsplit=1) == ["samples", "12 in 2 shards, 0.1 MiB"]
    assert lines[-2:] == [f"written: {tmp_path}/s.json", f"written: {tmp_path}/plots"]
    assert len(list((tmp_path / "plots").iterdir())) == 5


def test_show(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "sheet.png"
    assert run("show", dataset, "--output", output, "--dry-run")[0].startswith("would draw 12 samples")
    assert not output.exists()
    assert run("show", dataset, "--output", output, "--num", 5) == [f"{output}: 5 samples of {dataset}, 504 x 394 pixels"]
    (tmp_path / "run.yaml").write_text("name: 1 2\n")
    result = RUNNER.invoke(app, ["show", str(dataset), "--output", str(output), "--config", str(tmp_path / "run.yaml")])
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: {tmp_path}/run.yaml: ")


def test_dedup_then_exclude(dataset: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "eval" / "e.tar", photo_samples(2, start=5))
    run("index", tmp_path / "eval")
    removals = tmp_path / "list.txt"
    arguments = ["dedup", dataset, removals, "--against", tmp_path / "eval", "--sheet", tmp_path / "pairs.png"]
    assert run(*arguments, "--dry-run")[0] == "would compare, and did not (--dry-run): 14 images of 2 data sets"
    assert not removals.exists()
    lines = run(*arguments)
    assert lines[0] == "the same bytes as an image of an evaluation set: 2"
    assert lines[-2].startswith(f"{removals}: 2 of 12 samples to remove, in ")
    assert (tmp_path / "pairs.png").is_file()
    assert run("exclude", dataset, tmp_path / "out", "--keys", removals, "--dry-run")[0].startswith("left out: 2 samples by key")
    assert not (tmp_path / "out").exists()
    run("exclude", dataset, tmp_path / "out", "--keys", removals)
    assert open_dataset(tmp_path / "out").num_samples == 10
    assert "exists already" in run(*arguments, code=2)[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["index", "pipe:cat x"], 2, "never does"),
        (["index", "MISSING"], 10, "no such folder"),
        (["verify", "MISSING"], 10, "no such data set folder"),
        (["stats", "MISSING"], 10, "no such data set folder"),
        (["show", "MISSING", "--output", "x.png"], 10, "no such data set folder"),
        (["dedup", "MISSING", "x"], 10, "no such data set folder"),
        (["exclude", "MISSING", "x"], 2, "nothing to leave out"),
        (["exclude", "MISSING", "x", "--damaged"], 10, "no such data set folder"),
        (["exclude", "MISSING", "x", "--keys", "list", "--decode"], 2, "--decode has no effect without --damaged"),
    ],
)
def test_an_error_is_one_paragraph(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (error,) = run(*(text.replace("MISSING", str(tmp_path / "missing")) for text in arguments), code=code)
    assert message in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "image-folder", "IN", "s3://bucket/out"],
        ["pack", "tars", "s3://bucket/in", "OUT"],
        ["index", "IN", "--output", "gs://bucket/out"],
        ["verify", "IN", "--json", "az://bucket/found.json"],
        ["stats", "IN", "--plots", "s3://bucket/plots"],
        ["show", "IN", "--output", "s3://bucket/x.png"],
        ["dedup", "IN", "s3://bucket/list"],
        ["dedup", "IN", "OUT", "--sheet", "s3://bucket/x.png"],
        ["exclude", "IN", "s3://bucket/out", "--damaged"],
    ],
)
def test_what_is_written_is_never_an_address(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """As a path it would be a folder called `s3:`, in which nobody would look for hours of work."""
    monkeypatch.chdir(tmp_path)
    address = next(text for text in arguments if "://" in text)
    (error,) = run(*(text.replace("IN", str(dataset)).replace("OUT", str(tmp_path / "out")) for text in arguments), code=2)
    assert address in error
    assert "an address, where a local path is wanted" in error
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("command", "first", "second"),
    [
        (
            ["verify", "--sample", "0.5"],
            "would check, and did not (--dry-run): about 6 of 12",
            "would write: nothing",
        ),
        (["stats", "--json", "x.json"], "would measure, and did not (--dry-run): 12", "would write: x.json"),
    ],
)
def test_dry_runs_of_what_only_looks(dataset: Path, command: list[str], first: str, second: str) -> None:
    assert run(*command, dataset, "--dry-run") == [f"{first} samples in 2 shards of {dataset}", second]
