"""Run: which evaluations are due, where it ends, and what an action leaves behind."""

from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import tiny_config
from vitscale.plan.cluster import Cluster
from vitscale.plan.plan import make_plan
from vitscale.train.build import open_run
from vitscale.train.evaluations import Evaluation
from vitscale.train.run import Run
from vitscale.train.run_dir import RunDirectory
from vitscale.train.state import TrainState

NOTHING: Any = None


def run_of(root: Path, *overrides: str, start: TrainState | None = None, every_steps: tuple[int | None, ...] = ()) -> Run:
    """A run that has a plan and evaluations, and nothing that runs."""
    config = tiny_config(root, *overrides)
    evaluations = tuple(
        Evaluation(name=str(number), evaluator=NOTHING, weights="model", every_steps=every) for number, every in enumerate(every_steps)
    )
    return Run(
        config=config,
        config_text="",
        plan=make_plan(config, cluster=Cluster(device="cpu", world_size=1, memory_bytes=2**33, host_memory_bytes=2**33)),
        directory=RunDirectory(root=root),
        start=start or TrainState(),
        engine=NOTHING,
        saver=NOTHING,
        copies=NOTHING,
        check_owner=NOTHING,
        data=NOTHING,
        batches=NOTHING,
        evaluations=evaluations,
        reporter=NOTHING,
        sample_log=NOTHING,
        losses=NOTHING,
        skips=NOTHING,
        stop=NOTHING,
        watch=NOTHING,
        ledger=NOTHING,
    )


def test_evaluations_are_due_at_their_steps_and_all_at_the_end(tmp_path: Path) -> None:
    run = run_of(tmp_path, every_steps=(None, 2, 3))
    due = {step: [evaluation.name for evaluation in run.due_evaluations(step)] for step in range(1, 7)}
    assert due == {1: [], 2: ["1"], 3: ["2"], 4: ["1"], 5: [], 6: ["0", "1", "2"]}


@pytest.mark.parametrize(
    ("step", "samples", "global_batch", "last"),
    [(0, 0, 16, 6), (3, 48, 16, 6), (3, 48, 8, 9), (3, 48, 32, 4), (6, 96, 16, 6), (8, 128, 16, 8), (5, 88, 16, 5)],
)
def test_the_last_step_follows_from_the_samples_left(tmp_path: Path, step: int, samples: int, global_batch: int, last: int) -> None:
    run = run_of(tmp_path, f"train.global_batch={global_batch}", start=TrainState(step=step, samples=samples))
    assert run.num_steps == last
    assert f"after step 2 of {last}" in run.stopped_message(TrainState(step=2, samples=32))


def test_saving_keeps_as_many_checkpoints_as_configured(tmp_path: Path) -> None:
    with open_run(tiny_config(tmp_path, "checkpoint.keep=2")) as run:
        for step in (1, 2, 3):
            run.save(TrainState(step=step, samples=16 * step), last=True)
        assert [path.name for path in sorted(run.directory.checkpoints.iterdir())] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("count", [0, 3])
def test_inputs_are_shown_with_their_labels_if_any_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    with open_run(tiny_config(tmp_path, f"train.log_images={count}")) as run:
        shown: list[Any] = []
        monkeypatch.setattr(run.reporter, "pictures", shown.append)
        batch = next(run.batches)
        run.show_inputs(batch, run.start)
    assert [(len(pictures.images), len(pictures.captions)) for pictures in shown] == ([(3, 3)] if count else [])
    if shown:
        assert shown[0].captions == [str(label) for label in batch["label"][:3].tolist()]
