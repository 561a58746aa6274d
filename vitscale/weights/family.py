"""What a family of foreign files tells of itself: the seam between the recognition of a file and the layouts it may have."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.config import CheckpointError
from vitscale.models.variants import CLIP
from vitscale.nn.convolution import Epsilons
from vitscale.nn.resample import PositionMode
from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.weights.forms import Shape
from vitscale.weights.rules import Layout

Settings = Mapping[str, dict[str, Any]]
"""The JSON files that lie beside the weights, by name."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a tensor lies: under the name `source` in the file; with an `index`, as that entry along the first axis,
    with `rows` as those."""

    source: str
    shape: Shape
    index: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Described:
    """A foreign model in our terms.

    `model` and `head` are values of the sections of a run's YAML for the backbone and the objective (no head: None), as far as the file
    tells. `assumed` are sentences on what it does not tell. `positions` is how its authors resample tables of positions (None: it has
    none), `class_row` whether its table has a row for the class token. `set_aside` are patterns of names that are no part of the model.
    `is_split_mlp` and `is_split_qkv`: both halves of a gated MLP, and queries, keys and values, are apart.
    """

    layout: Layout
    model: dict[str, Any]
    head: dict[str, Any] | None
    positions: PositionMode | None
    class_row: bool = True
    set_aside: tuple[str, ...] = ()
    is_split_mlp: bool = False
    is_split_qkv: bool = False
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """`claims` says whether the names are of this family, `entries` gives them the names of its layouts, `describe` reads the
    model off shapes and settings and raises `CheckpointError` where it cannot."""

    claims: Callable[[Mapping[str, Shape]], bool]
    entries: Callable[[Mapping[str, Shape]], dict[str, Entry]]
    describe: Callable[..., Described]


def plain_entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """Names that need no change."""
    return {name: Entry(source=name, shape=shape) for name, shape in shapes.items()}


def image_side(num_positions: int, *, patch_size: int, where: str) -> int:
    """The side in pixels of the square image whose patches have so many positions. Raises `CheckpointError` for no square."""
    if not is_square(num_positions):
        raise CheckpointError(f"{where}: its {num_positions} positions form no square grid, and images here are square")
    return math.isqrt(num_positions) * patch_size


def told_image_size(config: Mapping[str, Any]) -> int | None:
    """The side of its images as timm's config.json tells it, a number or height and width; None where it tells none, or no square."""
    told = (config.get("model_args") or {}).get("img_size") or ((config.get("pretrained_cfg") or {}).get("input_size") or [])[1:]
    sides = set(told if isinstance(told, list) else [told])
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) else None


def clip_statistics(num_channels: int, *, mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, Any]:
    """How images are normalised for CLIP: as told, else as all of OpenAI's and most of open_clip's are."""
    told = {"image_mean": mean or CLIP["image_mean"][:num_channels], "image_std": std or CLIP["image_std"][:num_channels]}
    return {name: list(map(float, values)) for name, values in told.items()}


def is_square(number: int) -> bool:
    """Whether so many patches form a square grid."""
    return number > 0 and math.isqrt(number) ** 2 == number


def shape_of(shapes: Mapping[str, Shape], name: str, *, num_dims: int, where: str) -> Shape:
    """The shape of a tensor that the model is read off. Raises `CheckpointError` where it is missing or has other dimensions."""
    if name not in shapes:
        raise CheckpointError(f"{where}: {name} is missing, without which the model is unknown; the file is incomplete or another model's")
    if len(shapes[name]) != num_dims:
        shown = " x ".join(map(str, shapes[name]))
        raise CheckpointError(f"{where}: {name} is {shown}, and {num_dims} dimensions are expected; this is another model's")
    return shapes[name]


def count_blocks(shapes: Mapping[str, Shape], pattern: str, *, first: int = 0) -> int:
    """How many blocks, counted from `first` without a gap, hold anything; `{i}` is the number in the name of one of its tensors. A block
    that lacks this one is counted, so that it is told what it lacks."""
    start = re.compile(re.escape(pattern.partition("{i}")[0]) + r"(\d+)[./]")
    found = {int(match[1]) for match in map(start.match, shapes) if match}
    return next(count for count in range(len(found) + 1) if first + count not in found)


def resnet_stem(*, units: Sequence[int], width: int, epsilons: Epsilons, where: str) -> ResNetStemConfig:
    """The settings of a stem with such stages. Raises `CheckpointError` for a width that its groups do not divide."""
    if width % 32:
        raise CheckpointError(f"{where}: its stem is {width} channels wide, and 32 groups are normalised")
    return ResNetStemConfig(units=tuple(units), width=width, epsilons=epsilons)
