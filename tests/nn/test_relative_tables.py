"""Relative tables at another window: against timm, transformers, Swin's and SAM's formulas, and against splines found otherwise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.splines import beit_table
from vitscale.nn.relative_tables import geometric_ratio, resample_line, resample_relative_table
from vitscale.nn.resample import POSITION_MODES, Grid, RelativeRule

RULES: list[RelativeRule] = ["geometric_cubic", "geometric_linear", "bicubic", "bilinear"]
SQUARE = [(7, 12), (4, 7), (3, 5), (7, 4), (2, 3), (3, 9)]


def _table(window: Grid, *, num_extra: int = 0, num_heads: int = 3) -> Tensor:
    num_offsets = (2 * window.rows - 1) * (2 * window.columns - 1)
    return torch.randn(num_offsets + num_extra, num_heads, generator=torch.Generator().manual_seed(window.rows * 100 + window.columns))


def _square(side: int) -> Grid:
    return Grid(side, side)


@pytest.mark.parametrize(("source", "target", "ratio"), [(27, 47, 1.090307), (27, 63, 1.134918), (13, 23, 1.240724)])
def test_the_ratio_is_beits(source: int, target: int, ratio: float) -> None:
    assert geometric_ratio(source=source, target=target) == pytest.approx(ratio, abs=1e-6)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Grid(14, 14), Grid(24, 24)),
        (Grid(7, 7), Grid(12, 12)),
        (Grid(3, 4), Grid(5, 6)),
        (Grid(5, 3), Grid(3, 9)),
        (Grid(12, 12), Grid(7, 7)),
    ],
)
def test_cubic_on_the_geometric_grid_is_the_tensor_product_spline(source: Grid, target: Grid) -> None:
    table = _table(source, num_extra=3)
    expected = beit_table(table[:-3].double().numpy(), source=source, target=target)
    resampled = resample_relative_table(table, source=source, target=target, num_extra=3, rule="geometric_cubic")
    np.testing.assert_allclose(resampled[:-3].numpy(), expected, atol=2e-6)
    assert torch.equal(resampled[-3:], table[-3:])


def test_cubic_on_the_geometric_grid_is_scipys() -> None:
    """scipy 1.17.1, RectBivariateSpline(kx=3, ky=3, s=0) on BEiT's positions for 5 x 5 to 9 x 9: the row through 0 and the diagonal."""
    table = (torch.arange(25.0) ** 2 % 7).view(25, 1)
    resampled = resample_relative_table(table, source=_square(3), target=_square(5), num_extra=0, rule="geometric_cubic").view(9, 9)
    row = [2.0, 2.0, 0.272383421, 2.0, 4.0, 1.0, -1.499045289, 0.0, 0.0]
    diagonal = [0.0, 0.0, 3.336131139, 1.0, 4.0, 2.0, 7.539559477, 2.0, 2.0]
    np.testing.assert_allclose(resampled[4].numpy(), row, atol=1e-6)
    np.testing.assert_allclose(resampled.diagonal().numpy(), diagonal, atol=1e-6)


@pytest.mark.parametrize("num_extra", [0, 3])
@pytest.mark.parametrize(
    ("source", "target"),
    [*((_square(s), _square(t)) for s, t in SQUARE), (Grid(3, 5), Grid(6, 4)), (Grid(2, 8), Grid(4, 4)), (Grid(3, 4), Grid(3, 7))],
)
def test_linear_on_the_geometric_grid_is_timms(source: Grid, target: Grid, num_extra: int) -> None:
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    table = _table(source, num_extra=num_extra)
    shape = ((2 * target.rows - 1) * (2 * target.columns - 1) + num_extra, 3)
    expected = resize_rel_pos_bias_table(table, new_window_size=target, new_bias_shape=shape, old_window_size=source)
    rule = POSITION_MODES["timm"].relative
    assert rule is not None
    resampled = resample_relative_table(table, source=source, target=target, num_extra=num_extra, rule=rule)
    torch.testing.assert_close(resampled, expected, atol=5e-6, rtol=0)  # timm places the positions in fp32


@pytest.mark.parametrize(("source", "target"), SQUARE)
def test_bilinear_is_transformers_beit(source: int, target: int) -> None:
    from transformers import BeitConfig
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    module = BeitRelativePositionBias(BeitConfig(image_size=2 * source, patch_size=2, num_attention_heads=3))
    table = _table(_square(source), num_extra=3)
    module.relative_position_bias_table.data = table
    rule = POSITION_MODES["hf"].relative
    assert rule is not None
    resampled = resample_relative_table(table, source=_square(source), target=_square(target), num_extra=3, rule=rule)
    index = module.generate_relative_position_index((target, target))
    expected = module((target, target))[0]
    assert torch.equal(resampled[index.view(-1)].view(*index.shape, 3).permute(2, 0, 1), expected)


