"""The promise, on real process groups: the same samples and losses for any ranks, workers and stages; resume bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launcher import run_ranks
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, pack_tiny, sample_ids

pytestmark = pytest.mark.dist

SCRIPT = Path(__file__).with_name("rank_runs.py")
TWENTY_STEPS = ["train.num_samples=320", "checkpoint.every_steps=10"]


def train(name: str, *overrides: str, stop_at: int | None = None) -> dict[str, Any]:
    return {"do": "train", "overrides": [f"name={name}", *TWENTY_STEPS, *overrides], "stop_at": stop_at}


def run(root: Path, jobs: list[dict[str, Any]], *, num_ranks: int) -> None:
    pack_tiny(root)
    expected = [75 if job.get("stop_at") else 0 for job in jobs]
    assert run_ranks(SCRIPT, root, json.dumps(jobs), num_ranks=num_ranks) == [expected] * num_ranks


def test_ranks_and_workers_change_neither_samples_nor_losses(tmp_path: Path) -> None:
    run(tmp_path, [train(f"w1-{n}", f"data.num_workers={n}") for n in (0, 1)], num_ranks=1)
    run(tmp_path, [train(f"w2-{n}", f"data.num_workers={n}") for n in (0, 2)], num_ranks=2)
    run(tmp_path, [train("w4-1", "data.num_workers=1")], num_ranks=4)
    names = ("w1-0", "w1-1", "w2-0", "w2-2", "w4-1")
    ids = {name: sample_ids(tmp_path / "runs" / name) for name in names}
    curves = {name: losses(tmp_path / "runs" / name) for name in names}
    assert sorted(ids["w1-0"]) == list(range(1, 21))
    for name in names:
        assert ids[name] == ids["w1-0"], name
        assert curves[name] == pytest.approx(curves["w1-0"], rel=1e-5), name
    assert curves["w1-0"] == curves["w1-1"], "at the same number of ranks, bit for bit"
    assert curves["w2-0"] == curves["w2-2"]


STAGES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At every stage and precision: a whole run of 20 steps, and one stopped after 10 and resumed."""
    root = tmp_path_factory.mktemp("two_ranks")
    jobs = []
    for stage, precision in STAGES:
        options = [f"parallel.zero_stage={stage}", f"parallel.precision={precision}", "train.log_every_steps=1"]
        jobs.append(train(f"whole-{stage}-{precision}", *options))
        jobs += [train(f"parts-{stage}-{precision}", *options, stop_at=stop) for stop in (10, None)]
    run(root, jobs, num_ranks=2)
    return root


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_a_resumed_run_equals_the_whole_one_bit_for_bit(two_ranks: Path, stage: int, precision: str) -> None:
    whole, parts = (two_ranks / "runs" / f"{kind}-{stage}-{precision}" for kind in ("whole", "parts"))
    assert sample_ids(parts) == sample_ids(whole)
    assert losses(parts) == losses(whole)
    assert_equal_tensors(checkpoint_tensors(parts, step=20), checkpoint_tensors(whole, step=20))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_agree_in_fp32(two_ranks: Path, stage: int) -> None:
    runs = two_ranks / "runs"
    assert losses(runs / f"whole-{stage}-fp32") == pytest.approx(losses(runs / "whole-0-fp32"), rel=1e-6)


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 3), (4, 3), (1, 1), (2, 1), (2, 0)])
def test_a_checkpoint_of_two_ranks_at_stage_3_restores_exactly_elsewhere(
    two_ranks: Path, tmp_path: Path, num_ranks: int, stage: int
) -> None:
    source = two_ranks / "runs" / "whole-3-fp32"
    target = tmp_path / "runs" / "copy"
    (target / "checkpoints").mkdir(parents=True)
    (target / "checkpoints" / "step-00000010").symlink_to(source / "checkpoints" / "step-00000010")
    overrides = ["name=copy", *TWENTY_STEPS, f"parallel.zero_stage={stage}", "parallel.precision=fp32", "train.log_every_steps=1"]
    overrides.append(f"data.path={two_ranks}/shards")
    run(tmp_path, [{"do": "resave", "overrides": overrides}], num_ranks=num_ranks)
    assert not (target / "checkpoints" / "step-00000010").is_symlink(), "written anew"
    assert_equal_tensors(checkpoint_tensors(target, step=10), checkpoint_tensors(source, step=10))
