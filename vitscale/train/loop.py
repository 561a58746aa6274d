"""The training loop: batch, step, report, save, evaluate, until the samples are used up or somebody asks to stop."""

from collections.abc import Sequence

from torch import Tensor

from vitscale.config import StopRequested
from vitscale.data.types import Batch
from vitscale.optim.schedules import learning_rate
from vitscale.train.guards import Verdict
from vitscale.train.pending import PendingSteps
from vitscale.train.run import Run
from vitscale.train.state import TrainState


def train_loop(run: Run) -> TrainState:
    """Train from `run.start` to the end of the plan. All ranks call this.

    Each step ends with fetching the batch of the next one, so that a rank that cannot is heard before the others have begun it.
    Raises on all ranks alike: `StopRequested` after a stop with everything saved, `DataError` for data that cannot be used, also
    with everything saved, `NonFiniteLossError` at a loss that is NaN or infinite.
    """
    state, plan, total = run.start, run.plan, run.config.train.num_samples
    ledger, pending = run.ledger, PendingSteps(steps_done=state.step)
    ledger.become("step")
    if state.step < run.num_steps and run.stop.is_reached(state.step):
        raise StopRequested(run.stopped_message(state))
    for evaluation in run.missed_evaluations():
        run.evaluate(evaluation, state)
    upcoming = run.fetch(state)
    upcoming.raise_on_all_ranks()
    while state.step < run.num_steps:
        batch = upcoming.taken()
        run.show_inputs(batch, state)
        rate = learning_rate(run.config.optim, samples=state.samples, total_samples=total)
        with ledger.spent("compile" if run.begins_stage(state) else "step"):
            pending.add(run.engine.train_step(micro_batches(batch, size=plan.micro_batch), step=state.step, lr=rate))
        state = state.advance(plan.global_batch)
        run.sample_log.write(state.step, batch["sample_id"])
        run.reporter.progress(state.step)
        upcoming = run.fetch(state)

        verdict = run.vote(state, failed=upcoming.error is not None)
        last = verdict is not Verdict.GO_ON or state.step == run.num_steps
        evaluations = run.due_evaluations(state.step)
        save = last or state.step % run.config.checkpoint.every_steps == 0
        report = save or evaluations or state.step % run.config.train.log_every_steps == 0
        # The one wait for the device. What a GPU still has to do of these steps is part of their time.
        summary = pending.collect() if report else None
        ledger.step_done()
        if summary is not None:
            # Before anything is kept: too many lost samples, or a loss that is not finite, raise here.
            run.report(state, summary, lr=rate)
        if run.is_comparison_due(state.step, save=bool(save)):
            run.compare_replicas(state)
        if save:
            run.save(state, last=last)
        if verdict is Verdict.FAIL:
            upcoming.raise_on_all_ranks()
        if verdict is Verdict.STOP and state.step < run.num_steps:
            raise StopRequested(run.stopped_message(state))
        # After the save: an evaluation that is cut short costs no more training than the save needs to be written; a resume
        # makes up for the evaluation.
        for evaluation in evaluations:
            run.evaluate(evaluation, state)
    return state


def micro_batches(batch: Batch, *, size: int) -> Sequence[Batch]:
    """Cut a rank's batch into consecutive micro-batches of `size` samples (views, no copies)."""
    parts: list[dict[str, Tensor]] = []
    for first in range(0, batch["sample_id"].shape[0], size):
        parts.append({key: value[first : first + size] for key, value in batch.items()})
    return parts
