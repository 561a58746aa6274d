"""Which settings of a vision transformer cannot stand beside those that leave fewer tokens or attend between channels, and why."""

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


FOR_TOKENS = ("parallel", "window", "patch_dropout", "rotary", "position_bias", "token_merging", "halting", "naflex")
"""Settings that are for attention between tokens."""


def refuse_beside_channels(name: str, *, value: Any, others: Mapping[str, Any]) -> None:
    """Raise `ValueError` where the setting `name` does not go with attention between channels, or that not with settings before it."""
    if name != "attention":
        if value and others.get("attention") == "cross_covariance":
            raise ValueError("is for attention between tokens, not for model.attention cross_covariance; use one of the two")
    elif value == "cross_covariance":
        pooling = "pooling cls" if others.get("pooling", "cls") == "cls" else None
        prefix = pooling or next((key for key in ("class_token", "distillation_token", "num_registers") if others.get(key)), None)
        if prefix is not None:
            raise ValueError(f"{value}: nothing passes from patches to the token that model.{prefix} adds; pool by mean, map or none")
        if others.get("qk_norm"):
            raise ValueError(f"{value}: queries and keys are normalised over the tokens already; leave out model.qk_norm")
