"""Auditing real runs: a resumed run against an undisturbed one, another seed, other weights, missing logs, and folders that are no runs."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.checkpoint.simulation import make_tensors, save_as
from tests.launcher import run_ranks
from tests.train.tiny_run import checkpoint_tensors, pack_tiny, tiny_config
from vitscale import api
from vitscale.cli import app
from vitscale.config import StopRequested, UsageError
from vitscale.train.audit import audit_runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs `whole` and `resumed` (stopped after step 3) of one configuration, and `other` of another seed."""
    root = tmp_path_factory.mktemp("audit")
    api.train(tiny_config(root, "name=whole"))
    with pytest.raises(StopRequested):
        api.train(tiny_config(root, "name=resumed"), stop_at_step=3)
    api.train(tiny_config(root, "name=resumed", "data.num_workers=1"))
    api.train(tiny_config(root, "name=other", "seed=1"))
    return root / "runs"


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def test_a_resumed_run_equals_the_undisturbed_one(made: Path) -> None:
    report = audit_runs(made / "whole", made / "resumed")
    assert (report.exit_code, report.same_samples, report.same_weights) == (0, True, True)
    assert (report.samples.num_steps, report.samples.num_samples) == (6, 96)
    assert report.checkpoints is not None
    assert report.checkpoint_steps[0][-1] == report.checkpoints[-1].step == 6
    assert report.checkpoints[-1].num_tensors == len(checkpoint_tensors(made / "whole", step=6))
    assert (report.losses.num_steps, report.losses.first_different_step) == (6, None)
    assert report.config == {"data.num_workers": (0, 1)}
    assert report.data_set.is_equal is True


def test_another_seed_is_found_in_samples_weights_losses_and_configuration(made: Path) -> None:
    report = audit_runs(made / "whole", made / "other")
    assert report.exit_code == 10
    assert report.samples.verdict == "different"
    assert report.samples.detail.startswith("step 1, position ")
    assert report.same_weights is False
    assert report.losses.first_different_step == 3, "the head starts at zero, so the first losses are ln 10 whatever the seed"
    assert report.config == {"seed": (0, 1)}
    assert "seed" in " ".join(report.data_set.order)


def change_last_tensors(run: Path) -> None:
    tensors = checkpoint_tensors(run, step=6)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 1e-3
    state = json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text())
    save_as(tensors, folder=run / "checkpoints", step=6, state=state)  # type: ignore[arg-type]


def test_other_weights_after_equal_samples_have_a_code_of_their_own(runs: Path) -> None:
    change_last_tensors(runs / "resumed")
    report = audit_runs(runs / "whole", runs / "resumed")
    assert (report.exit_code, report.same_samples, report.same_weights) == (20, True, False)
    assert report.checkpoints is not None
    assert [checkpoint.is_equal for checkpoint in report.checkpoints][-2:] == [True, False]
    assert len(report.checkpoints[-1].different) == 1
    only_samples = audit_runs(runs / "whole", runs / "resumed", samples_only=True)
    assert (only_samples.exit_code, only_samples.same_weights, only_samples.checkpoints) == (0, None, None)


def test_without_a_log_nothing_is_proved_and_the_weights_are_still_compared(runs: Path) -> None:
    shutil.rmtree(runs / "resumed" / "samples")
    report = audit_runs(runs / "whole", runs / "resumed")
    assert (report.exit_code, report.samples.verdict, report.same_weights) == (10, "incomplete", True)
    assert "data.log_samples=true" in report.samples.detail


def test_without_a_common_checkpoint_equal_weights_are_not_claimed(runs: Path) -> None:
    shutil.rmtree(runs / "resumed" / "checkpoints")
    report = audit_runs(runs / "whole", runs / "resumed")
    assert (report.exit_code, report.same_samples, report.same_weights, report.data_set.is_equal) == (20, True, False, None)


def test_equal_ids_of_another_data_set_are_other_samples(runs: Path) -> None:
    _other_manifest(runs / "resumed")
    report = audit_runs(runs / "whole", runs / "resumed", samples_only=True)
    assert (report.exit_code, report.samples.verdict, report.data_set.is_equal) == (10, "equal", False)
    assert list(report.data_set.different) == ["manifest_sha256"]


