"""What a parameter that is a table of positions holds, said beside its recipe, and fitting such a table to another model's."""

# P prefix tokens, N tokens, D width, L entries, H heads

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from vitscale.nn.relative_tables import resample_line, resample_relative_table
from vitscale.nn.resample import POSITION_MODES, Grid, PositionMode, resample_positions

P = TypeVar("P", bound=Tensor)

CLASS_ROW = "class"
"""Name of the class token's row in `GridTable.prefix`."""


@dataclass(frozen=True, kw_only=True)
class GridTable:
    """(1, P + rows * columns, D): a position for every patch of `grid` after those of the prefix tokens, in the order of their names."""

    grid: Grid
    prefix: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OffsetTable:
    """((2 rows - 1) * (2 columns - 1) + extra, H): a number for every offset between patches of `window`, then of prefix tokens."""

    window: Grid
    num_extra: int = 0


@dataclass(frozen=True, kw_only=True)
class AxisTable:
    """(`length`, D): a vector for every position, or offset, along one axis."""

    length: int


PositionTable = GridTable | OffsetTable | AxisTable


def set_table(parameter: P, table: PositionTable) -> P:
    """Say what the parameter holds and return it."""
    parameter.position_table = table  # type: ignore[attr-defined]
    return parameter


def position_tables(module: nn.Module) -> dict[str, PositionTable]:
    """The tables among the parameters of `module`, by name."""
    found = ((name, getattr(parameter, "position_table", None)) for name, parameter in module.named_parameters())
    return {name: table for name, table in found if table is not None}


def can_fit(source: PositionTable, *, target: PositionTable, mode: PositionMode) -> bool:
    """Whether `fit_table` can make the one out of the other: they are of one kind, and the mode knows that kind."""
    if type(source) is not type(target):
        return False
    return not isinstance(source, OffsetTable) or POSITION_MODES[mode].relative is not None


def fit_table(value: Tensor, *, source: PositionTable, target: PositionTable, mode: PositionMode) -> Tensor:
    """The value of `target` that a source's `value` stands for, in fp32: resampled by `mode` where the sizes differ.

    Prefix tokens that the source has no row for get zeros.
    """
    match source, target:
        case GridTable(), GridTable():
            return _fit_grid(value, source=source, target=target, mode=mode)
        case OffsetTable(), OffsetTable():
            return _fit_offsets(value, source=source, target=target, mode=mode)
        case AxisTable(), AxisTable():
            return resample_line(value, length=target.length, dim=0)
    raise AssertionError(f"{source} cannot be fitted to {target}")


def describe_fit(source: PositionTable, *, target: PositionTable, mode: PositionMode) -> str:
    """What `fit_table` does, in words."""
    match source, target:
        case GridTable(), GridTable():
            return ", ".join(_grid_changes(source, target=target, mode=mode))
        case OffsetTable(), OffsetTable():
            rule = POSITION_MODES[mode].relative
            return f"window {_sides(source.window)} to {_sides(target.window)} by mode {mode} ({str(rule).replace('_', ' ')})"
        case AxisTable(), AxisTable():
            return f"{source.length} to {target.length} positions, linear"
    raise AssertionError(f"{source} cannot be fitted to {target}")


def _fit_grid(value_1ND: Tensor, *, source: GridTable, target: GridTable, mode: PositionMode) -> Tensor:
    num_prefix = len(source.prefix)
    table_1ND = resample_positions(value_1ND, source=source.grid, target=target.grid, num_prefix=num_prefix, mode=mode)
    if source.prefix == target.prefix:
        return table_1ND
    none_11D = torch.zeros_like(table_1ND[:, :1])
    row_of = {name: table_1ND[:, index : index + 1] for index, name in enumerate(source.prefix)}
    return torch.cat([*(row_of.get(name, none_11D) for name in target.prefix), table_1ND[:, num_prefix:]], dim=1)


def _fit_offsets(value_LH: Tensor, *, source: OffsetTable, target: OffsetTable, mode: PositionMode) -> Tensor:
    rule = POSITION_MODES[mode].relative
    assert rule is not None, f"mode {mode} has no rule for relative positions"
    table_LH = resample_relative_table(value_LH, source=source.window, target=target.window, num_extra=source.num_extra, rule=rule)
    if source.num_extra == target.num_extra:
        return table_LH
    offsets_LH = table_LH[: table_LH.shape[0] - source.num_extra]
    return torch.cat([offsets_LH, offsets_LH.new_zeros(target.num_extra, offsets_LH.shape[1])])


def _grid_changes(source: GridTable, *, target: GridTable, mode: PositionMode) -> list[str]:
    changes = [f"grid {_sides(source.grid)} to {_sides(target.grid)} by mode {mode}"] if source.grid != target.grid else []
    changes += [f"row of the {name} token starts at 0" for name in target.prefix if name not in source.prefix]
    return changes + [f"row of the {name} token dropped" for name in source.prefix if name not in target.prefix]


def _sides(grid: Grid) -> str:
    return f"{grid.rows} x {grid.columns}"
