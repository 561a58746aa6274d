"""Relative position bias from a table: what BEiT and Swin add to the attention scores of each pair of tokens."""

# H heads, R rows, C columns, N patch tokens, P prefix tokens, T = P + N, L table entries, E entries of prefix tokens

from typing import Literal

import torch
from torch import Tensor, nn

from vitscale.config import Config
from vitscale.nn.init import Init, set_init, zeros
from vitscale.nn.position_table import OffsetTable, set_table
from vitscale.nn.relative_tables import resample_relative_table
from vitscale.nn.resample import Grid, RelativeRule

NUM_PREFIX_ENTRIES = 3
"""Entries after the offsets' where there are prefix tokens: from prefix to patch, from patch to prefix, from prefix to prefix."""


class RelativeBiasConfig(Config):
    """BEiT's: a learned number for every offset between two patches and every head, three for pairs with prefix tokens."""

    kind: Literal["relative"] = "relative"
    shared: bool = False
    """Whether all blocks use one table (BEiT in pre-training) instead of one each."""

    def build(self, *, grid: Grid, num_heads: int, has_prefix: bool, rule: RelativeRule) -> "RelativeBias":
        """A table that starts from zeros, as BEiT's."""
        return RelativeBias(grid=grid, num_heads=num_heads, has_prefix=has_prefix, init=zeros(), rule=rule)


class RelativeBias(nn.Module):
    """One learned number for every offset (row, column) between two patches and every head (Bao et al. 2022; Liu et al. 2021).

    `table` is (L, H), L = (2R - 1)(2C - 1), offsets of query minus key row by row from -(R - 1), -(C - 1), as in both projects. With
    prefix tokens it has three entries more, BEiT's for its class token; several prefix tokens share them. Away from `grid` the table
    is resampled by `rule`, and trained through.
    """

    def __init__(self, *, grid: Grid, num_heads: int, has_prefix: bool, init: Init, rule: RelativeRule = "geometric_linear") -> None:
        super().__init__()
        self.grid = grid
        self.rule: RelativeRule = rule
        self.num_extra = NUM_PREFIX_ENTRIES if has_prefix else 0
        num_entries = (2 * grid.rows - 1) * (2 * grid.columns - 1) + self.num_extra
        table = OffsetTable(window=grid, num_extra=NUM_PREFIX_ENTRIES * has_prefix)
        self.table = set_table(set_init(nn.Parameter(torch.empty(num_entries, num_heads)), init), table)

    def forward(self, *, grid: Grid, num_prefix: int) -> Tensor:
        """The bias (H, P + N, P + N), rows of queries."""
        assert self.num_extra or not num_prefix, "this table has no entries for prefix tokens"
        table_LH = self._table_of(grid)
        offsets_LH, prefix_EH = table_LH.split([table_LH.shape[0] - self.num_extra, self.num_extra])
        bias_HNN = offset_bias(offsets_LH, grid=grid)
        return _with_prefix(bias_HNN, prefix_EH, num_prefix=num_prefix) if num_prefix else bias_HNN

    def _table_of(self, grid: Grid) -> Tensor:
        if grid == self.grid:
            return self.table
        table_LH = resample_relative_table(self.table, source=self.grid, target=grid, num_extra=self.num_extra, rule=self.rule)
        return table_LH.to(self.table.dtype)


def offset_bias(table_LH: Tensor, *, grid: Grid) -> Tensor:
    """(H, N, N): entry `query - key` of a table of offsets (L, H) for every pair of patches."""
    table_HYX = table_LH.t().unflatten(1, (2 * grid.rows - 1, 2 * grid.columns - 1))
    # Window r of the offsets holds those of query row r, last key first: views instead of an index of N x N places.
    bias_HRCRC = table_HYX.unfold(1, grid.rows, 1).unfold(2, grid.columns, 1).flip(-2, -1)
    bias_HNN: Tensor = bias_HRCRC.flatten(3).flatten(1, 2)
    return bias_HNN


def _with_prefix(bias_HNN: Tensor, prefix_EH: Tensor, *, num_prefix: int) -> Tensor:
    """(H, P + N, P + N): prefix tokens first."""
    num_heads, num_patches, _ = bias_HNN.shape
    to_patch_H11, from_patch_H11, within_H11 = (entry_H.view(-1, 1, 1) for entry_H in prefix_EH)
    within_HPP = within_H11.expand(num_heads, num_prefix, num_prefix)
    rows_HPT = torch.cat([within_HPP, to_patch_H11.expand(num_heads, num_prefix, num_patches)], dim=2)
    rows_HNT = torch.cat([from_patch_H11.expand(num_heads, num_patches, num_prefix), bias_HNN], dim=2)
    return torch.cat([rows_HPT, rows_HNT], dim=1)
