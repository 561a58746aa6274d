"""What came of a rehearsal: for each fault how it was noticed and how soon the run trained again, read from events.jsonl."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.train.goodput_report import GoodputReport

from .chaos_faults import Injection

_SIGNS = ("worker_failed", "hang", "skipped_step", "corruption", "save_failed", "straggler", "restart", "shrink", "wait", "gave_up")
"""Kinds of events by which a fault shows."""
_STARTS = ("start", "resume")
_NEW_ATTEMPTS = ("restart", "shrink")
_COLUMNS = ("time", "fault", "rank", "after step", "noticed as", "noticed after", "training again after")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What followed a fault before the next one. `seconds_to_notice` None: nothing showed. `seconds_to_train` None: the run did not
    have to start again, or did not."""

    injection: Injection
    signs: tuple[str, ...]
    seconds_to_notice: float | None
    seconds_to_train: float | None


def find_effects(injections: Sequence[Injection], events: Sequence[Mapping[str, Any]]) -> list[Effect]:
    """What each fault was followed by, in the order of the faults."""
    ends = [*(injection.time for injection in injections[1:]), math.inf]
    return [_effect(injection, until=end, events=events) for injection, end in zip(injections, ends, strict=True)]


def _effect(injection: Injection, *, until: float, events: Sequence[Mapping[str, Any]]) -> Effect:
    after = [event for event in events if injection.time <= event["time"] < until]
    signs = [event for event in after if event["event"] in _SIGNS]
    new_attempt = next((event["time"] for event in after if event["event"] in _NEW_ATTEMPTS), math.inf)
    start = next((event["time"] for event in after if event["event"] in _STARTS and event["time"] >= new_attempt), None)
    return Effect(
        injection=injection,
        signs=tuple(dict.fromkeys(event["event"] for event in signs)),
        seconds_to_notice=signs[0]["time"] - injection.time if signs else None,
        seconds_to_train=start - injection.time if start is not None else None,
    )


def format_summary(effects: Sequence[Effect], report: GoodputReport) -> str:
    """The table, and where the whole time of the run went, earlier starts included."""
    rows = [_COLUMNS, *(_row(effect) for effect in effects)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    shares = ", ".join(f"{cause} {share:.1%}" for cause, share in sorted(report.shares.items(), key=lambda item: -item[1]) if share)
    minutes = report.wall_seconds / 60
    return "\n".join([*table, f"goodput {report.goodput:.1%} of {minutes:.1f} minutes over {len(report.attempts)} attempts: {shares}", ""])


def _row(effect: Effect) -> tuple[str, ...]:
    injection = effect.injection
    return (
        time.strftime("%H:%M:%S", time.localtime(injection.time)),
        str(injection.kind),
        str(injection.rank),
        str(injection.step),
        ", ".join(effect.signs) or "not noticed",
        _seconds(effect.seconds_to_notice),
        _seconds(effect.seconds_to_train),
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
