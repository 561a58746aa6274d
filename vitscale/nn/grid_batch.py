"""Images of several grids of patches in one batch: which tokens are real, and a table of positions for each image."""

# B batch, N tokens, P prefix tokens, L rows of all tables, D width

from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.nn.resample import Grid


class GridBatch:
    """The grids of a batch whose images are sequences of `length` patches, the first rows * columns of which are real.

    Waits for the device once: which grids there are decides what is computed.
    """

    def __init__(self, grid_B2: Tensor, *, length: int) -> None:
        grids = [Grid(rows=rows, columns=columns) for rows, columns in grid_B2.tolist()]
        self.length = length
        self._distinct = sorted(set(grids))
        place_of = {grid: place for place, grid in enumerate(self._distinct)}
        self._place_B = torch.tensor([place_of[grid] for grid in grids], device=grid_B2.device)
        self._count_B1 = grid_B2.prod(dim=1, keepdim=True)

    def mask(self, *, num_prefix: int) -> Tensor:
        """Boolean (B, P + N): the prefix tokens and the real patches."""
        return torch.arange(num_prefix + self.length, device=self._count_B1.device) < self._count_B1 + num_prefix

    def table(self, make: Callable[[Grid], Tensor], *, num_prefix: int = 0) -> Tensor:
        """(B, P + N, D) of each image's table, which `make` makes as (1, P + rows * columns, D), once for each grid that there is.

        The rows of patches that are not real are the last one's.
        """
        tables = [make(grid).squeeze(0) for grid in self._distinct]
        starts = torch.tensor([0, *accumulate(len(table) for table in tables)][:-1], device=self._place_B.device)
        place_N = torch.arange(num_prefix + self.length, device=self._place_B.device)
        row_BN = starts[self._place_B].unsqueeze(1) + torch.minimum(place_N, self._count_B1 + num_prefix - 1)
        return F.embedding(row_BN, torch.cat(tables))
