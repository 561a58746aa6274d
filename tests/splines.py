"""BEiT's resampling of a relative table, by its definition: cubic splines on positions that draw apart from the centre."""

import numpy as np

from vitscale.nn.relative_tables import geometric_ratio
from vitscale.nn.resample import Grid


def beit_table(table: np.ndarray, *, source: Grid, target: Grid) -> np.ndarray:
    """A table (L, H) of the offsets in a window as one for another window."""
    sides, new_sides = [2 * side - 1 for side in source], [2 * side - 1 for side in target]
    plane = table.reshape(*sides, -1)
    for axis, (side, new_side) in enumerate(zip(sides, new_sides, strict=True)):
        moved = np.moveaxis(plane, axis, 0)
        points = np.arange(new_side) - new_side // 2.0
        splined = _not_a_knot(_positions(side, new_side), moved.reshape(side, -1), points)
        plane = np.moveaxis(splined.reshape(new_side, *moved.shape[1:]), 0, axis)
    return plane.reshape(-1, table.shape[1])


def _positions(source: int, target: int) -> np.ndarray:
    """Where BEiT places a table of `source` offsets, from the definition: partial sums of the progression, mirrored."""
    ratio = geometric_ratio(source=source, target=target)
    sums = [sum(ratio**i for i in range(k + 1)) for k in range(source // 2)]
    return np.array([*(-s for s in reversed(sums)), 0.0, *sums])


def _not_a_knot(x: np.ndarray, values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The cubic spline through (x, values[i]) by its second derivatives: another way than B-splines to the same curve."""
    n, h = len(x), np.diff(x)
    system, right = np.zeros((n, n)), np.zeros((n, values.shape[1]))
    system[0, :3] = [h[1], -(h[0] + h[1]), h[0]]
    system[-1, -3:] = [h[-1], -(h[-2] + h[-1]), h[-2]]
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = [h[i - 1], 2 * (h[i - 1] + h[i]), h[i]]
        right[i] = 6 * ((values[i + 1] - values[i]) / h[i] - (values[i] - values[i - 1]) / h[i - 1])
    bends = np.linalg.solve(system, right)
    points = points.clip(x[0], x[-1])
    i = (np.searchsorted(x, points) - 1).clip(0, n - 2)
    a, b = ((x[i + 1] - points) / h[i])[:, None], ((points - x[i]) / h[i])[:, None]
    cubic = ((a**3 - a) * bends[i] + (b**3 - b) * bends[i + 1]) * (h[i] ** 2)[:, None] / 6
    return a * values[i] + b * values[i + 1] + cubic