@pytest.mark.parametrize(("source", "target"), SQUARE)
def test_bicubic_is_swins(source: int, target: int) -> None:
    """microsoft/Swin-Transformer, utils.py, `load_pretrained`: (1, heads, S, S) with S the root of the number of rows, bicubic."""
    table = _table(_square(source))
    side, new_side = 2 * source - 1, 2 * target - 1
    expected = F.interpolate(table.permute(1, 0).reshape(1, 3, side, side), size=(new_side, new_side), mode="bicubic")
    rule = POSITION_MODES["swin"].relative
    assert rule is not None
    resampled = resample_relative_table(table, source=_square(source), target=_square(target), num_extra=0, rule=rule)
    assert torch.equal(resampled, expected.reshape(3, new_side**2).permute(1, 0))


@pytest.mark.parametrize("rule", RULES)
def test_extra_rows_and_the_same_window_are_kept(rule: RelativeRule) -> None:
    table = _table(Grid(3, 4), num_extra=3)
    assert torch.equal(resample_relative_table(table, source=Grid(3, 4), target=Grid(3, 4), num_extra=3, rule=rule), table)
    resampled = resample_relative_table(table, source=Grid(3, 4), target=Grid(2, 6), num_extra=3, rule=rule)
    assert resampled.shape == (3 * 11 + 3, 3)
    assert torch.equal(resampled[-3:], table[-3:])


@pytest.mark.parametrize("rule", RULES)
def test_rows_and_columns_are_not_swapped(rule: RelativeRule) -> None:
    by_row = torch.arange(7.0).view(7, 1).expand(7, 11).reshape(-1, 1)
    resampled = resample_relative_table(by_row, source=Grid(4, 6), target=Grid(6, 4), num_extra=0, rule=rule).view(11, 7)
    torch.testing.assert_close(resampled, resampled[:, :1].expand(11, 7))
    assert resampled[:, 0].diff().min() > 0


@pytest.mark.parametrize("rule", RULES)
def test_a_window_of_one_patch_gives_its_number_everywhere(rule: RelativeRule) -> None:
    resampled = resample_relative_table(torch.tensor([[2.0]]), source=_square(1), target=_square(3), num_extra=0, rule=rule)
    torch.testing.assert_close(resampled, torch.full((25, 1), 2.0))


def test_the_rules_differ() -> None:
    table = _table(_square(7))
    results = [resample_relative_table(table, source=_square(7), target=_square(12), num_extra=0, rule=rule) for rule in RULES]
    for i, one in enumerate(results):
        assert all((one - other).abs().max() > 0.05 for other in results[i + 1 :])


@pytest.mark.parametrize("rule", RULES)
def test_nothing_leaves_the_device(rule: RelativeRule) -> None:
    table = torch.empty(5 * 5 + 3, 2, device="meta")  # what would be read on the CPU is not there
    resampled = resample_relative_table(table, source=_square(3), target=_square(6), num_extra=3, rule=rule)
    assert (resampled.device.type, resampled.shape) == ("meta", (11 * 11 + 3, 2))


@pytest.mark.parametrize("rule", RULES)
def test_gradients_pass_through_also_after_an_evaluation(rule: RelativeRule) -> None:
    table = _table(_square(3)).requires_grad_()
    with torch.inference_mode():
        resample_relative_table(table, source=_square(3), target=_square(5), num_extra=0, rule=rule)
    resample_relative_table(table, source=_square(3), target=_square(5), num_extra=0, rule=rule).sum().backward()
    assert table.grad is not None
    assert table.grad.abs().max() > 0


@pytest.mark.parametrize(("length", "target"), [(13, 27), (27, 13), (27, 27), (7, 8)])
def test_a_line_is_resampled_as_in_sam(length: int, target: int) -> None:
    from timm.models.vision_transformer_sam import get_rel_pos

    table = torch.randn(length, 6, generator=torch.Generator().manual_seed(length))
    side = (target + 1) // 2
    if target % 2:
        # get_rel_pos gives (queries, keys, 6); its last column and first row reversed hold every offset once.
        pairs = get_rel_pos(side, side, table)
        expected = torch.cat([pairs[0].flip(0), pairs[1:, 0]])
    else:
        expected = F.interpolate(table.T[None], size=target, mode="linear")[0].T
    assert torch.equal(resample_line(table, length=target, dim=0), expected)
    assert torch.equal(resample_line(table.T, length=target, dim=1), expected.T)


def test_a_table_of_another_window_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        resample_relative_table(_table(_square(3)), source=_square(4), target=_square(5), num_extra=0, rule="bicubic")
