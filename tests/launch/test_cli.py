"""The `vitscale-launch` command: fast help, dry runs, exit codes, and a fixed set of options."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.launch.test_sweep import write_sweep
from tests.train.tiny_run import tiny_values
from vitscale.config import dump_yaml
from vitscale_launch import chaos, launcher, remote
from vitscale_launch.cli import app
from vitscale_launch.supervise import Policy

PACK_OPTIONS = {
    *("--split", "--exclude", "--val-fraction", "--val-per-class", "--skip-unusable"),
    *("--check", "--transcode", "--quality", "--max-short-side", "--max-side"),
    *("--image-column", "--label-column", "--labels-column", "--caption-column", "--image-root", "--url-root"),
    *("--classes", "--skip-unknown", "--samples-per-shard", "--shard-mebibytes", "--order", "--seed"),
}
OPTIONS = {
    "train": {
        *("--workers", "--min-workers", "--address", "--wait-for-cluster", "--max-restarts", "--refill-steps"),
        *("--allow-change", "--stop-at", "--dry-run", "--debug"),
    },
    "chaos": {
        *("--fault", "--every", "--rank", "--seed", "--count", "--for", "--factor", "--interface", "--yes"),
        *("--workers", "--min-workers", "--address", "--wait-for-cluster", "--max-restarts", "--refill-steps"),
        *("--allow-change", "--dry-run", "--debug"),
    },
    "tune": {"--address", "--dry-run", "--debug"},
    "pack": {"--workers", "--address", "--dry-run", "--debug", *PACK_OPTIONS},
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(dump_yaml(tiny_values(tmp_path)))
    return str(tmp_path / "tiny.yaml")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom vitscale_launch.cli import app\n"
        "heavy = {'torch', 'ray', 'matplotlib', 'deepspeed'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("command", [[], ["train"], ["chaos"], ["tune"], ["pack"]])
def test_help_explains_with_examples(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert ("vitscale-launch" in result.output) or not command
    assert "Example" in result.output or not command


def test_options_are_added_on_purpose() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {
        name: {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")}
        for name, command in commands.items()
    }
    assert found == OPTIONS


def test_a_dry_run_prints_configuration_and_plan(config: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", config, "optim.lr=0.125", "--workers", "2", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "lr: 0.125" in result.output
    assert "2 ranks x 8 images" in result.output
    assert not (tmp_path / "runs").exists()


def test_a_dry_rehearsal_prints_the_faults_in_order(config: str, tmp_path: Path) -> None:
    arguments = ["chaos", config, "--workers", "2", "--fault", "kill", "--fault", "nan", "--every", "60", "--count", "4", "--dry-run"]
    results = [CliRunner().invoke(app, arguments) for _ in range(2)]
    assert [result.exit_code for result in results] == [0, 0]
    assert results[0].output == results[1].output
    assert results[0].output.count("kill on rank") == results[0].output.count("nan on rank") == 2
    assert not (tmp_path / "runs").exists()


def test_what_the_user_allows_reaches_the_launch(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(launcher, "launch_training", lambda _, **settings: seen.append(settings))
    monkeypatch.setattr(chaos, "rehearse", lambda _, **settings: seen.append(settings))
    monkeypatch.setattr(remote, "ClusterProcess", lambda: None)
    options = ["--workers", "2", "--min-workers", "1", "--max-restarts", "7", "--refill-steps", "11", "--wait-for-cluster", "5"]
    for command in (["train"], ["chaos", "--fault", "kill"]):
        result = CliRunner().invoke(app, [*command, config, *options, "--allow-change", "optim.lr"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    policy = Policy(num_workers=2, allowed_workers=(1, 2), max_restarts=7, refill_steps=11, wait_seconds=5.0)
    assert [(settings["policy"], settings["address"], settings["allow_change"]) for settings in seen] == [(policy, None, ["optim.lr"])] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--fault: say which"),
        (["--fault", "rain"], "rain"),
        (["--fault", "kill", "--rank", "1"], "--rank 1: there are 1 workers"),
        (["--fault", "network"], "--interface NAME"),
    ],
)
def test_a_rehearsal_that_cannot_be_is_refused(config: str, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["chaos", config, *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["optim.lrr=1"], 3, "did you mean 'lr'?"),
        (["--workers", "3"], 3, "global_batch"),
        (["model.image_size=9"], 3, "image_size"),
        (["--workers", "0"], 2, "--workers"),
        (["--min-workers", "2"], 2, "--min-workers 2: more than --workers 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_ray_starts(config: str, arguments: list[str], exit_code: int, message: str) -> None:
    result = CliRunner().invoke(app, ["train", config, *arguments])
    assert result.exit_code == exit_code
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_sweeps_dry_run_lists_its_trials(tmp_path: Path) -> None:
    path = str(write_sweep(tmp_path))
    result = CliRunner().invoke(app, ["tune", path, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "6 trials" in result.output
    assert "image_size-12_lr-0.001: model.image_size=12 optim.lr=0.001" in result.output
    assert not (tmp_path / "runs").exists()


def test_a_wrong_sweep_is_one_paragraph(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tune", str(write_sweep(tmp_path)), "worker=2"])
    assert result.exit_code == 3
    assert "did you mean 'workers'?" in result.output
