"""Resampling tables of relative positions to another window: over a plane, as Swin and BEiT have them, or along one axis."""

# L offsets of a window and extra rows, R and C offsets along rows and columns (2 * side - 1), H heads, S old and T new positions

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.nn.resample import Grid, RelativeRule
from vitscale.nn.tables import TableCache

_RATIO_LIMITS = (1.01, 1.5)
_RATIO_PRECISION = 1e-6
_DEGREES: dict[RelativeRule, int] = {"geometric_cubic": 3, "geometric_linear": 1}
# All blocks resample alike in every step: waiting for the CPU in each would hold up the device.
_WEIGHTS = TableCache(lambda source, target, degree: _geometric_weights(source=source, target=target, degree=degree))


def resample_relative_table(table_LH: Tensor, *, source: Grid, target: Grid, num_extra: int, rule: RelativeRule) -> Tensor:
    """A table ((2 rows - 1) * (2 columns - 1) + extra, H) for windows of the grid `source` as one for `target`, in fp32.

    Its rows are the offsets between two tokens, that along the window's rows slowest; the last `num_extra` ones, for pairs with
    the class token, are kept as they are. A table for the same window is returned unchanged.
    """
    rows, columns = _offsets(source)
    assert table_LH.shape[0] == rows * columns + num_extra, (table_LH.shape, source, num_extra)
    if source == target:
        return table_LH.float()
    plane_LH, extra_EH = table_LH.float().split([rows * columns, num_extra])
    plane_HRC = plane_LH.T.unflatten(1, (rows, columns))
    if rule in _DEGREES:
        resampled_HRC = _on_geometric_grid(plane_HRC, target=_offsets(target), degree=_DEGREES[rule])
    else:
        resampled_HRC = F.interpolate(plane_HRC[None], size=tuple(_offsets(target)), mode=rule, align_corners=False)[0]
    return torch.cat([resampled_HRC.flatten(1).T, extra_EH])


def resample_line(table: Tensor, *, length: int, dim: int) -> Tensor:
    """A table of positions along one axis, which is dimension `dim`, with `length` of them: linear, in fp32.

    Of decomposed relative positions (`get_rel_pos` of facebookresearch/segment-anything and of ViTDet and MViTv2 in
    facebookresearch/detectron2) and of factorised absolute ones (timm's NaFlexVit).
    """
    if table.shape[dim] == length:
        return table.float()
    lines = table.float().movedim(dim, -1)
    resampled = F.interpolate(lines.reshape(1, -1, lines.shape[-1]), size=length, mode="linear", align_corners=False)
    return resampled.reshape(*lines.shape[:-1], length).movedim(-1, dim)


def geometric_ratio(*, source: int, target: int) -> float:
    """The ratio of the geometric progression whose sum over half the `source` offsets is half of `target`, as BEiT finds it.

    By bisection between 1.01 and 1.5 (microsoft/unilm, beit/run_class_finetuning.py): the last midpoint looked at. Where the
    table does not grow that is 1.01, as there.
    """
    left, right = _RATIO_LIMITS
    ratio = left
    while right - left > _RATIO_PRECISION:
        ratio = (left + right) / 2
        if (1 - ratio ** (source // 2)) / (1 - ratio) > target // 2:
            right = ratio
        else:
            left = ratio
    return ratio


def _offsets(window: Grid) -> Grid:
    """Number of offsets between two tokens of a window along its rows and columns."""
    return Grid(2 * window.rows - 1, 2 * window.columns - 1)


def _on_geometric_grid(plane_HRC: Tensor, *, target: Grid, degree: int) -> Tensor:
    exact_HRC = plane_HRC.double()
    rows_TS = _WEIGHTS.like(exact_HRC, plane_HRC.shape[1], target.rows, degree)
    columns_TS = _WEIGHTS.like(exact_HRC, plane_HRC.shape[2], target.columns, degree)
    return (rows_TS @ exact_HRC @ columns_TS.T).float()


def _geometric_weights(*, source: int, target: int, degree: int) -> Tensor:
    """The linear map (T, S) from values at the geometric positions to values at the integers around 0, in float64.

    Integers beyond the outermost position get its value.
    """
    steps = geometric_ratio(source=source, target=target) ** torch.arange(source // 2, dtype=torch.float64)
    distances = steps.cumsum(0)
    positions_S = torch.cat([-distances.flip(0), torch.zeros(1, dtype=torch.float64), distances])
    points_T = torch.arange(target, dtype=torch.float64) - target // 2
    return _spline_weights(positions_S, points_T.clamp(positions_S[0], positions_S[-1]), degree=min(degree, source - 1))


def _spline_weights(positions_S: Tensor, points_T: Tensor, *, degree: int) -> Tensor:
    """The linear map (T, S) from values at increasing positions to the spline through them at points between.

    Its knots are those of FITPACK's interpolating splines: of a cubic one all positions but the second and the last but one
    ("not a knot"), so that values on a cubic polynomial give that polynomial.
    """
    num_skipped = degree // 2 + 1
    inner = positions_S[num_skipped : len(positions_S) - num_skipped]
    knots = torch.cat([positions_S[:1].expand(degree + 1), inner, positions_S[-1:].expand(degree + 1)])
    to_coefficients_SS: Tensor = torch.linalg.inv(_spline_basis(knots, positions_S, degree=degree))
    return _spline_basis(knots, points_T, degree=degree) @ to_coefficients_SS


def _spline_basis(knots: Tensor, points: Tensor, *, degree: int) -> Tensor:
    """The B-splines of a degree over `knots` (columns) at `points` (rows), by the recursion of Cox and de Boor."""
    num_intervals = len(knots) - 1
    interval = (torch.searchsorted(knots, points, right=True) - 1).clamp(degree, num_intervals - 1 - degree)
    basis: Tensor = F.one_hot(interval, num_intervals).double()
    for order in range(1, degree + 1):
        width = knots[order:] - knots[:-order]
        # Where knots coincide the spline over them is zero, and so is its share.
        rising = ((points[:, None] - knots[:-order]) / width).nan_to_num(0, 0, 0)
        basis = rising[:, :-1] * basis[:, :-1] + (1 - rising[:, 1:]) * basis[:, 1:]
    return basis
