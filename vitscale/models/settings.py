"""What the settings of every kind of backbone check and fill in alike."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationInfo

from vitscale.config import Config
from vitscale.nn.rope import Dinov3RopeConfig
from vitscale.nn.stems import STEMS

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
"""How most published models normalise colour images."""


def with_proposals(values: Mapping[str, Any], *, proposals: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as given, and those of `proposals` that are not; how images are normalised is proposed for colour only."""
    # Once a function has touched the values, pydantic no longer takes a list of YAML for a tuple.
    given = {key: _with_tuples(value) for key, value in values.items()}
    is_colour = given.get("num_channels", 3) == 3
    return {key: value for key, value in proposals.items() if is_colour or not key.startswith("image_")} | given


def tiling_side(value: int, *, patch: int | None) -> int:
    """The side of the image, if patches tile it; a patch of None was refused before."""
    if patch is not None and value % patch:
        raise ValueError(f"{value} is not a multiple of model.patch_size {patch}; use for example {-(-value // patch) * patch}")
    return value


def one_per_channel(value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
    """Means or deviations of the channels: one number, or one for each."""
    channels = info.data.get("num_channels", len(value))
    if len(value) not in (1, channels):
        raise ValueError(f"give one number, or one for each of the model.num_channels {channels}, not {len(value)}")
    if info.field_name == "image_std" and min(value) <= 0:
        raise ValueError("every number must be greater than 0")
    return value


def size_or_name(value: T, info: ValidationInfo) -> T:
    """A size, if it is given or a variant has it."""
    if value is None and info.data.get("variant", "unknown") is None:
        raise ValueError("required where no model.variant is given")
    return value


def resolved_size(name: str, info: ValidationInfo, *, variants: Mapping[str, Any]) -> Any:
    """The size called `name` as given before, else that of the variant; None where either was refused."""
    given = info.data.get(name)
    variant = info.data.get("variant")
    return given if given is not None or variant is None else getattr(variants[variant], name)


def linear_drop_rates(last: float, *, depth: int) -> tuple[float, ...]:
    """Stochastic depth of each block: from 0 at the first to `last` (Huang et al. 2016)."""
    return tuple(last * index / max(1, depth - 1) for index in range(depth))


def as_the_variant_has_it(value: T, info: ValidationInfo, *, fixed: Mapping[str, Any]) -> T:
    """A setting, if it is not another one than the variant fixes."""
    expected = fixed.get(str(info.field_name), value)
    if value != expected:
        raise ValueError(f"{value} contradicts model.variant {info.data['variant']}, which has {expected}; leave it out")
    return value


def fixed_part(value: Any) -> Any:
    """What a published model fixes of a setting: nothing that is drawn in training only, and not the epsilons of a stem."""
    if isinstance(value, Dinov3RopeConfig):
        return value.without_draws
    return value.architecture() if isinstance(value, STEMS) else value


def as_yaml(value: Any) -> str:
    """A value as it would stand in a YAML file."""
    if isinstance(value, Config):
        return json.dumps(value.model_dump(mode="json"))
    return value if isinstance(value, str) else json.dumps(value)


def _with_tuples(value: Any) -> Any:
    """A value as decoded from YAML with tuples for lists."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value
