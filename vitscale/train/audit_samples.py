"""Comparing what two runs consumed: the first step and position at which their global batches differ."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vitscale.train.logged_samples import Ids, LoggedStep

SampleVerdict = Literal["equal", "different", "other_batches", "incomplete"]
"""other_batches: the global batches differ in size, and over each common stretch they hold the same samples.
incomplete: the logs lack steps in between, or have none in common, so that nothing is proved."""


@dataclass(frozen=True, kw_only=True)
class SampleComparison:
    """`detail` says the first difference in words, `notes` what one run alone logged before or after the common steps.

    The counts are those of the steps found equal; `first_step` and `last_step` are None where there are none.
    """

    verdict: SampleVerdict
    detail: str = ""
    num_steps: int = 0
    num_samples: int = 0
    first_step: int | None = None
    last_step: int | None = None
    notes: tuple[str, ...] = ()


def compare_samples(steps_a: Iterable[LoggedStep], steps_b: Iterable[LoggedStep]) -> SampleComparison:
    """Compare two logs sample by sample, reading both side by side, once, up to the first difference."""
    a, b = _Cursor(name="A", steps=iter(steps_a)), _Cursor(name="B", steps=iter(steps_b))
    equal = _Equal()
    while a.head is not None and b.head is not None:
        if a.head.step != b.head.step:
            ahead, behind = (a, b) if a.head.step > b.head.step else (b, a)
            if equal.num_steps:
                return equal.then("incomplete", f"{ahead.name} logged nothing of step {behind.step}, and went on logging later")
            behind.skip(before=ahead.step)
            continue
        if equal.last is not None and a.step != equal.last.step + 1:
            return equal.then("incomplete", f"neither run logged step {equal.last.step + 1}, and both went on logging later")
        if len(a.head.ids) != len(b.head.ids):
            return _compare_streams(a, b, equal=equal)
        if not np.array_equal(a.head.ids, b.head.ids):
            return equal.then("different", _first_difference(a.head, b.head))
        equal.add(a.head)
        a.advance()
        b.advance()
    if not equal.num_steps:
        return equal.then("incomplete", "the two runs logged no step in common")
    equal.notes += [f"{run.name} goes on, from step {run.step}, where the other ends" for run in (a, b) if run.head is not None]
    return equal.then("equal")


class _Cursor:
    """A run's log at one of its steps; `head` is None behind the last one."""

    def __init__(self, *, name: str, steps: Iterator[LoggedStep]) -> None:
        self.name = name
        self._steps = steps
        self.head = next(steps, None)

    @property
    def step(self) -> int:
        """The step it is at."""
        assert self.head is not None
        return self.head.step

    def advance(self) -> None:
        """Go on to the next step."""
        self.head = next(self._steps, None)

    def skip(self, *, before: int) -> None:
        """Go on to `before` or, where that is not logged, behind it."""
        while self.head is not None and self.head.step < before:
            self.advance()


@dataclass(kw_only=True)
class _Equal:
    """What was found equal so far."""

    num_steps: int = 0
    num_samples: int = 0
    first: LoggedStep | None = None
    last: LoggedStep | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, step: LoggedStep) -> None:
        if self.first is None:
            self.first = step
            if step.step > 1:
                self.notes.append(f"the first step that both runs logged is {step.step}")
        self.last = step
        self.num_steps += 1
        self.num_samples += len(step.ids)

    def then(self, verdict: SampleVerdict, detail: str = "") -> SampleComparison:
        return SampleComparison(
            verdict=verdict,
            detail=detail,
            num_steps=self.num_steps,
            num_samples=self.num_samples,
            first_step=None if self.first is None else self.first.step,
            last_step=None if self.last is None else self.last.step,
            notes=tuple(self.notes),
        )


def _first_difference(a: LoggedStep, b: LoggedStep) -> str:
    positions = np.flatnonzero(a.ids != b.ids)
    first = int(positions[0])
    same_samples = np.array_equal(np.sort(a.ids), np.sort(b.ids))
    return (
        f"step {a.step}, position {first} of {len(a.ids)} in the global batch: sample {a.ids[first]} in A, {b.ids[first]} in B"
        f" ({len(positions)} positions of this step differ{', which holds the same samples in another order' if same_samples else ''})"
    )


def _compare_streams(a: _Cursor, b: _Cursor, *, equal: _Equal) -> SampleComparison:
    """From a step on whose batches differ in size: the samples, in any order, whenever both runs have consumed equally many."""
    assert a.head is not None
    assert b.head is not None
    sizes = f"from step {a.step} on the global batches differ in size, {len(a.head.ids)} in A and {len(b.head.ids)} in B"
    num_compared = 0
    parts: dict[str, list[Ids]] = {"A": [], "B": []}
    while True:
        taken_a, taken_b = (sum(len(ids) for ids in parts[name]) for name in ("A", "B"))
        if taken_a == taken_b > 0:
            if not np.array_equal(np.sort(np.concatenate(parts["A"])), np.sort(np.concatenate(parts["B"]))):
                return equal.then("different", f"{sizes}; of the {taken_a} samples after the next {num_compared} the runs saw others")
            num_compared += taken_a
            parts = {"A": [], "B": []}
            continue
        run = a if taken_a <= taken_b else b
        if run.head is None:
            break
        parts[run.name].append(run.head.ids)
        run.advance()
    if not num_compared:
        return equal.then("different", f"{sizes}; the logs end before both have consumed equally many samples")
    return equal.then("other_batches", f"{sizes}; the next {num_compared} samples are the same, in batches of another size")
