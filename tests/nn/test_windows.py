import pytest
import torch

from vitscale.nn.resample import Grid
from vitscale.nn.windows import Windows, cut_windows, shift_mask


def numbered(grid: Grid) -> torch.Tensor:
    """A map (1, R, C, 1) of the numbers 1, 2, ... row by row; 0 is padding."""
    return torch.arange(1, grid.rows * grid.columns + 1).view(1, *grid, 1)


@pytest.mark.parametrize("grid", [Grid(6, 6), Grid(7, 4), Grid(2, 5)])
@pytest.mark.parametrize("padding", ["before_shift", "after_shift"])
@pytest.mark.parametrize("shift", [0, 1])
def test_joining_undoes_cutting(grid: Grid, padding: str, shift: int) -> None:
    windows = Windows(side=3, shift=shift, padding=padding)
    x_BRCD = torch.randn(2, *grid, 5)
    cut_BWMD = windows.cut(x_BRCD)
    assert cut_BWMD.shape == (2, -(-grid.rows // 3) * -(-grid.columns // 3), 9, 5)
    assert torch.equal(windows.join(cut_BWMD, grid=grid), x_BRCD)


def test_windows_and_their_tokens_come_row_by_row() -> None:
    windows = cut_windows(numbered(Grid(2, 4)), side=2)[0, :, :, 0]
    assert windows.tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]


def test_the_shift_goes_up_and_to_the_left() -> None:
    cut = Windows(side=2, shift=1, padding="before_shift").cut(numbered(Grid(4, 4)))[0, :, :, 0]
    assert cut.tolist() == [[6, 7, 10, 11], [8, 5, 12, 9], [14, 15, 2, 3], [16, 13, 4, 1]]


@pytest.mark.parametrize(("padding", "row"), [("before_shift", [2, 3, 0, 1]), ("after_shift", [2, 3, 1, 0])])
def test_padding_comes_before_or_after_the_shift(padding: str, row: list[int]) -> None:
    # Two windows side by side over the first row; the padded row below is cut off.
    cut = Windows(side=2, shift=1, padding=padding).cut(numbered(Grid(4, 3)))
    map_RC = cut[0].unflatten(0, (2, 2)).unflatten(2, (2, 2)).transpose(1, 2).flatten(2).flatten(0, 1).view(4, 4)
    assert map_RC[-1].tolist() == row


@pytest.mark.parametrize(("grid", "side", "shift"), [(Grid(8, 8), 4, 2), (Grid(6, 9), 3, 1), (Grid(5, 5), 5, 2)])
def test_the_mask_is_the_reference_code_s(grid: Grid, side: int, shift: int) -> None:
    # microsoft/Swin-Transformer, models/swin_transformer.py: nine slices of the map with a number each.
    region_1RC1 = torch.zeros(1, *grid, 1)
    parts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in parts for columns in parts):
        region_1RC1[:, rows, columns] = number
    region_WM = cut_windows(region_1RC1, side=side)[0, :, :, 0]
    expected_WMM = (region_WM.unsqueeze(1) != region_WM.unsqueeze(2)) * -100.0
    assert torch.equal(shift_mask(grid, side=side, shift=shift), expected_WMM)


def test_masks_are_of_the_padded_map_and_made_once() -> None:
    windows = Windows(side=3, shift=1, padding="before_shift")
    like = torch.zeros(1, dtype=torch.bfloat16)
    mask_WMM = windows.mask(like, grid=Grid(5, 4))
    assert mask_WMM.dtype == torch.bfloat16
    assert torch.equal(mask_WMM, shift_mask(Grid(6, 6), side=3, shift=1).bfloat16())
    assert windows.mask(like, grid=Grid(6, 6)) is mask_WMM
    assert Windows(side=3, shift=0, padding="before_shift").mask(like, grid=Grid(6, 6)) is None
