"""Which settings of a vision transformer cannot stand beside those that leave fewer tokens, and why."""

from collections.abc import Mapping
from typing import Any

EXCLUSIONS: dict[str, dict[str, str]] = {
    "token_merging": {
        "parallel": "merges between attention and MLP, which model.parallel has side by side",
        "window": "leaves holes in the windows of model.window",
        "rotary": "leaves tokens that stand at several places, and model.rotary turns them by one",
        "position_bias": "leaves tokens that stand at several places, and model.position_bias is for two",
    },
    "halting": {
        "parallel": "is for blocks with attention and MLP one after the other, not side by side as with model.parallel",
        "window": "leaves holes in the windows of model.window",
        "rotary": "leaves other tokens in every image, and model.rotary turns those of a whole grid",
        "position_bias": "leaves other tokens in every image, and model.position_bias is for those of a whole grid",
        "stochastic_depth": "lets every token decide on its depth, and model.stochastic_depth skips blocks at random",
        "dropout": "decides by the values of a token, and model.dropout changes them at random",
        "naflex": "counts tokens by images of one size, and those of model.naflex differ",
        "token_merging": "decides, as model.token_merging does, which tokens are left",
    },
}


def refuse_excluded(name: str, others: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a setting that excludes `name` is on."""
    for other, reason in EXCLUSIONS[name].items():
        if others.get(other):
            raise ValueError(f"{reason}; use one of the two")