def _other_manifest(run: Path) -> None:
    state = json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text())
    state["cursor"]["manifest_sha256"] = "0" * 64
    save_as(make_tensors(seed=0), folder=run / "checkpoints", step=6, state=state)


def test_logs_cut_off_by_a_kill_are_compared_as_far_as_they_go(runs: Path) -> None:
    for path in (runs / "resumed" / "samples" / "rank-00000.jsonl", runs / "resumed" / "metrics.jsonl"):
        path.write_text(path.read_text()[:-9])
    report = audit_runs(runs / "whole", runs / "resumed", samples_only=True)
    assert (report.exit_code, report.samples.last_step) == (0, 5)
    assert report.samples.notes == ("A goes on, from step 6, where the other ends",)


def test_the_json_holds_everything_and_reads_back(made: Path) -> None:
    found = json.loads(audit_runs(made / "whole", made / "other").to_json())
    assert (found["exit_code"], found["same_samples"], found["samples"]["verdict"]) == (10, False, "different")
    assert {"losses", "config", "data_set", "checkpoints", "checkpoint_steps", "run_a", "run_b"} <= found.keys()
    assert found["checkpoints"][-1]["different"][0]["num_different"] > 0


def test_the_command_prints_the_verdict_and_ends_with_its_code(made: Path) -> None:
    equal, other = (str(made / name) for name in ("resumed", "other"))
    for arguments, code, verdict in (
        ([equal], 0, "saw the same samples in the same order and hold the same weights."),
        ([equal, "--samples-only"], 0, "saw the same samples in the same order."),
        ([other], 10, "did not see the same samples in the same order."),
        ([str(made / "none")], 2, "none: not a run directory"),
    ):
        result = CliRunner().invoke(app, ["audit", str(made / "whole"), *arguments])
        assert (result.exit_code, verdict in result.output) == (code, True), result.output
    as_json = CliRunner().invoke(app, ["audit", str(made / "whole"), other, "--json"])
    assert (as_json.exit_code, json.loads(as_json.stdout)["exit_code"]) == (10, 10)
    assert api.audit(made / "whole", made / "resumed").exit_code == 0


@pytest.mark.parametrize("content", [None, "name: x\n", "[]\n"])
def test_a_folder_that_is_no_run_is_named(made: Path, tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "none"
    if content is not None:
        folder.mkdir()
        (folder / "config.yaml").write_text(content)
    with pytest.raises(UsageError, match=r"not a run directory|not the configuration of a run"):
        audit_runs(made / "whole", folder)


@pytest.mark.dist
def test_other_worlds_saw_the_same_samples_and_what_differs_is_measured(tmp_path: Path) -> None:
    """One rank throughout, against two ranks that stop after step 3 and go on as one."""
    pack_tiny(tmp_path)
    job = {"do": "train", "overrides": ["name=shrinks"], "stop_at": 3}
    assert run_ranks(Path(__file__).with_name("rank_runs.py"), tmp_path, json.dumps([job]), num_ranks=2) == [[75], [75]]
    for name in ("shrinks", "one"):
        api.train(tiny_config(tmp_path, f"name={name}"))
    report = audit_runs(tmp_path / "runs" / "one", tmp_path / "runs" / "shrinks")
    assert (report.samples.verdict, report.samples.num_samples, report.samples.last_step) == ("equal", 96, 6)
    assert report.checkpoints
    deltas = [tensor.max_delta for checkpoint in report.checkpoints for tensor in checkpoint.different]
    # Adam makes steps of full size of gradients that are nothing but rounding: weights may differ by the learning rate, losses not.
    assert all(delta is not None and delta < 0.1 for delta in deltas)
    assert report.losses.num_steps == 6
    if report.losses.values is not None:
        assert report.losses.values[0] == pytest.approx(report.losses.values[1], rel=1e-5)
    assert report.exit_code == (20 if deltas else 0)
