"""`vitscale checkpoint`: what each command prints and deletes, and its exit codes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.cli import app
from vitscale.train.run_dir import RunDirectory
from vitscale.train.run_lock import exclusive

TENSORS = make_tensors(seed=1, shapes={"backbone.a": (4, 6)}, kinds=("weight", "exp_avg"))


def checkpoint(*arguments: str | Path) -> Result:
    """Run `vitscale checkpoint ...` in this process."""
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of steps 1 to 4, of which 2 and 4 are kept for ever."""
    for step in (1, 2, 3, 4):
        save_as(TENSORS, folder=tmp_path / "checkpoints", step=step, state={"step": step, "samples": 32 * step})
    (tmp_path / "config.yaml").write_text("checkpoint: {keep: 3, keep_every_steps: 2}\n")
    return tmp_path


def _damage(run: Path, step: int) -> None:
    path = run / "checkpoints" / f"step-{step:08d}" / "rank-00000.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_list(run: Path) -> None:
    (run / "checkpoints" / "step-00000005.tmp").mkdir()
    result = checkpoint("list", run)
    assert result.exit_code == 0
    assert "step-00000005.tmp: its save did not finish" in result.stdout
    entries = json.loads(checkpoint("list", run, "--json").stdout)
    assert [(entry["step"], entry["state"], entry["samples"]) for entry in entries[:2]] == [(5, "unfinished", None), (4, "whole", 128)]
    assert entries[-1]["kept_because"] == []


def test_list_of_a_run_whose_configuration_is_not_understood(run: Path) -> None:
    (run / "config.yaml").write_text("checkpoint: {colour: red}\n")
    result = checkpoint("list", run)
    assert result.exit_code == 0
    assert "what is kept, and why, is not shown" in result.stderr
    assert "step-00000004" in result.stdout


def test_verify(run: Path) -> None:
    result = checkpoint("verify", run)
    assert result.exit_code == 0
    assert result.stdout.count(": whole, ") == 4
    _damage(run, 3)
    assert checkpoint("list", run).exit_code == 0  # sizes are right
    result = checkpoint("verify", run)
    assert result.exit_code == 20
    assert "step-00000003: " in result.stdout
    assert "its content changed" in result.stdout
    assert result.stderr == f"error: {run}: 1 of 4 checkpoints are damaged, 3 whole. Training resumes from the newest whole one.\n"
    assert checkpoint("verify", run / "checkpoints" / "step-00000002").exit_code == 0
    result = checkpoint("verify", run / "checkpoints" / "step-00000003")
    assert (result.exit_code, "Nothing here can be resumed from" in result.stderr) == (20, True)


def test_a_leftover_is_no_damage_but_no_checkpoint_either(run: Path) -> None:
    (run / "checkpoints" / "step-00000005.tmp").mkdir()
    assert checkpoint("verify", run).exit_code == 0
    assert checkpoint("verify", run / "checkpoints" / "step-00000005.tmp").exit_code == 20


def test_prune_shows_and_then_does_what_the_policy_says(run: Path) -> None:
    result = checkpoint("prune", run, "--keep", "1", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout == ("would delete step-00000001\nwould delete step-00000003\n2 to delete; the newest whole one is step-00000004\n")
    assert len(_steps(run)) == 4
    result = checkpoint("prune", run)
    assert result.stdout == "deleted step-00000001\n1 deleted; the newest whole one is step-00000004\n"
    assert checkpoint("prune", run / "checkpoints", "--keep", "1").exit_code == 0
    assert _steps(run) == ["step-00000002", "step-00000004"]


def test_prune_keeps_the_newest_that_is_whole_to_the_last_byte(run: Path) -> None:
    _damage(run, 4)
    result = checkpoint("prune", run, "--keep", "1")
    assert result.stdout == "deleted step-00000001\n1 deleted; the newest whole one is step-00000003\n"
    assert _steps(run) == ["step-00000002", "step-00000003", "step-00000004"]


def test_prune_deletes_nothing_where_nothing_is_whole(run: Path) -> None:
    for step in (1, 2, 3, 4):
        _damage(run, step)
    result = checkpoint("prune", run, "--keep", "1")
    assert (result.exit_code, "so nothing is deleted" in result.stderr) == (20, True)
    assert len(_steps(run)) == 4


def test_prune_leaves_a_run_that_trains_alone(run: Path) -> None:
    with exclusive(RunDirectory(root=run)):
        result = checkpoint("prune", run, "--keep", "1")
        assert result.exit_code == 2
        assert "another process is training in this run directory" in result.stderr
        assert len(_steps(run)) == 4
        assert checkpoint("prune", run, "--keep", "1", "--dry-run").exit_code == 0
    assert checkpoint("prune", run, "--keep", "1").exit_code == 0
    assert len(_steps(run)) == 2


def test_prune_of_one_checkpoint_or_without_a_rule_is_refused(run: Path) -> None:
    result = checkpoint("prune", run / "checkpoints" / "step-00000002")
    assert (result.exit_code, "this is one checkpoint" in result.stderr) == (2, True)
    (run / "config.yaml").unlink()
    for path in (run / "checkpoints").glob("*/config.yaml"):
        path.unlink()
    result = checkpoint("prune", run)
    assert (result.exit_code, "--keep K" in result.stderr) == (2, True)


def test_describe(run: Path) -> None:
    result = checkpoint("describe", run)
    assert result.exit_code == 0
    assert "backbone.a" in result.stdout
    described = json.loads(checkpoint("describe", run / "checkpoints" / "step-00000002", "--json").stdout)
    assert (described["step"], described["samples"]) == (2, 64)
    assert described["tensors"][0] == {
        "name": "backbone.a",
        "shape": [4, 6],
        "dtype": "float32",
        "kinds": ["weight", "exp_avg"],
        "num_bytes": 192,
    }


@pytest.mark.parametrize("command", ["list", "verify", "prune", "describe"])
def test_a_path_without_checkpoints_is_one_paragraph(tmp_path: Path, command: str) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    for path, message in ((tmp_path / "none", "there is no such path"), (tmp_path / "model.pt", "is a pickled file of torch")):
        result = checkpoint(command, path)
        assert result.exit_code == 20
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_help_answers_without_torch() -> None:
    program = (
        "import sys\nfrom vitscale.cli import app\n"
        "try: app(['checkpoint', 'prune', '--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    assert time.monotonic() - start < 10  # half a second where nothing else runs; what matters is the import
