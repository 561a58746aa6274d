"""Where a run continues: the newest whole checkpoint of its own directory, if the configuration still describes that run."""

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from vitscale.checkpoint.discover import nothing
from vitscale.checkpoint.durable import disk_errors
from vitscale.checkpoint.layout import CONFIG, parse_step_folder
from vitscale.checkpoint.remote import RemoteCheckpoints, find_newest_or_download
from vitscale.config import CheckpointError, ConfigError, binding_values, decode, parse_yaml
from vitscale.data.config import OrderedConfig
from vitscale.plan.plan import Plan, resolve, with_lanes
from vitscale.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class ResumeDecision:
    """`checkpoint` is None for a start from scratch; `messages` say from where and why not from something newer, `changed`
    are the settings that differ from the checkpoint's on request, `lanes` is the number of lanes to go on with."""

    checkpoint: str | None
    messages: tuple[str, ...]
    lanes: int | None
    changed: tuple[str, ...] = ()


def decide_resume(
    config: RunConfig,
    *,
    plan: Plan,
    checkpoints: Path,
    allow_change: Collection[str],
    remote: RemoteCheckpoints | None = None,
    show_life: Callable[[], None] = nothing,
) -> ResumeDecision:
    """Scan the run's checkpoints and compare the newest whole one's configuration with `config`. Rank 0 only.

    Where `remote` has a newer one, that is downloaded into `checkpoints` first; `show_life` is called while either takes its time.
    What `config` leaves open is compared as `plan` decides it; open lanes stay those of the run where they divide the batch.
    `allow_change` lists dotted keys, or sections, that may differ. Raises `CheckpointError` naming every other key that
    differs, and when there are checkpoints of which none is whole, since starting over would throw that work away.
    """

    def compare(config_text: str, where: str) -> _Compared:
        return _compare(config, plan=plan, config_text=config_text, where=where, allow_change=allow_change)

    sought = find_newest_or_download(checkpoints, remote=remote, check=compare, show_life=show_life)
    found = sought.found
    passed_over = (*sought.messages, *(f"passed over {entry.path.name}: {entry.reason}" for entry in found.passed_over))
    if found.checkpoint is None:
        committed = [entry for entry in found.passed_over if entry.path.suffix == ""]
        if committed:
            raise CheckpointError(
                f"{checkpoints}: none of the checkpoints here is whole ({'; '.join(passed_over)}). To start over, move the folder"
                " away or give the run another name (name=...)."
            )
        return ResumeDecision(checkpoint=None, messages=passed_over, lanes=plan.lanes)
    compared = compare(_read_config(found.checkpoint), str(found.checkpoint))
    accepted = tuple(f"changed on request: {key} from {old!r} to {new!r}" for key, (old, new) in compared.changed.items())
    folder = parse_step_folder(found.checkpoint)
    assert folder is not None, "found by its name"
    origin = f"resuming from {found.checkpoint.name} (step {folder.step})"
    return ResumeDecision(
        checkpoint=str(found.checkpoint),
        messages=(origin, *passed_over, *accepted),
        lanes=compared.lanes,
        changed=tuple(compared.changed),
    )


def _read_config(checkpoint: Path) -> str:
    with disk_errors():
        return (checkpoint / CONFIG).read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """What differs from the configuration of a checkpoint, all of it allowed, as (previous, current) value by key."""

    lanes: int | None
    changed: dict[str, tuple[object, object]]


def _compare(config: RunConfig, *, plan: Plan, config_text: str, where: str, allow_change: Collection[str]) -> _Compared:
    """Raises `CheckpointError` naming every key that differs and may not."""
    previous = decode(RunConfig, values=parse_yaml(config_text, source=where), source=where)
    lanes = _lanes(previous, config, plan=plan)
    config = resolve(config, plan=with_lanes(plan, lanes=lanes))
    changed = changed_keys(previous, config)
    _check_allowed(allow_change, known={key for key, _ in binding_values(config)} | {key for key, _ in binding_values(previous)})
    refused = {key: values for key, values in changed.items() if not _is_allowed(key, allow_change)}
    if refused:
        lines = "".join(f"\n  {key}: was {old!r}, is {new!r}" for key, (old, new) in refused.items())
        flags = " ".join(f"--allow-change {key}" for key in refused)
        raise CheckpointError(
            f"{where}: this run was trained with another configuration, and going on would not be the run that either"
            f" YAML describes:{lines}\nGive the run another name (name=...), undo the change, or accept it with {flags}."
        )
    return _Compared(lanes=lanes, changed=changed)


def _lanes(previous: RunConfig, config: RunConfig, *, plan: Plan) -> int | None:
    """Those of the run so far where the configuration leaves them open and they fit, else the plan's."""
    if not isinstance(config.data, OrderedConfig) or not isinstance(previous.data, OrderedConfig):
        return plan.lanes
    lanes = previous.data.lanes
    assert isinstance(lanes, int), "a checkpoint's configuration is resolved"
    return lanes if config.data.lanes == "auto" and plan.global_batch % lanes == 0 else plan.lanes


def changed_keys(previous: RunConfig, current: RunConfig) -> dict[str, tuple[object, object]]:
    """Dotted key to (previous, current) value of every setting that decides what the run computes and differs."""
    before, after = dict(binding_values(previous)), dict(binding_values(current))
    # init_from says where the first step started from, which a resume no longer does; but a changed one means another run.
    keys = [*before, *(key for key in after if key not in before)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _is_allowed(key: str, allow_change: Collection[str]) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in allow_change)


def _check_allowed(allow_change: Collection[str], *, known: Collection[str]) -> None:
    for allowed in allow_change:
        if not any(_is_allowed(key, [allowed]) for key in known):
            near = difflib.get_close_matches(allowed, list(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"--allow-change {allowed}: no setting that decides what the run computes has this name{hint}")
