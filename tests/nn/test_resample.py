"""Position resampling against the implementations it is named after, on square and non-square grids."""

import types

import numpy as np
import pytest
import torch
from torch import Tensor

from vitscale.nn.resample import POSITION_MODES, Grid, PositionMode, resample_positions

PAIRS = [
    (Grid(4, 4), Grid(7, 7)),
    (Grid(14, 14), Grid(24, 24)),
    (Grid(7, 7), Grid(4, 4)),
    (Grid(3, 5), Grid(6, 4)),
    (Grid(2, 8), Grid(4, 4)),  # as many tokens, another grid
    (Grid(1, 1), Grid(3, 2)),
    (Grid(5, 3), Grid(1, 1)),
]


def _table(grid: Grid, *, num_prefix: int = 1, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(grid.rows * 100 + grid.columns)
    return torch.randn(1, num_prefix + grid.rows * grid.columns, width, generator=generator)


def _zoom(values: np.ndarray, size: int, *, axis: int) -> np.ndarray:
    """scipy.ndimage.zoom(order=1) along one axis: linear interpolation at evenly spaced points from first to last sample."""
    points = np.linspace(0.0, values.shape[axis] - 1, size) if size > 1 else np.zeros(1)
    return np.apply_along_axis(lambda line: np.interp(points, np.arange(len(line)), line), axis, values)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_google_is_corner_aligned_linear_zoom(source: Grid, target: Grid) -> None:
    table = _table(source)
    grid = table[0, 1:].double().numpy().reshape(*source, -1)
    expected = _zoom(_zoom(grid, target.rows, axis=0), target.columns, axis=1).reshape(target.rows * target.columns, -1)
    resampled = resample_positions(table, source=source, target=target, num_prefix=1, mode="google")
    np.testing.assert_allclose(resampled[0, 1:].numpy(), expected, atol=5e-6)  # torch places the samples in fp32


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_timm_is_timms(source: Grid, target: Grid, num_prefix: int) -> None:
    from timm.layers import resample_abs_pos_embed

    table = _table(source, num_prefix=num_prefix)
    expected = resample_abs_pos_embed(table, new_size=list(target), old_size=list(source), num_prefix_tokens=num_prefix)
    assert torch.equal(resample_positions(table, source=source, target=target, num_prefix=num_prefix, mode="timm"), expected)


@pytest.mark.parametrize(("source", "target"), [(s, t) for s, t in PAIRS if s.rows == s.columns])
def test_hf_is_transformers(source: Grid, target: Grid) -> None:
    from transformers.models.vit.modeling_vit import ViTEmbeddings

    table = _table(source)
    # The method reads two attributes of its module; a whole model would only add to them.
    module = types.SimpleNamespace(position_embeddings=table, patch_size=2)
    patches = torch.zeros(1, 1 + target.rows * target.columns, table.shape[-1])
    expected = ViTEmbeddings.interpolate_pos_encoding(module, patches, target.rows * 2, target.columns * 2)
    assert torch.equal(resample_positions(table, source=source, target=target, num_prefix=1, mode="hf"), expected)


@pytest.mark.parametrize("mode", POSITION_MODES)
def test_prefix_rows_are_kept_and_the_same_grid_is_not_touched(mode: PositionMode) -> None:
    table = _table(Grid(3, 4), num_prefix=2)
    assert torch.equal(resample_positions(table, source=Grid(3, 4), target=Grid(3, 4), num_prefix=2, mode=mode), table)
    resampled = resample_positions(table, source=Grid(3, 4), target=Grid(5, 2), num_prefix=2, mode=mode)
    assert resampled.shape == (1, 2 + 10, 6)
    assert torch.equal(resampled[:, :2], table[:, :2])


@pytest.mark.parametrize("mode", POSITION_MODES)
def test_rows_and_columns_are_not_swapped(mode: PositionMode) -> None:
    source, target = Grid(4, 6), Grid(8, 3)
    by_row = torch.arange(4.0).view(4, 1).expand(4, 6).reshape(1, 24, 1)
    resampled = resample_positions(by_row, source=source, target=target, num_prefix=0, mode=mode).view(target)
    torch.testing.assert_close(resampled, resampled[:, :1].expand(8, 3))
    assert resampled[:, 0].diff().min() > 0


def test_the_modes_differ() -> None:
    table = _table(Grid(6, 6))
    results = [resample_positions(table, source=Grid(6, 6), target=Grid(4, 4), num_prefix=1, mode=mode) for mode in POSITION_MODES]
    for i, one in enumerate(results):
        assert all((one - other).abs().max() > 0.05 for other in results[i + 1 :])


def test_half_precision_tables_are_resampled_in_fp32() -> None:
    table = _table(Grid(4, 4)).to(torch.bfloat16)
    resampled = resample_positions(table, source=Grid(4, 4), target=Grid(3, 3), num_prefix=1, mode="timm")
    assert resampled.dtype == torch.float32
    assert torch.equal(resampled, resample_positions(table.float(), source=Grid(4, 4), target=Grid(3, 3), num_prefix=1, mode="timm"))


def test_a_table_of_another_grid_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        resample_positions(_table(Grid(4, 4)), source=Grid(4, 5), target=Grid(2, 2), num_prefix=1, mode="hf")
