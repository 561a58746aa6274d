"""The `vitscale` command: what each subcommand prints, and the table of bad input with exit code, one paragraph, nothing lost."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.data.packed import pack, png_bytes
from tests.launcher import rank_environments
from tests.train.rank_processes import start_command
from tests.train.tiny_run import (
    assert_equal_tensors,
    checkpoint_tensors,
    events,
    losses,
    read_lines,
    sample_ids,
    tiny_values,
)
from vitscale.cli import app
from vitscale.config import dump_yaml, parse_yaml
from vitscale.data.dataset import open_dataset
from vitscale.data.manifest import MANIFEST_NAME
from vitscale.run_config import RunConfig, load_run_config

LONG_RUN = ("name=long", "train.num_samples=1600", "checkpoint.every_steps=100000")


def vitscale(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.yaml, its data, and a run that was stopped after step 4 of 6; all paths are relative."""
    root = tmp_path_factory.mktemp("stopped")
    values = tiny_values(root) | {"output": "runs"}
    values["data"]["path"] = "shards"
    values["evals"] = {"test": {"kind": "classification", "path": "shards"}}
    (root / "run.yaml").write_text(dump_yaml(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        result = vitscale("train", "run.yaml", "--stop-at", "4")
    assert result.exit_code == 75, result.output
    return root


@pytest.fixture
def home(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current directory."""
    folder = tmp_path / "home"
    shutil.copytree(stopped, folder)
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which names its newest holder, and logs, which grow."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock" and not {"logs", "heartbeats"} & {*path.parts}]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def flip_a_byte(home: Path, *, sample_id: int = 50) -> None:
    """In the image of a sample."""
    dataset = open_dataset(home / "shards")
    span = dataset.locate(sample_id)
    row = dataset.read_index(span.shard)[span.first]
    path = home / "shards" / span.shard.name
    raw = bytearray(path.read_bytes())
    raw[int(row["offset"]) + int(row["length"]) - 512 - 20] ^= 0xFF
    path.write_bytes(raw)


def cut_a_tar(home: Path) -> None:
    path = home / "shards" / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:-512])


def lie_about_labels(home: Path, *, wrong: int | None = None, num_samples: int = 32) -> None:
    """A data set whose manifest names 10 classes and in which sample `wrong`, or every one, has label 12."""
    (home / "lying").mkdir()
    image = png_bytes(np.zeros((8, 8), np.uint8))
    labels = [b"12" if wrong in (None, sample_id) else b"3" for sample_id in range(num_samples)]
    pack(home / "lying", [{"cls": label, "png": image} for label in labels], samples_per_shard=num_samples)


def damage_all_checkpoints(home: Path) -> None:
    for path in (home / "runs/tiny/checkpoints").glob("*/rank-00000.safetensors"):
        path.write_bytes(b"")


def nothing(_home: Path) -> None:
    """Leave everything as it is."""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A command that must end with `exit_code` and say `says`, after `spoil` was done to the folder."""

    command: str
    exit_code: int
    says: tuple[str, ...]
    spoil: Callable[[Path], None] = nothing


BAD = {
    "unknown keys and wrong types": Bad(
        command="train run.yaml optim.lrr=1 train.global_batch=many model.depth=1.5",
        exit_code=3,
        says=("run.yaml: 3 problems", "optim.lrr: unknown key; did you mean 'lr'", "train.global_batch: expected", "model.depth: expected"),
    ),
    "no such file": Bad(command="train none.yaml", exit_code=3, says=("none.yaml: cannot read the configuration: No such file",)),
    "a folder": Bad(command="train runs", exit_code=3, says=("runs: cannot read the configuration: Is a directory",)),
    "not text": Bad(command="plan shards/train-00000.tar.idx.npy", exit_code=3, says=("cannot read the configuration: not UTF-8",)),
    "not YAML": Bad(
        command="train bad.yaml",
        exit_code=3,
        says=("bad.yaml: not valid YAML at line 1",),
        spoil=lambda home: (home / "bad.yaml").write_text("{ name: [") and None,
    ),
    "no override": Bad(command="train run.yaml optim.lr", exit_code=3, says=("override 'optim.lr': write it as",)),
    "data without manifest": Bad(
        command="train run.yaml",
        exit_code=10,
        says=("shards: not a packed data set, it has no manifest.json",),
        spoil=lambda home: (home / "shards" / MANIFEST_NAME).unlink(),
    ),
    "no data": Bad(
        command="train run.yaml",
        exit_code=10,
        says=("shards: no such data set folder",),
        spoil=lambda home: shutil.rmtree(home / "shards"),
    ),
    "a tar of another size": Bad(
        command="train run.yaml", exit_code=10, says=("train-00001.tar: changed since the data set was packed",), spoil=cut_a_tar
    ),
    "image size": Bad(
        command="train run.yaml model.image_size=10", exit_code=3, says=("model.image_size: 10 is not a multiple of model.patch_size 4",)
    ),
    "global batch among ranks": Bad(
        command="plan run.yaml --world-size 3", exit_code=3, says=("train.global_batch: 16 does not divide among 3 ranks; use 15 or 18",)
    ),
    "global batch over lanes": Bad(command="train run.yaml train.global_batch=18", exit_code=3, says=("not a multiple of data.lanes 4",)),
    "a changed configuration": Bad(
        command="train run.yaml optim.lr=0.5 model.depth=3",
        exit_code=20,
        says=("model.depth: was 2, is 3", "optim.lr: was 0.01, is 0.5", "--allow-change model.depth --allow-change optim.lr"),
    ),
    "an unknown key to allow": Bad(
        command="train run.yaml --allow-change optim.lrr", exit_code=3, says=("--allow-change optim.lrr", "did you mean 'optim.lr'")
    ),
    "only damaged checkpoints": Bad(
        command="train run.yaml", exit_code=20, says=("none of the checkpoints here is whole",), spoil=damage_all_checkpoints
    ),
    "an output that is a file": Bad(
        command="train run.yaml output=run.yaml", exit_code=3, says=("output: the run directory", "cannot be written", "Not a directory")
    ),
    "another model to evaluate": Bad(
        command="evaluate run.yaml model.depth=1", exit_code=20, says=("holds another model than the configuration describes",)
    ),
    "nothing to evaluate": Bad(command="evaluate run.yaml evals={}", exit_code=3, says=("evals: nothing to evaluate",)),
    "no checkpoint to evaluate": Bad(command="evaluate run.yaml --checkpoint runs", exit_code=20, says=("runs: no whole checkpoint here",)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_is_one_paragraph_with_its_exit_code_and_loses_nothing(home: Path, bad: Bad) -> None:
    bad.spoil(home)
    before = contents(home)
    result = vitscale(*bad.command.split())
    assert result.exit_code == bad.exit_code, result.output
    assert_one_paragraph(result.stderr, *bad.says)
    assert result.stdout == ""
    assert contents(home) == before


def assert_one_paragraph(text: str, *says: str) -> None:
    assert text.startswith("error: ")
    assert text.count("error: ") == 1
    assert "Traceback" not in text
    assert "\n\n" not in text
    for part in says:
        assert part in text


@pytest.mark.parametrize("command", ["train", "train run.yaml --no-such-option", "train run.yaml --stop-at 0", "no-such-command", "plan"])
def test_a_wrong_command_line_is_a_usage_error(home: Path, command: str) -> None:
    before = contents(home)
    result = vitscale(*command.split())
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert contents(home) == before


def test_a_changed_byte_is_found_while_training_and_named(home: Path) -> None:
    step, ids = max(sample_ids(home / "runs/tiny").items())
    flip_a_byte(home, sample_id=ids[0])
    result = vitscale("train", "run.yaml", "name=fresh", "checkpoint.every_steps=1")
    assert result.exit_code == 10
    assert_one_paragraph(result.stderr, f"sample {ids[0]} ", f"(key {ids[0]:06d})", "its bytes changed since it was packed")
    kept = [folder.name for folder in sorted((home / "runs/fresh/checkpoints").iterdir())]
    assert kept == [f"step-{done:08d}" for done in range(1, step)][-3:], "nothing that was trained past the budget"
    (ended,) = events(home / "runs/fresh", "ended")
    assert ended["exit_code"] == 10


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_label_beyond_the_classes_is_named(home: Path, num_workers: int) -> None:
    lie_about_labels(home)
    result = vitscale("train", "run.yaml", "name=lying", "data.path=lying", f"data.num_workers={num_workers}")
    assert result.exit_code == 10
    assert_one_paragraph(result.stderr, "train-00000.tar: the label of sample '0000", "is 12, but the model has 10 classes (0 to 9)")


def test_a_label_that_the_manifest_does_not_name_but_the_model_has_is_shown_by_number(home: Path) -> None:
    lie_about_labels(home)
    result = vitscale("train", "run.yaml", "name=lying", "data.path=lying", "objective.num_classes=13", "train.num_samples=32", "evals={}")
    assert result.exit_code == 0, result.output


def test_a_loss_that_is_not_a_number_names_step_samples_and_checkpoint(home: Path) -> None:
    result = vitscale("train", "run.yaml", "name=nan", "optim.lr=1e25", "checkpoint.every_steps=1", "evals={}")
    assert result.exit_code == 20
    (event,) = events(home / "runs/nan", "non_finite")
    newest = max((home / "runs/nan/checkpoints").iterdir())
    ids = ", ".join(str(i) for i in event["sample_ids"])
    assert_one_paragraph(result.stderr, f"error: step {event['step']}: the ", f"checkpoint is {newest}", f"batch: {ids}.")
    assert "Training stopped" not in result.stdout, "said once"


def test_allowing_the_change_goes_on(home: Path) -> None:
    result = vitscale("train", "run.yaml", "optim.lr=0.5", "--allow-change", "optim.lr")
    assert result.exit_code == 0, result.output
    assert "resuming from step-00000004 (step 4)\nchanged on request: optim.lr from 0.01 to 0.5" in result.stdout
    assert [record["lr"] > 0.05 for record in read_lines(home / "runs/tiny/metrics.jsonl") if "lr" in record] == [False] * 4 + [True] * 2


def test_debug_shows_where_an_error_came_from(home: Path) -> None:
    (home / "shards" / MANIFEST_NAME).unlink()
    result = vitscale("train", "run.yaml", "--debug")
    assert result.exit_code == 10
    assert "Traceback" in result.stderr
    assert "in open_dataset" in result.stderr


def test_train_then_evaluate(home: Path) -> None:
    assert vitscale("train", "run.yaml").exit_code == 0
    last = read_lines(home / "runs/tiny/metrics.jsonl")[-1]
    result = vitscale("evaluate", "run.yaml")
    assert json.loads(result.stdout)["test"]["top1"] == last["eval/test/top1"]
    older = vitscale("evaluate", "run.yaml", "--checkpoint", "runs/tiny/checkpoints/step-00000004")
    assert set(json.loads(older.stdout)["test"]) == {"top1", "top5", "num_samples"}
    dry = vitscale("evaluate", "run.yaml", "--dry-run")
    assert dry.stdout == f"test: classification on shards with model weights of {home}/runs/tiny\n"


def test_config_show_prints_what_decodes_to_the_same(home: Path) -> None:
    shown = vitscale("config", "show", "run.yaml", "optim.lr=3e-4").stdout
    (home / "shown.yaml").write_text(shown)
    assert load_run_config(home / "shown.yaml") == load_run_config(home / "run.yaml", overrides=["optim.lr=0.0003"])
    assert "recompute_every: 1" in shown


def test_config_schema_describes_every_section() -> None:
    schema = json.loads(vitscale("config", "schema").stdout)
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert schema["additionalProperties"] is False
    assert "Initial weights" in json.dumps(schema) or "initial weights" in json.dumps(schema), "help texts are in it"


@pytest.mark.parametrize("command", ["plan run.yaml --world-size 2", "train run.yaml --dry-run"])
def test_plans_are_printed_and_nothing_is_started(home: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = contents(home)
    result = vitscale(*command.split())
    assert result.exit_code == 0, result.output
    config, _, plan = result.stdout.partition("---\n")
    assert parse_yaml(config, source="stdout")["train"]["global_batch"] == 16
    assert "2 ranks x 8 images x 1 accumulated" in plan
    assert "data.lanes" not in plan, "given, so not decided"
    assert contents(home) == before


@pytest.mark.usefixtures("home")
def test_a_dry_run_under_torchrun_prints_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in ("train", "evaluate"):
        result = vitscale(command, "run.yaml", "--dry-run")
        assert (result.exit_code, result.stdout) == (0, ""), result.output


@pytest.mark.parametrize("command", ["train", "evaluate", "plan", "config show", "config schema"])
def test_every_help_has_an_example(command: str) -> None:
    result = vitscale(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"vitscale {command}" in " ".join(result.stdout.partition("Example")[2].split())


@pytest.mark.dist
def test_a_second_process_is_refused_and_a_signal_stops_the_first_which_goes_on_bit_for_bit(home: Path) -> None:
    (environment,) = rank_environments(1)
    outputs = [home / "first.out", home / "first.err"]
    first = start_command(["train", "run.yaml", *LONG_RUN], environment=environment, outputs=outputs, folder=home)
    assert first.pid is not None
    try:
        while not (outputs[0].exists() and "\nstep " in outputs[0].read_text()):
            assert first.is_alive()
            time.sleep(0.01)
        # Held, so that it is still there however long the second takes.
        os.kill(first.pid, signal.SIGSTOP)
        refused = vitscale("train", "run.yaml", *LONG_RUN)
        os.kill(first.pid, signal.SIGTERM)
        os.kill(first.pid, signal.SIGCONT)
        first.join(60)
    finally:
        first.kill()
    assert refused.exit_code == 2
    assert_one_paragraph(refused.stderr, "another process is training in this run directory", f"process {first.pid} on")
    run_dir = home / "runs/long"
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert first.exitcode == 75
    stopped = f"stopped on request after step {step} of 100, everything saved. The same command goes on from there."
    assert outputs[1].read_text() == f"{run_dir}: {stopped}\n"
    assert vitscale("train", "run.yaml", *LONG_RUN).exit_code == 0
    assert vitscale("train", "run.yaml", *LONG_RUN, "name=whole").exit_code == 0
    assert 0 < step < 100
    assert losses(run_dir) == losses(home / "runs/whole")
    assert sample_ids(run_dir) == sample_ids(home / "runs/whole")
    assert_equal_tensors(checkpoint_tensors(run_dir, step=100), checkpoint_tensors(home / "runs/whole", step=100))


def run_two_ranks(home: Path, *arguments: str) -> list[tuple[int | None, str]]:
    """Exit code and stderr of each rank of a command."""
    processes = [
        start_command(arguments, environment=variables, outputs=[home / f"{rank}.out", home / f"{rank}.err"], folder=home)
        for rank, variables in enumerate(rank_environments(2))
    ]
    try:
        for process in processes:
            process.join(120)
    finally:
        for process in processes:
            process.kill()
    return [(process.exitcode, (home / f"{rank}.err").read_text()) for rank, process in enumerate(processes)]


@pytest.mark.dist
@pytest.mark.parametrize(
    ("overrides", "exit_code", "says"),
    [
        (["train.global_batch=17", "data.lanes=1"], 3, "train.global_batch: 17 does not divide among 2 ranks"),
        (["optim.lr=0.5"], 20, "optim.lr: was 0.01, is 0.5"),
    ],
)
def test_what_all_ranks_refuse_is_said_once(home: Path, overrides: list[str], exit_code: int, says: str) -> None:
    (code, shown), (other_code, other) = run_two_ranks(home, "train", "run.yaml", *overrides)
    assert (code, other_code, other) == (exit_code, exit_code, "")
    assert_one_paragraph(shown, says)


@pytest.mark.dist
def test_what_one_rank_finds_in_mid_run_ends_both_alike_with_everything_saved(home: Path) -> None:
    """One label of 96 is no class of the model: whichever rank meets it says so before the other has begun the step."""
    lie_about_labels(home, wrong=77, num_samples=96)
    (code, shown), (other_code, other) = run_two_ranks(home, "train", "run.yaml", "name=fresh", "data.path=lying", "data.log_samples=true")
    assert (code, other_code, other) == (10, 10, "")
    assert_one_paragraph(shown, "train-00000.tar: the label of sample '000077' is 12, but the model has 10 classes")
    last = max(sample_ids(home / "runs/fresh"))
    assert last >= 1
    assert (home / f"runs/fresh/checkpoints/step-{last:08d}/manifest.json").exists()
    assert 77 not in {sample_id for ids in sample_ids(home / "runs/fresh").values() for sample_id in ids}
