"""Tables of positions fitted to another model's: by name of the prefix token, by kind of table and by mode."""

import pytest
import torch
from torch import Tensor, nn

from vitscale.nn.position_table import (
    AxisTable,
    GridTable,
    OffsetTable,
    PositionTable,
    can_fit,
    describe_fit,
    fit_table,
    position_tables,
    set_table,
)
from vitscale.nn.relative_tables import resample_line, resample_relative_table
from vitscale.nn.resample import Grid, resample_positions

SQUARE, WIDE, LARGE = Grid(4, 4), Grid(2, 8), Grid(6, 5)


def _rows(table: PositionTable) -> Tensor:
    match table:
        case GridTable():
            shape: tuple[int, ...] = (1, len(table.prefix) + table.grid.rows * table.grid.columns, 6)
        case OffsetTable():
            shape = ((2 * table.window.rows - 1) * (2 * table.window.columns - 1) + table.num_extra, 6)
        case AxisTable():
            shape = (table.length, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_tables_of_a_module_are_found_by_name() -> None:
    table = GridTable(grid=SQUARE, prefix=("class",))
    with torch.device("meta"):
        module = nn.Module()
        module.inner = nn.Linear(2, 2)
        module.inner.positions = set_table(nn.Parameter(torch.empty(1, 17, 2)), table)
    assert position_tables(module) == {"inner.positions": table}


@pytest.mark.parametrize("mode", ["google", "timm", "dinov2"])
@pytest.mark.parametrize(("source", "target"), [(SQUARE, LARGE), (WIDE, SQUARE), (SQUARE, SQUARE)])
def test_a_grid_is_resampled_behind_its_prefix(source: Grid, target: Grid, mode: str) -> None:
    here, there = GridTable(grid=source, prefix=("class", "distillation")), GridTable(grid=target, prefix=("class", "distillation"))
    value = _rows(here)
    fitted = fit_table(value, source=here, target=there, mode=mode)  # type: ignore[arg-type]
    expected = resample_positions(value, source=source, target=target, num_prefix=2, mode=mode)  # type: ignore[arg-type]
    assert torch.equal(fitted, expected)


def test_rows_of_prefix_tokens_are_matched_by_name() -> None:
    here, there = GridTable(grid=SQUARE, prefix=("class", "distillation")), GridTable(grid=LARGE, prefix=("register0", "class"))
    value = _rows(here)
    fitted = fit_table(value, source=here, target=there, mode="hf")
    assert fitted.shape == (1, 2 + 30, 6)
    assert torch.equal(fitted[:, 0], torch.zeros(1, 6))
    assert torch.equal(fitted[:, 1], value[:, 0])
    without = fit_table(value[:, 2:], source=GridTable(grid=SQUARE), target=GridTable(grid=LARGE), mode="hf")
    assert torch.equal(fitted[:, 2:], without)
    words = describe_fit(here, target=there, mode="hf")
    assert words == "grid 4 x 4 to 6 x 5 by mode hf, row of the register0 token starts at 0, row of the distillation token dropped"


@pytest.mark.parametrize(("num_extra", "new_extra"), [(3, 3), (0, 3), (3, 0), (0, 0)])
def test_offsets_follow_the_mode_and_extra_rows_come_and_go(num_extra: int, new_extra: int) -> None:
    here, there = OffsetTable(window=SQUARE, num_extra=num_extra), OffsetTable(window=LARGE, num_extra=new_extra)
    value = _rows(here)
    fitted = fit_table(value, source=here, target=there, mode="beit")
    resampled = resample_relative_table(value, source=SQUARE, target=LARGE, num_extra=num_extra, rule="geometric_cubic")
    assert fitted.shape == _rows(there).shape
    num_offsets = 11 * 9
    assert torch.equal(fitted[:num_offsets], resampled[:num_offsets])
    extra = value[len(value) - 3 :] if num_extra == new_extra == 3 else torch.zeros(new_extra, 6)
    assert torch.equal(fitted[num_offsets:], extra)
    assert describe_fit(here, target=there, mode="beit") == "window 4 x 4 to 6 x 5 by mode beit (geometric cubic)"


def test_an_axis_is_linear_in_every_mode() -> None:
    here, there = AxisTable(length=13), AxisTable(length=27)
    value = _rows(here)
    assert torch.equal(fit_table(value, source=here, target=there, mode="google"), resample_line(value, length=27, dim=0))
    assert describe_fit(here, target=there, mode="google") == "13 to 27 positions, linear"


def test_what_a_mode_or_kind_cannot_do() -> None:
    window = OffsetTable(window=SQUARE)
    assert can_fit(window, target=OffsetTable(window=LARGE), mode="swin")
    assert not can_fit(window, target=OffsetTable(window=LARGE), mode="google")
    assert not can_fit(window, target=GridTable(grid=LARGE), mode="timm")
    assert can_fit(GridTable(grid=SQUARE), target=GridTable(grid=LARGE), mode="google")
    with pytest.raises(AssertionError):
        fit_table(_rows(window), source=window, target=GridTable(grid=LARGE), mode="timm")
