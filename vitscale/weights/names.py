"""How each tensor of a model is stored in another project's layout: names and shapes on both sides, and the values there and back."""

import bisect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitscale.config import CheckpointError
from vitscale.weights.forms import Form, Shape, Sizes
from vitscale.weights.rules import Layout, rules_of

_BLOCK_NUMBER = re.compile(r"(?<=[._])\d+(?=[./])")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A rule for one block: names and shapes on both sides."""

    ours: dict[str, Shape]
    theirs: dict[str, Shape]
    form: Form
    sizes: Sizes

    @property
    def num_elements(self) -> int:
        """Elements of our tensors."""
        return sum(math.prod(shape) for shape in self.ours.values())

    def to_theirs(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Their tensors by name, made of ours in the order of `ours`. Views where that is possible."""
        return dict(zip(self.theirs, self.form.to_theirs(values, self.sizes), strict=True))

    def to_ours(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Our tensors by name, made of theirs in the order of `theirs`. Views where that is possible."""
        return dict(zip(self.ours, self.form.to_ours(values, self.sizes), strict=True))


def plan_conversions(shapes: Mapping[str, Shape], *, layout: Layout, sizes: Sizes) -> list[Conversion]:
    """How each of our tensors, given by name and whole shape, is stored in `layout`, in the order of ours.

    Raises `CheckpointError` naming what the layout has no place for.
    """
    rules = rules_of(layout, sizes=sizes)
    done: set[str] = set()
    result, unknown = [], []
    for name in shapes:
        # The units of a stem have rules of their own, the blocks one for all.
        pattern, block = (name, "") if any(name in rule.ours for rule in rules) else split_block(name)
        rule = next((rule for rule in rules if pattern in rule.ours and all(_named(ours, block) in shapes for ours in rule.ours)), None)
        if rule is None:
            unknown.append(name)
        elif name not in done:
            ours = {_named(name, block): shapes[_named(name, block)] for name in rule.ours}
            done.update(ours)
            # On the meta device a form tells the shapes and computes nothing.
            converted = rule.form.to_theirs([torch.empty(shape, device="meta") for shape in ours.values()], sizes)
            theirs = {_their_name(name, block, sizes): tuple(value.shape) for name, value in zip(rule.theirs, converted, strict=True)}
            result.append(Conversion(ours=ours, theirs=theirs, form=rule.form, sizes=sizes))
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise CheckpointError(f"the layout {layout} has no place for {shown}")
    return result


def split_block(name: str) -> tuple[str, str]:
    """The name with its block's number as `{i}`, and the number; an empty one for what is in no block."""
    match = _BLOCK_NUMBER.search(name)
    return (name, "") if match is None else (f"{name[: match.start()]}{{i}}{name[match.end() :]}", match.group())


def _named(pattern: str, block: str) -> str:
    return pattern.replace("{i}", block)


def _their_name(pattern: str, block: str, sizes: Sizes) -> str:
    """With the block's number, that of its stage and its place there, and the number after it."""
    if not block:
        return pattern
    number = int(block)
    starts = [sum(sizes.stage_depths[:stage]) for stage in range(len(sizes.stage_depths))] or [0]
    stage = bisect.bisect_right(starts, number) - 1
    values = {"{i}": number, "{next}": number + 1, "{stage}": stage, "{place}": number - starts[stage]}
    for field, value in values.items():
        pattern = pattern.replace(field, str(value))
    return pattern
