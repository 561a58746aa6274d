"""`vitscale import` and `vitscale export`: what they print, exit codes, sizes of memory."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.weights.foreign import google_arrays, write_npz
from vitscale.cli import app
from vitscale.config import UsageError
from vitscale.weights_commands import parse_size


def test_a_file_goes_in_and_comes_out(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "weights.npz", google_arrays())
    done = CliRunner().invoke(app, ["import", str(path), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "against the formulas of vit_jax: max |delta logits| = " in done.output
    assert "assumed: GELU is its tanh form" in done.output
    assert "  num_heads: 4" in done.output
    done = CliRunner().invoke(app, ["export", str(tmp_path / "out"), "--layout", "vit_jax", "--output", str(tmp_path / "back")])
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "back" / "model.npz") as back, np.load(path) as first:
        assert all(np.array_equal(back[name], first[name]) for name in first.files)


def test_a_dry_run_says_what_would_be_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "weights.npz", google_arrays() | {"decoder.weight": np.zeros(3, np.float32)})
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, ["import", "weights.npz", "new/out", "--dry-run"])
    assert done.exit_code == 0, done.output
    for shown in (
        "weights.npz: vit_jax, ",
        "assumed: GELU is its tanh form",
        "no part of the model: 1 tensors, such as decoder.weight",
        "against the formulas of vit_jax: would be compared",
        "4.0 GiB allowed by --max-memory; disk: ",
        "  num_heads: 4",
    ):
        assert shown in done.output, shown
    assert sorted(tmp_path.rglob("*")) == before
    done = CliRunner().invoke(app, ["import", "weights.npz", "new/out"])
    assert done.exit_code == 0, done.output
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, ["export", "new/out", "--layout", "big_vision", "--dry-run"])
    assert done.exit_code == 0, done.output
    for shown in (
        "to big_vision, ",
        "kind: vit",
        "of big_vision: would be compared",
        "model.npz, README.md; about ",
        "README.md",
    ):
        assert shown in done.output, shown
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["import", "none.npz", "out"], 20, "no such file or folder"),
        (["import", "weights.npz", "out", "--max-memory", "2 GB"], 2, "is no size"),
        (["import", "weights.npz", "out", "model.gelu=exact"], 20, "gives other outputs"),
        (["import", "weights.npz", "out", "model.num_haeds=4"], 3, "did you mean 'num_heads'?"),
        (["export", "nothing"], 20, "no whole checkpoint"),
        (["export", "nothing", "--dry-run"], 20, "no whole checkpoint"),
        (["import", "none.npz", "out", "--dry-run"], 20, "no such file or folder"),
        (["import", "weights.npz", "weights.npz", "--dry-run"], 2, "is there already"),
        (["import", "weights.npz", "weights.npz/out", "--dry-run"], 3, "cannot be written"),
        (["import", "weights.npz", "out", "--dry-run", "--max-memory", "0.001MiB"], 20, "1.0 KiB are allowed"),
    ],
)  # fmt: skip
def test_bad_input_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], exit_code: int, message: str
) -> None:
    write_npz(tmp_path / "weights.npz", google_arrays())
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == exit_code, done.output
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_sizes() -> None:
    assert parse_size("1.5GiB") == 3 << 29
    assert parse_size("512 MiB") == 1 << 29
    for text in ("5", "GiB", "1TB"):
        with pytest.raises(UsageError, match="is no size"):
            parse_size(text)
