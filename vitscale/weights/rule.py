"""A rule of a layout: what some tensors of ours are called elsewhere, and in which form."""

from dataclasses import dataclass

from vitscale.weights.forms import SAME, TOKEN_AND_TABLE, Form

CLASS_TOKEN, POSITIONS = "backbone.cls_token", "backbone.pos_embed"
BLOCK = "backbone.blocks.{i}"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How tensors of ours, `{i}` being the block's number, are called elsewhere and in which form."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form


def both(
    ours: str | tuple[str, ...],
    *theirs: str,
    form: Form = SAME,
    bias_form: Form = SAME,
    ends: tuple[str, str] = (".weight", ".bias"),
) -> list[Rule]:
    """The rules of a module's weight and bias; `ends` is what they add to the names of their modules."""
    modules = (ours,) if isinstance(ours, str) else ours
    return [
        Rule(ours=tuple(f"{name}.{leaf}" for name in modules), theirs=tuple(f"{name}{end}" for name in theirs), form=leaf_form)
        for leaf, end, leaf_form in (("weight", ends[0], form), ("bias", ends[1], bias_form))
    ]


def one(ours: str, theirs: str, *, form: Form = SAME) -> Rule:
    """The rule of a tensor that stands alone."""
    return Rule(ours=(ours,), theirs=(theirs,), form=form)


def token_and_table(token: str, table: str) -> list[Rule]:
    """The rules of class token and positions, together or one without the other."""
    return [
        Rule(ours=(CLASS_TOKEN, POSITIONS), theirs=(token, table), form=TOKEN_AND_TABLE),
        one(CLASS_TOKEN, token),
        one(POSITIONS, table),
    ]
