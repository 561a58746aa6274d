"""The trials of a sweep as Ray Tune trials, each of which launches a Ray Train run; finished ones are not repeated."""

import dataclasses
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback

from vitscale.config import UserError
from vitscale.run_config import dump_run_config

from .cluster import ray_cluster
from .plot import draw_plot, require_matplotlib
from .results import TrialResult, is_finished, mark_finished, print_results, trial_result, write_results
from .sweep import Sweep, Trial
from .task import TrainTask, make_task
from .trainer import run_training
from .workers import ClusterResources, Workers, choose_workers, num_cores

# A trial only waits for its workers; Ray refuses 0. All trials together share this many CPUs that no worker gets.
_TRIAL_CPUS = 0.01
_WAITING_CPUS = 1


def run_sweep(sweep: Sweep, *, address: str | None, debug: bool = False) -> tuple[TrialResult, ...]:
    """Run what is not finished yet, then print, write and plot the results of all trials.

    A trial that fails keeps no other from running. Raises `UserError` at the end when there were such trials.
    """
    if sweep.config.plot is not None:
        require_matplotlib()
    waiting = [trial for trial in sweep.trials if not is_finished(trial)]
    print(f"{sweep.folder}: {len(sweep.trials)} trials, {len(sweep.trials) - len(waiting)} of them finished already", flush=True)
    errors = _run_trials(waiting, sweep=sweep, address=address, debug=debug) if waiting else {}
    results = tuple(trial_result(trial, metric=sweep.config.metric, error=errors.get(trial.name)) for trial in sweep.trials)
    _present(sweep, results)
    failed = [result.name for result in results if result.error]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(results)} trials failed: {', '.join(failed)}. Their errors stand in {sweep.folder / 'results.md'};"
            " the same command tries them again and repeats no other."
        )
    return results


def _present(sweep: Sweep, results: tuple[TrialResult, ...]) -> None:
    write_results(sweep, results)
    print_results(sweep, results)
    written = [sweep.folder / "results.csv", sweep.folder / "results.md"]
    if sweep.config.plot is not None:
        written.append(sweep.folder / sweep.config.plot.file)
        draw_plot(sweep.config.plot, results, metric=sweep.config.metric, path=written[-1])
    print("written: " + ", ".join(str(path) for path in written), flush=True)


def _run_trials(trials: list[Trial], *, sweep: Sweep, address: str | None, debug: bool) -> dict[str, str]:
    """Run the trials; returns the error of each that failed, by name."""
    config = sweep.config
    num_parallel = min(config.parallel_trials, len(trials))
    num_cpus = max(num_cores(), num_parallel * config.workers) + _WAITING_CPUS
    scratch, name = sweep.folder / ".ray", uuid.uuid4().hex
    # Several runs' lines on one console are nobody's; each run has its own records.
    with ray_cluster(address=address, num_cpus=num_cpus, show_workers=debug) as cluster:
        payloads = [_payload(trial, sweep=sweep, cluster=cluster, num_parallel=num_parallel, debug=debug) for trial in trials]
        progress = _Progress(num_trials=len(trials))
        tuner = tune.Tuner(
            tune.with_resources(_run_trial, {"CPU": _TRIAL_CPUS}),
            param_space={"trial": tune.grid_search(payloads)},
            tune_config=tune.TuneConfig(max_concurrent_trials=num_parallel),
            run_config=tune.RunConfig(name=name, storage_path=str(scratch), verbose=0, callbacks=[progress]),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    unfinished = {trial.name: "did not run to its end" for trial in trials if not is_finished(trial)}
    return unfinished | progress.errors


def _payload(trial: Trial, *, sweep: Sweep, cluster: ClusterResources, num_parallel: int, debug: bool) -> dict[str, Any]:
    workers = choose_workers(
        num_workers=sweep.config.workers,
        num_runs=num_parallel,
        device=trial.config.parallel.device,
        cluster=dataclasses.replace(cluster, num_cpus=cluster.num_cpus - _WAITING_CPUS),
    )
    return {
        "name": trial.name,
        "task": make_task(trial.config, debug=debug).to_json(),
        "run_dir": str(trial.config.run_dir),
        "config_text": dump_run_config(trial.config),
        "workers": dataclasses.asdict(workers),
        "max_restarts": sweep.config.max_restarts,
    }


def _run_trial(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a Tune trial does: launch the run and wait for it. A user's error is its result, which Tune leaves as it is."""
    payload = parameters["trial"]
    run_dir = Path(payload["run_dir"])
    try:
        run_training(
            TrainTask.from_json(payload["task"]),
            run_dir=run_dir,
            workers=Workers(**payload["workers"]),
            max_restarts=payload["max_restarts"],
        )
    except UserError as error:
        return {"error": str(error)}
    mark_finished(run_dir, config_text=payload["config_text"])
    return {"error": None}


class _Progress(TrialProgressCallback):
    """Runs in the command's process: a line for each trial that starts or ends, and the errors by trial.

    It takes the place of Tune's own reporter, which prints every result.
    """

    def __init__(self, *, num_trials: int) -> None:
        super().__init__()
        self.errors: dict[str, str] = {}
        self._num_trials = num_trials
        self._num_ended = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Tune calls this when a trial was started."""
        print(f"started {_name(trial)}", flush=True)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        """Tune calls this with what a trial returned, before it is complete: nothing to tell yet."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Tune calls this when a trial returned."""
        self._ended(trial, error=trial.last_result.get("error"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Tune calls this when a trial raised, or its process died."""
        self._ended(trial, error=str(trial.get_error() or "its process died").strip())

    def _ended(self, trial: Any, *, error: str | None) -> None:
        self._num_ended += 1
        if error:
            self.errors[_name(trial)] = error
        outcome = f"failed: {error}" if error else "finished"
        print(f"[{self._num_ended}/{self._num_trials}] {_name(trial)} {outcome}", flush=True)


def _name(trial: Any) -> str:
    name: str = trial.config["trial"]["name"]
    return name
