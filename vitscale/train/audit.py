"""The audit of two runs: did they see the same samples in the same order, and do they hold the same weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitscale.checkpoint.layout import CHECKPOINTS, step_folder
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import CheckpointError, DataError, UsageError, read_yaml
from vitscale.train.audit_samples import SampleComparison, compare_samples
from vitscale.train.audit_weights import CheckpointComparison, checkpoint_steps, compare_checkpoints, differences
from vitscale.train.logged_samples import read_logged_steps
from vitscale.train.run_dir import RunDirectory

_EXPECTED_TO_DIFFER = ("name", "output")


@dataclass(frozen=True, kw_only=True)
class DataSetComparison:
    """Whether both runs read the same data set, by what their newest checkpoints say of it; None where one has none.

    Equal sample ids of two different data sets are not the same samples. `different` holds the differing hashes, `order` the
    other differing values of the data cursor (lanes, seed, ...), which say why ids differ.
    """

    is_equal: bool | None
    different: dict[str, tuple[object, object]]
    order: dict[str, tuple[object, object]]


@dataclass(frozen=True, kw_only=True)
class LossComparison:
    """Logged losses, bit by bit: the number of steps that both runs logged, and the first at which they differ."""

    num_steps: int
    first_different_step: int | None = None
    values: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What `audit_runs` found. `checkpoints` are those of every common step, oldest first; None where only samples were asked for.

    `checkpoint_steps` are all committed ones of A and of B. Losses and configuration explain a difference and decide nothing.
    """

    run_a: str
    run_b: str
    samples: SampleComparison
    data_set: DataSetComparison
    checkpoints: tuple[CheckpointComparison, ...] | None
    checkpoint_steps: tuple[list[int], list[int]]
    losses: LossComparison
    config: dict[str, tuple[object, object]]

    @property
    def same_samples(self) -> bool:
        """Proved: the same samples in the same order, over the steps that both logged."""
        return self.samples.verdict == "equal" and self.data_set.is_equal is not False

    @property
    def same_weights(self) -> bool | None:
        """Proved: all common checkpoints are equal. None where only samples were asked for; False where no step is common."""
        if self.checkpoints is None:
            return None
        return bool(self.checkpoints) and all(checkpoint.is_equal for checkpoint in self.checkpoints)

    @property
    def exit_code(self) -> int:
        """0 for what was proved, that of a data error for other samples, that of a checkpoint error for other weights."""
        if not self.same_samples:
            return DataError.exit_code
        return CheckpointError.exit_code if self.same_weights is False else 0

    def to_json(self) -> str:
        """All of it as JSON."""
        verdict = {"same_samples": self.same_samples, "same_weights": self.same_weights, "exit_code": self.exit_code}
        return json.dumps({**verdict, **asdict(self)}, indent=2)


def audit_runs(run_a: Path, run_b: Path, *, samples_only: bool = False) -> AuditReport:
    """Compare two run directories. Reads logs as a stream and tensors in pieces, so that neither's size matters for memory.

    Raises `UsageError` for a folder that is no run directory, `DataError` for a damaged log, `CheckpointError` for a damaged
    checkpoint. A log or checkpoint that was never written is a finding, not an error.
    """
    runs = (RunDirectory(root=run_a), RunDirectory(root=run_b))
    configs = (_read_config(runs[0]), _read_config(runs[1]))
    steps = (checkpoint_steps(run_a), checkpoint_steps(run_b))
    checkpoints = None
    if not samples_only:
        folders = (run_a / CHECKPOINTS, run_b / CHECKPOINTS)
        checkpoints = tuple(
            compare_checkpoints(*(step_folder(folder, step=step) for folder in folders)) for step in steps[0] if step in steps[1]
        )
    return AuditReport(
        run_a=str(run_a),
        run_b=str(run_b),
        samples=_compare_logs(runs, configs),
        data_set=_compare_data_sets(runs, steps),
        checkpoints=checkpoints,
        checkpoint_steps=steps,
        losses=_compare_losses(*(_losses(run) for run in runs)),
        config={key: pair for key, pair in differences(*configs).items() if key not in _EXPECTED_TO_DIFFER},
    )


_Runs = tuple[RunDirectory, RunDirectory]


def _read_config(run: RunDirectory) -> dict[str, Any]:
    if not run.config.is_file():
        raise UsageError(f"{run.root}: not a run directory: it has no config.yaml. Give a folder that a run wrote, as runs/NAME.")
    values = read_yaml(run.config)
    train = values.get("train") if isinstance(values, dict) else None
    if not isinstance(train, dict) or not isinstance(train.get("global_batch"), int):
        raise UsageError(f"{run.config}: not the configuration of a run: it has no train.global_batch")
    return dict(values)


def _compare_logs(runs: _Runs, configs: tuple[dict[str, Any], dict[str, Any]]) -> SampleComparison:
    logs = []
    for run, config in zip(runs, configs, strict=True):
        try:
            logs.append(read_logged_steps(run.root, global_batch=config["train"]["global_batch"]))
        except DataError as error:
            return SampleComparison(verdict="incomplete", detail=str(error))
    return compare_samples(*logs)


def _compare_data_sets(runs: _Runs, steps: tuple[list[int], list[int]]) -> DataSetComparison:
    if not all(steps):
        return DataSetComparison(is_equal=None, different={}, order={})
    cursors = (_cursor(run, step=run_steps[-1]) for run, run_steps in zip(runs, steps, strict=True))
    found = differences(*cursors)
    hashes = {key: pair for key, pair in found.items() if key.endswith("sha256")}
    return DataSetComparison(is_equal=not hashes, different=hashes, order={key: found[key] for key in found if key not in hashes})


def _cursor(run: RunDirectory, *, step: int) -> dict[str, Any]:
    cursor = CheckpointReader(step_folder(run.checkpoints, step=step)).state["cursor"]
    return {key: value for key, value in cursor.items() if key != "consumed"}


def _compare_losses(a: dict[int, float], b: dict[int, float]) -> LossComparison:
    common = sorted(a.keys() & b.keys())
    first = next((step for step in common if a[step] != b[step]), None)
    if first is None:
        return LossComparison(num_steps=len(common))
    return LossComparison(num_steps=len(common), first_different_step=first, values=(a[first], b[first]))


def _losses(run: RunDirectory) -> dict[int, float]:
    """Loss by step; of a step logged twice the last."""
    losses: dict[int, float] = {}
    if run.metrics.exists():
        with run.metrics.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n") and "loss" in (record := json.loads(line)):
                    losses[record["step"]] = record["loss"]
    return losses
