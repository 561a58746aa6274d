"""A sweep: one run's YAML file and a grid of settings to replace in it, decoded and checked whole before anything starts."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vitscale.config import Config, ConfigError, decode_file, problem_report
from vitscale.run_config import RunConfig, load_run_config

Value = str | int | float | bool | None


class PlotConfig(Config):
    """A plot of the metric: one line for each value of one grid key, over the values of another."""

    x: str
    """Grid key along the horizontal axis; its values are numbers."""
    line: str | None = None
    """Grid key that tells the lines apart; null draws one line."""
    file: str = Field(default="metric.png", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(png|pdf|svg)$")
    """Name of the picture in the sweep's folder; the ending decides the format: png, pdf or svg."""


class SweepConfig(Config):
    """One sweep: every combination of the grid is a whole run, `<output>/<name>/<trial>`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the sweep; its folder is `<output>/<name>`."""
    output: str = "runs"
    """Folder that holds the sweep's folder."""
    base: str
    """The run's YAML file in which the grid's settings are replaced."""
    grid: dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]] = Field(min_length=1)
    """Dotted key of a setting to the values that it takes."""
    metric: str
    """What is compared: a name in metrics.jsonl, for example eval/test/top1. Its last value counts."""
    best: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value is the best."""
    parallel_trials: int = Field(default=1, ge=1)
    """Trials that run at the same time."""
    workers: int = Field(default=1, ge=1)
    """Worker processes of each trial."""
    max_restarts: int = Field(default=1, ge=0)
    """Restarts of a trial after the death of one of its workers."""
    plot: PlotConfig | None = None
    """What to plot; null plots nothing."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination: its name, its values by grid key, and the run that it is."""

    name: str
    values: Mapping[str, Value]
    config: RunConfig


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep and its trials, in the order of the grid."""

    config: SweepConfig
    trials: tuple[Trial, ...]

    @property
    def folder(self) -> Path:
        """Where the trials' runs and the results lie, absolute."""
        return (Path(self.config.output) / self.config.name).absolute()


def load_sweep(path: Path, *, overrides: Sequence[str] = ()) -> Sweep:
    """Decode a sweep's YAML file and the run of every trial. Raises `ConfigError` that lists every problem found."""
    config = decode_file(SweepConfig, path=path, overrides=overrides)
    found = [*_problems(config)]
    trials: list[Trial] = []
    for values in _combinations(config.grid):
        name = trial_name(values)
        try:
            run = load_run_config(Path(config.base), overrides=_trial_overrides(config, name=name, values=values))
        except ConfigError as error:
            found += _problem_lines(error)
        else:
            trials.append(Trial(name=name, values=values, config=run))
    if trials and not found:
        found += [*_name_problems(trials), *_metric_problems(config, run=trials[0].config)]
    if found:
        raise ConfigError(problem_report(f"{path} (base {config.base})", list(dict.fromkeys(found))))
    return Sweep(config=config, trials=tuple(trials))


def trial_name(values: Mapping[str, Value]) -> str:
    """A name for run directories, for example `image_size-28_positions-google`; full keys where last parts coincide."""
    short = {key: key.rpartition(".")[2] for key in values}
    if len(set(short.values())) < len(short):
        short = {key: key for key in values}
    return "_".join(f"{short[key]}-{re.sub(r'[^A-Za-z0-9.+-]', '-', str(value))}" for key, value in values.items())


def describe_trials(sweep: Sweep) -> str:
    """The trials with their settings, one a line."""
    config = sweep.config
    workers = f"{config.workers} worker{'s' if config.workers > 1 else ''} each"
    lines = [f"{sweep.folder}: {len(sweep.trials)} trials of {config.base}, {config.parallel_trials} at a time, {workers}"]
    lines += [f"{trial.name}: {' '.join(_assignments(trial.values))}" for trial in sweep.trials]
    return "\n".join(lines) + "\n"


def _combinations(grid: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _trial_overrides(config: SweepConfig, *, name: str, values: Mapping[str, Value]) -> list[str]:
    return [*_assignments(values), f"name={json.dumps(name)}", f"output={json.dumps(str(Path(config.output) / config.name))}"]


def _assignments(values: Mapping[str, Value]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _problem_lines(error: ConfigError) -> list[str]:
    """The single problems of a report; a message that is no report is one problem."""
    first, *rest = str(error).splitlines()
    return [line.strip() for line in rest] or [first]


def _problems(config: SweepConfig) -> Iterator[str]:
    for key, values in config.grid.items():
        if key in ("name", "output"):
            yield f"grid.{key}: the sweep names its runs itself; sweep another setting"
        if len({json.dumps(value) for value in values}) < len(values):
            yield f"grid.{key}: the same value is given twice"
    if config.plot is None:
        return
    for field in ("x", "line"):
        key = getattr(config.plot, field)
        if key is not None and key not in config.grid:
            yield f"plot.{field}: {key!r} is not in the grid{_nearest(key, list(config.grid))}"
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in config.grid.get(config.plot.x, ())):
        yield f"plot.x: the values of {config.plot.x} are not numbers; give a key whose values are"


def _name_problems(trials: Sequence[Trial]) -> Iterator[str]:
    """Two trials of one name would train in one run directory."""
    for name, count in Counter(trial.name for trial in trials).items():
        if count > 1:
            yield f"grid: {count} trials would be called {name}; give values that differ in more than punctuation or quotes"


def _metric_problems(config: SweepConfig, *, run: RunConfig) -> Iterator[str]:
    kind, _, rest = config.metric.partition("/")
    name = rest.rpartition("/")[0]
    if kind == "eval" and name not in run.evals:
        yield f"metric: the run has no evaluation {name!r}{_nearest(name, list(run.evals))}"


def _nearest(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known) or 'none'}"
