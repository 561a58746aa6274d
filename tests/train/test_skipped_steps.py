"""Which steps were skipped, and when that ends the run: by hand and against a count that is written differently."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.tiny_run import tiny_config
from vitscale.checkpoint.discover import hash_file
from vitscale.checkpoint.manifest import FileEntry, encode_manifest, read_manifest
from vitscale.config import NonFiniteLossError, StopRequested
from vitscale.data.types import Batch
from vitscale.engine.engine import StepMetrics
from vitscale.run_config import RunConfig
from vitscale.train.build import open_run
from vitscale.train.loop import train_loop
from vitscale.train.pending import StepSummary
from vitscale.train.skipped_steps import SkipGuard, find_skipped_steps, skipped_message

INF, NAN = math.inf, math.nan


def summary(losses: list[float], norms: list[float], *, first_step: int = 11) -> StepSummary:
    return StepSummary(first_step=first_step, losses=tuple(losses), grad_norms=tuple(norms), values={})


@pytest.mark.parametrize(
    ("losses", "norms", "before", "steps", "in_a_row"),
    [
        ([1.0, 2.0], [1.0, 1.0], 0, (), 0),
        ([1.0, 2.0], [1.0, 1.0], 3, (), 0),
        ([1.0, NAN, 1.0], [1.0, INF, 1.0], 0, (12,), 0),
        ([1.0, 2.0, 3.0], [1.0, INF, INF], 0, (12, 13), 2),
        ([INF, 2.0, 3.0], [INF, 1.0, NAN], 2, (11, 13), 1),
        ([1.0], [INF], 2, (11,), 3),
    ],
)
def test_skipped_steps_are_named_and_counted(
    losses: list[float], norms: list[float], before: int, steps: tuple[int], in_a_row: int
) -> None:
    found = find_skipped_steps(summary(losses, norms), in_a_row=before, max_in_a_row=3)
    assert (found.steps, found.in_a_row, found.fatal) == (steps, in_a_row, None)


def test_one_more_than_allowed_ends_the_run_at_that_step() -> None:
    found = find_skipped_steps(summary([1.0] * 4, [1.0, INF, INF, INF]), in_a_row=0, max_in_a_row=2)
    assert found.steps == (12, 13, 14)
    assert found.fatal is not None
    assert found.fatal.step == 14
    assert found.fatal.what == "the gradient is not finite, in the last of 3 steps in a row; watch.max_skipped_steps allows 2"


def test_the_row_goes_on_from_one_report_to_the_next() -> None:
    found = find_skipped_steps(summary([1.0], [NAN]), in_a_row=3, max_in_a_row=3)
    assert found.fatal is not None
    assert found.fatal.step == 11


def test_none_allowed() -> None:
    found = find_skipped_steps(summary([1.0, 1.0], [INF, 1.0]), in_a_row=0, max_in_a_row=0)
    assert found.fatal is not None
    assert found.fatal.step == 11
    assert found.fatal.what.endswith("watch.max_skipped_steps is 0")


@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_bad_loss_with_a_finite_gradient_ends_the_run_at_once(loss: float) -> None:
    found = find_skipped_steps(summary([1.0, loss, 1.0], [INF, 1.0, 1.0]), in_a_row=0, max_in_a_row=100)
    assert found.fatal is not None
    assert found.fatal.step == 12
    assert str(loss) in found.fatal.what
    assert found.steps == (11,)


@given(norms=st.lists(st.sampled_from([1.0, INF, NAN]), min_size=1, max_size=12), cuts=st.sets(st.integers(1, 11)), most=st.integers(0, 4))
def test_reports_of_any_length_judge_alike(norms: list[float], cuts: set[int], most: int) -> None:
    text = "".join("x" if not math.isfinite(norm) else "." for norm in norms)
    ends_at = text.find("x" * (most + 1))
    expected = None if ends_at < 0 else ends_at + most + 1
    steps: list[int] = []
    in_a_row, fatal = 0, None
    edges = [0, *sorted(cut for cut in cuts if cut < len(norms)), len(norms)]
    for low, high in itertools.pairwise(edges):
        part = summary([1.0] * (high - low), norms[low:high], first_step=low + 1)
        found = find_skipped_steps(part, in_a_row=in_a_row, max_in_a_row=most)
        steps += found.steps
        in_a_row, fatal = found.in_a_row, found.fatal
        if fatal is not None:
            break
    assert (fatal.step if fatal else None) == expected
    assert steps == [index for index, mark in enumerate(text, start=1) if mark == "x" and (expected is None or index <= expected)]


def test_the_message_names_the_samples() -> None:
    message = skipped_message(7, sample_ids=list(range(100, 140)))
    assert message.startswith("step 7 was skipped on all ranks")
    assert "100, 101," in message
    assert message.endswith("115, ...")
    assert skipped_message(7, sample_ids=[]).endswith("unknown")


def test_a_guard_counts_from_report_to_report_and_from_where_a_run_goes_on() -> None:
    whole = SkipGuard(max_in_a_row=2)
    assert whole.judge(summary([1.0, 1.0], [1.0, INF])).fatal is None
    assert whole.judge(summary([1.0], [INF], first_step=13)).fatal is None
    resumed = SkipGuard(max_in_a_row=2, in_a_row=whole.in_a_row)
    for guard in (whole, resumed):
        found = guard.judge(summary([1.0], [INF], first_step=14))
        assert found.fatal is not None
        assert found.fatal.what.startswith("the gradient is not finite, in the last of 3 steps in a row")


def train_with_bad_gradients(config: RunConfig, *, steps: tuple[int, ...], stop_at_step: int | None = None) -> None:
    with open_run(config, stop_at_step=stop_at_step) as run:
        poison_and_step = run.engine.train_step

        def train_step(micro_batches: Sequence[Batch], *, step: int, lr: float) -> StepMetrics:
            if step + 1 in steps:
                run.engine.poison_next_gradient()
            return poison_and_step(micro_batches, step=step, lr=lr)

        run.engine.train_step = train_step  # type: ignore[method-assign]
        train_loop(run)


@pytest.mark.parametrize("stop_at_step", [3, 4, 5])
def test_a_restart_is_no_way_around_the_limit(tmp_path: Path, stop_at_step: int) -> None:
    """Of the 6 steps the last 4 are skipped; a run that is stopped among them ends as the one that is not."""
    bad = (3, 4, 5, 6)
    with pytest.raises(NonFiniteLossError, match=r"step 6.*in the last of 4 steps in a row") as whole:
        train_with_bad_gradients(tiny_config(tmp_path, "name=whole"), steps=bad)
    parts = tiny_config(tmp_path, "name=parts")
    with pytest.raises(StopRequested):
        train_with_bad_gradients(parts, steps=bad, stop_at_step=stop_at_step)
    with pytest.raises(NonFiniteLossError) as resumed:
        train_with_bad_gradients(parts, steps=bad)
    assert str(resumed.value).partition(";")[0] == str(whole.value).partition(";")[0]
    train_with_bad_gradients(parts, steps=())


def forget_in_state(checkpoint: Path, *, key: str) -> None:
    """Make the checkpoint as it would have been without this field."""
    path = checkpoint / "state.json"
    state = json.loads(path.read_bytes())
    del state[key]
    path.write_text(json.dumps(state))
    manifest = read_manifest(checkpoint)
    changed = FileEntry(name=path.name, bytes=path.stat().st_size, sha256=hash_file(path))
    files = tuple(changed if entry.name == path.name else entry for entry in manifest.files)
    (checkpoint / "manifest.json").write_bytes(encode_manifest(manifest.model_copy(update={"files": files})))


def test_a_checkpoint_of_an_earlier_version_counts_none(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with pytest.raises(StopRequested):
        train_with_bad_gradients(config, steps=(2, 3), stop_at_step=3)
    forget_in_state(config.run_dir / "checkpoints" / "step-00000003", key="skipped_in_a_row")
    train_with_bad_gradients(config, steps=(4, 5, 6))
