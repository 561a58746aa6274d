"""Cutting a feature map into square windows, shifted or not, and joining them again (Liu et al. 2021, Swin Transformer)."""

# B batch, R rows, C columns, D width, W windows, M tokens of a window

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.nn.resample import Grid
from vitscale.nn.tables import TableCache

WindowPadding = Literal["before_shift", "after_shift"]
"""Where zeros fill up the last windows of a map whose sides are no multiple of the window's.
before_shift: the map is padded, then shifted (Microsoft's Swin for detection, Hugging Face). after_shift: it is shifted, then
padded (timm), which puts the padding between rows that the shift brought together. Elsewhere both are the same."""

# The references' choice in place of minus infinity. It is added to the scores, so it is part of what a model computes.
_MASKED = -100.0


class Windows:
    """How a block cuts its map: into windows of `side` x `side` tokens, after a cyclic shift by `shift` up and to the left.

    No module: nothing of it is part of the state. Blocks that cut alike share one, and so its masks.
    """

    def __init__(self, *, side: int, shift: int, padding: WindowPadding) -> None:
        assert 0 <= shift < side, (side, shift)
        self.side = side
        self.shift = shift
        self.padding = padding
        self._masks = TableCache(partial(shift_mask, side=side, shift=shift))

    def cut(self, x_BRCD: Tensor) -> Tensor:
        """A map (B, R, C, D) to windows (B, W, M, D), row by row; sides that are no multiple of the window's are padded."""
        if self.padding == "before_shift":
            shifted_BRCD = self._roll(self._pad(x_BRCD), by=-self.shift)
        else:
            shifted_BRCD = self._pad(self._roll(x_BRCD, by=-self.shift))
        return cut_windows(shifted_BRCD, side=self.side)

    def join(self, windows_BWMD: Tensor, *, grid: Grid) -> Tensor:
        """The windows of a map of `grid` back to (B, R, C, D), without the padding."""
        padded = self._padded(grid)
        rows, columns = padded.rows // self.side, padded.columns // self.side
        tiles = windows_BWMD.unflatten(2, (self.side, self.side)).unflatten(1, (rows, columns))
        shifted_BRCD = tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.padding == "before_shift":
            return self._roll(shifted_BRCD, by=self.shift)[:, : grid.rows, : grid.columns]
        return self._roll(shifted_BRCD[:, : grid.rows, : grid.columns], by=self.shift)

    def mask(self, like: Tensor, *, grid: Grid) -> Tensor | None:
        """What is added to the scores (W, M, M) of a map of `grid`: keeps tokens apart that only the shift made neighbours.

        None without a shift. On the device and in the type of `like`.
        """
        if not self.shift:
            return None
        return self._masks.like(like, self._padded(grid))

    def _padded(self, grid: Grid) -> Grid:
        return Grid(rows=-(-grid.rows // self.side) * self.side, columns=-(-grid.columns // self.side) * self.side)

    def _pad(self, x_BRCD: Tensor) -> Tensor:
        grid = Grid(*x_BRCD.shape[1:3])
        padded = self._padded(grid)
        if padded == grid:
            return x_BRCD
        return F.pad(x_BRCD, (0, 0, 0, padded.columns - grid.columns, 0, padded.rows - grid.rows))

    def _roll(self, x_BRCD: Tensor, *, by: int) -> Tensor:
        return torch.roll(x_BRCD, shifts=(by, by), dims=(1, 2)) if by else x_BRCD


def cut_windows(x_BRCD: Tensor, *, side: int) -> Tensor:
    """(B, R, C, D), both sides multiples of `side`, to (B, W, M, D)."""
    tiles = x_BRCD.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    windows_BWMD: Tensor = tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return windows_BWMD


def shift_mask(grid: Grid, *, side: int, shift: int) -> Tensor:
    """fp32 (W, M, M): 0 between tokens of one region of the shifted map, -100 between regions."""
    region_RC = 3 * _regions(grid.rows, side=side, shift=shift).unsqueeze(1) + _regions(grid.columns, side=side, shift=shift)
    region_WM = cut_windows(region_RC[None, :, :, None], side=side).flatten(2)[0]
    apart_WMM = region_WM.unsqueeze(1) != region_WM.unsqueeze(2)
    return torch.zeros(apart_WMM.shape).masked_fill_(apart_WMM, _MASKED)


def _regions(length: int, *, side: int, shift: int) -> Tensor:
    """Along one side: 0 before the last window, 1 in it, 2 where the shift brought in what was at the other end."""
    position = torch.arange(length)
    return (position >= length - side).long() + (position >= length - shift).long()
