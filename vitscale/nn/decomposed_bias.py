"""Decomposed relative positions: a bias from the query and the offsets of rows and columns apart, as in MViTv2, ViTDet and SAM."""

# B batch, H heads, N patch tokens, P prefix tokens, K head width, R rows, C columns, L table entries

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.config import Config
from vitscale.nn.init import set_init, zeros
from vitscale.nn.position_table import AxisTable, set_table
from vitscale.nn.relative_tables import resample_line
from vitscale.nn.resample import Grid


class DecomposedBiasConfig(Config):
    """MViTv2's, ViTDet's and SAM's: learned vectors for the offsets of rows and of columns, multiplied with the queries."""

    kind: Literal["decomposed"] = "decomposed"

    def build(self, *, grid: Grid, head_width: int) -> "DecomposedBias":
        """The tables of one block, whose attention spans `grid`."""
        return DecomposedBias(grid=grid, head_width=head_width)


class DecomposedBias(nn.Module):
    """`q . rows[row offset] + q . columns[column offset]`, from unscaled queries, added to the scaled scores (Li et al. 2022).

    `rows` is (2R - 1, K), `columns` (2C - 1, K), offsets of query minus key from the least; shared by all heads. They are `rel_pos_h` and
    `rel_pos_w` of facebookresearch/segment-anything, whose `get_rel_pos` this follows: at another grid the tables are interpolated
    linearly.
    """

    def __init__(self, *, grid: Grid, head_width: int) -> None:
        super().__init__()
        self.rows, self.columns = (_table(2 * length - 1, head_width=head_width) for length in grid)

    def forward(self, q_BHNK: Tensor, *, grid: Grid, num_prefix: int) -> Tensor:
        """The bias (B, H, P + N, P + N) of queries (B, H, P + N, K): zeros where a prefix token takes part."""
        q_BHRCK = q_BHNK[:, :, num_prefix:].unflatten(2, grid)
        rows_RRK = offset_vectors(self.rows, length=grid.rows).to(q_BHNK.dtype)
        columns_CCK = offset_vectors(self.columns, length=grid.columns).to(q_BHNK.dtype)
        by_row_BHRCR = torch.einsum("bhrck,rsk->bhrcs", q_BHRCK, rows_RRK)
        by_column_BHRCC = torch.einsum("bhrck,cdk->bhrcd", q_BHRCK, columns_CCK)
        bias_BHNN = (by_row_BHRCR.unsqueeze(-1) + by_column_BHRCC.unsqueeze(-2)).flatten(4).flatten(2, 3)
        return F.pad(bias_BHNN, (num_prefix, 0, num_prefix, 0))


def offset_vectors(table_LK: Tensor, *, length: int) -> Tensor:
    """(queries, keys, K): the vector of every offset along an axis of `length` patches, another table interpolated linearly in fp32."""
    table_LK = resample_line(table_LK, length=2 * length - 1, dim=0)
    place_Q = torch.arange(length, device=table_LK.device)
    return table_LK[place_Q.unsqueeze(1) - place_Q + length - 1]


def _table(num_offsets: int, *, head_width: int) -> nn.Parameter:
    table_LK = set_init(nn.Parameter(torch.empty(num_offsets, head_width)), zeros())
    return set_table(table_LK, AxisTable(length=num_offsets))
