"""Learned positions in two factors: a vector for the row and a vector for the column of a patch, added up."""

# N patch tokens, D width, R rows, C columns

import torch
from torch import Tensor, nn

from vitscale.nn.grid_batch import GridBatch
from vitscale.nn.init import normal, set_init
from vitscale.nn.position_table import AxisTable, set_table
from vitscale.nn.relative_tables import resample_line
from vitscale.nn.resample import Grid


class FactorisedPositions(nn.Module):
    """`rows[row] + columns[column]`, tables (R, D) and (C, D) started from normal(0.02), as `pos_embed="factorized"` of timm's
    NaFlexVit (NaViT, Dehghani et al. 2023). At another grid each table is interpolated linearly (align_corners=False)."""

    def __init__(self, *, grid: Grid, width: int) -> None:
        super().__init__()
        self.rows, self.columns = (
            set_table(set_init(nn.Parameter(torch.empty(length, width)), normal(0.02)), AxisTable(length=length)) for length in grid
        )

    def forward(self, *, grid: Grid | GridBatch) -> Tensor:
        """The table (1, N, D) to add to the patch tokens of a grid, or (B, N, D) for the grids of a batch."""
        return grid.table(self._table) if isinstance(grid, GridBatch) else self._table(grid)

    def _table(self, grid: Grid) -> Tensor:
        rows_RD = resample_line(self.rows, length=grid.rows, dim=0)
        columns_CD = resample_line(self.columns, length=grid.columns, dim=0)
        table_ND = (rows_RD.unsqueeze(1) + columns_CD).flatten(0, 1)
        return table_ND.unsqueeze(0).to(self.rows.dtype)
