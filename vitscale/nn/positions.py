"""Absolute position encodings of a token grid: learned, or fixed 2-D sine and cosine tables."""

# N tokens, D width, Q = D/4 frequencies

from typing import Literal

import torch
from torch import Tensor, nn

from vitscale.nn.init import normal, set_init
from vitscale.nn.resample import Grid
from vitscale.nn.tables import TableCache

Positions = Literal["learned", "sincos2d_mae", "sincos2d_big_vision"]
"""learned: a table that is trained. sincos2d_mae and sincos2d_big_vision: fixed tables that differ in their frequencies."""

_TEMPERATURE = 10000.0


def learned_positions(*, num_tokens: int, width: int) -> nn.Parameter:
    """A learned table (1, N, D), started from normal(0.02) as in vit_jax. The class token, where there is one, is row 0."""
    return set_init(nn.Parameter(torch.empty(1, num_tokens, width)), normal(0.02))


def sincos_positions(kind: Positions, *, rows: int, columns: int, width: int, class_token: bool) -> Tensor:
    """The fixed fp32 table (1, N, D) on the CPU, tokens row by row, the class token's row zeros.

    A token at column x and row y has `[sin(x w), cos(x w), sin(y w), cos(y w)]` with D/4 frequencies w_k:
    10000^(-k/Q) for sincos2d_mae (facebookresearch/mae, util/pos_embed.py), 10000^(-k/(Q-1)) for sincos2d_big_vision
    (google-research/big_vision, models/vit.py; also MoCo v3).
    """
    assert kind != "learned", "a learned table is a parameter"
    assert width % 4 == 0, f"width {width} does not hold two sines and two cosines per frequency"
    num_frequencies = width // 4
    span = num_frequencies if kind == "sincos2d_mae" else num_frequencies - 1
    # float64 keeps it exact to fp32.
    with torch.device("cpu"):
        frequencies_Q = _TEMPERATURE ** (-torch.arange(num_frequencies, dtype=torch.float64) / span)
        y_N, x_N = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        x_NQ = x_N.reshape(-1, 1) * frequencies_Q
        y_NQ = y_N.reshape(-1, 1) * frequencies_Q
        table_ND = torch.cat([x_NQ.sin(), x_NQ.cos(), y_NQ.sin(), y_NQ.cos()], dim=1).float()
        if class_token:
            table_ND = torch.cat([torch.zeros(1, width), table_ND])
    return table_ND.unsqueeze(0)


class FixedPositions:
    """A sin-cos table of every grid that is asked for."""

    def __init__(self, kind: Positions, *, width: int, class_token: bool) -> None:
        def table(grid: Grid) -> Tensor:
            return sincos_positions(kind, rows=grid.rows, columns=grid.columns, width=width, class_token=class_token)

        self._tables = TableCache(table)

    def like(self, x: Tensor, *, grid: Grid) -> Tensor:
        """The table (1, N, D) of a grid on the device and in the type of `x`."""
        return self._tables.like(x, grid)
