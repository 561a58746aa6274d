"""Rotary position encodings in two dimensions: queries and keys are turned by angles that depend on a token's row and column."""

# B batch, H heads, N tokens, T some tokens, K head width, F = K/4 frequencies per axis, A = 2F turning channel pairs

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from vitscale.config import Config
from vitscale.nn.counter_hash import sample_bits
from vitscale.nn.init import rotated_frequencies, set_init
from vitscale.nn.resample import Grid
from vitscale.nn.tables import TableCache

Pairing = Literal["halves", "interleaved"]
"""Which channels of a head turn together. halves: k and k + K/2 (DINOv3). interleaved: 2k and 2k + 1 (EVA-02, RoPE-Mixed)."""

Normalise = Literal["separate", "min", "max"]
"""Which side is 2 long in DINOv3's coordinates. separate: each. min: the shorter, max: the longer, for both axes."""

_DRAW_SITE = 1 << 22
"""The number under which coordinates are drawn, apart from those of nn/dropout.py."""


class Rotation(NamedTuple):
    """The cosines and signed sines (1 or B, 1 or H, N, K) by which `rotate` turns N tokens, prefix tokens included (by 0)."""

    cos: Tensor
    sin: Tensor
    pairing: Pairing

    def of_samples(self, index_K: Tensor) -> "Rotation":
        """That of some of the samples."""
        if self.cos.shape[0] == 1:
            return self
        return Rotation(self.cos[index_K], self.sin[index_K], self.pairing)

    def of_patches(self, index_BP: Tensor, *, num_prefix: int) -> "Rotation":
        """That of the prefix tokens and of some of the patches of each sample."""
        prefix_BP = torch.arange(num_prefix, device=index_BP.device).expand(index_BP.shape[0], -1)
        index_BT = torch.cat([prefix_BP, index_BP + num_prefix], dim=1)
        return Rotation(_take_tokens(self.cos, index_BT), _take_tokens(self.sin, index_BT), self.pairing)


def rotate(x_BHNK: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys (B, H, N, K), turned."""
    if rotation.pairing == "halves":
        partner_BHNK = x_BHNK.roll(x_BHNK.shape[-1] // 2, dims=-1)
    else:
        partner_BHNK = x_BHNK.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x_BHNK * rotation.cos + partner_BHNK * rotation.sin


@dataclass(frozen=True, kw_only=True)
class CoordinateDraws:
    """Random changes of the coordinates of a training sample, in the order in which they happen: each axis is shifted by up to `shift`
    either way, then scaled by a factor of its own between 1 / `jitter` and `jitter`, then both axes by one up to `rescale`."""

    shift: float
    jitter: float
    rescale: float

    def draw(self, seed_B: Tensor) -> Tensor:
        """fp32 (B, 4): factors of row and column, then what is added to them; functions of the samples' 32-bit seeds alone."""
        return self.changes(sample_bits(seed_B, site=_DRAW_SITE, num_values=5).double() * 2.0**-31 - 1.0)

    def changes(self, uniform_B5: Tensor) -> Tensor:
        """The same from numbers in [-1, 1): two for the shift, two for the jitter, one for the rescaling."""
        shift_B2, jitter_B2, rescale_B1 = uniform_B5.split([2, 2, 1], dim=1)
        factor_B2 = torch.exp(math.log(self.jitter) * jitter_B2 + math.log(self.rescale) * rescale_B1)
        return torch.cat([factor_B2, self.shift * shift_B2 * factor_B2], dim=1).float()


class AxialRope:
    """Half of a head's channel pairs turn with the row, half with the column; no parameters.

    Angles are coordinate x frequency, `frequencies_F` the same for both axes (fp64), `coordinates(grid)` fp64 (N, 2) of row and
    column. Not a module: nothing of it is part of the state.
    """

    def __init__(
        self, *, coordinates: Callable[[Grid], Tensor], frequencies_F: Tensor, pairing: Pairing, draws: CoordinateDraws | None
    ) -> None:
        self.coordinates = coordinates
        self.frequencies_F = frequencies_F
        self.pairing: Pairing = pairing
        self.draws = draws
        self._tables = TableCache(self._table)
        self._coordinates = TableCache(coordinates)
        self._frequencies = TableCache(lambda: frequencies_F)

    def rotation(self, like: Tensor, *, grid: Grid, num_prefix: int, seed_B: Tensor | None) -> Rotation:
        """The turns of the prefix and patch tokens of a grid, on the device and in the type of `like`. With seeds, those of training
        samples, each has its own where coordinates are drawn."""
        if self.draws is None or seed_B is None:
            cos_11NK, sin_11NK = self._tables.like(like, grid, num_prefix).unbind(0)
            return Rotation(cos_11NK, sin_11NK, self.pairing)
        factor_B12, offset_B12 = self.draws.draw(seed_B).unsqueeze(1).chunk(2, dim=-1)
        coordinates_BN2 = self._coordinates.like(factor_B12, grid) * factor_B12 + offset_B12
        angles_B1NA = _axial_angles(coordinates_BN2, self._frequencies.like(factor_B12)).unsqueeze(1)
        return _rotation(angles_B1NA, num_prefix=num_prefix, pairing=self.pairing, dtype=like.dtype)

    def _table(self, grid: Grid, num_prefix: int) -> Tensor:
        """Cosines and signed sines, fp64 (2, 1, 1, N, K)."""
        angles_NA = _axial_angles(self.coordinates(grid), self.frequencies_F)
        turns = _rotation(angles_NA[None, None], num_prefix=num_prefix, pairing=self.pairing, dtype=torch.float64)
        return torch.stack([turns.cos, turns.sin])


class MixedRope(nn.Module):
    """RoPE-Mixed (Heo et al. 2024): every channel pair of every head has a learned frequency for each axis.

    `frequencies` is (2, H, K/2): of the column, then of the row, both in radians per patch, as in naver-ai/rope-vit and in one
    block of timm's `RotaryEmbeddingMixed`. Channels are paired interleaved. One module per block.
    """

    def __init__(self, *, num_heads: int, head_width: int, base: float) -> None:
        super().__init__()
        self.frequencies = set_init(nn.Parameter(torch.empty(2, num_heads, head_width // 2)), rotated_frequencies(base))

    def forward(self, like: Tensor, *, grid: Grid, num_prefix: int) -> Rotation:
        """The turns of the tokens of a grid, tables (1, H, N, K) in the type of `like`; the angles are fp32."""
        place_N = torch.arange(grid.rows * grid.columns, device=like.device)
        row_N1, column_N1 = ((place_N // grid.columns).unsqueeze(-1), (place_N % grid.columns).unsqueeze(-1))
        column_H1A, row_H1A = self.frequencies.float().unsqueeze(2).unbind(0)
        angles_HNA = column_N1 * column_H1A + row_N1 * row_H1A
        return _rotation(angles_HNA.unsqueeze(0), num_prefix=num_prefix, pairing="interleaved", dtype=like.dtype)


class Dinov3RopeConfig(Config):
    """DINOv3's: coordinates of patch centres from -1 to 1 (facebookresearch/dinov3, layers/rope_position_encoding.py).

    The changes of coordinates in training are drawn for every sample, where DINOv3 draws once per step and process, so that they
    do not depend on how a batch is spread over processes.
    """

    kind: Literal["dinov3"] = "dinov3"
    base: float = Field(default=100.0, gt=1.0)
    """The longest period is close to this many half images, the shortest is one."""
    normalise: Normalise = "separate"
    """separate: rows and columns each go from -1 to 1. min, max: both are measured in the shorter or the longer side."""
    shift: float = Field(default=0.0, ge=0.0)
    """In training, each axis is shifted by up to this much either way."""
    jitter: float = Field(default=1.0, ge=1.0)
    """In training, each axis is scaled by a factor of its own between 1 / jitter and jitter."""
    rescale: float = Field(default=1.0, ge=1.0)
    """In training, both axes are scaled by one factor between 1 / rescale and rescale."""

    @property
    def draws(self) -> CoordinateDraws | None:
        """How coordinates of training samples are changed; None: not at all."""
        if self.shift == 0.0 and self.jitter == self.rescale == 1.0:
            return None
        return CoordinateDraws(shift=self.shift, jitter=self.jitter, rescale=self.rescale)

    @property
    def without_draws(self) -> "Dinov3RopeConfig":
        """What is used outside of training."""
        return self.model_copy(update={"shift": 0.0, "jitter": 1.0, "rescale": 1.0})

    def build(self, *, head_width: int, grid: Grid) -> AxialRope:  # noqa: ARG002  (coordinates are relative to the image)
        """The encoding for heads of `head_width` channels."""
        frequencies_F = 2 * math.pi * _frequencies(head_width, base=self.base)
        return AxialRope(coordinates=self._coordinates, frequencies_F=frequencies_F, pairing="halves", draws=self.draws)

    def _coordinates(self, grid: Grid) -> Tensor:
        lengths = {"separate": grid, "min": (min(grid),) * 2, "max": (max(grid),) * 2}[self.normalise]
        places_N2 = _places(grid) + 0.5
        return places_N2 / torch.tensor(lengths, dtype=torch.float64) * 2 - 1


class Eva02RopeConfig(Config):
    """EVA-02's: coordinates are patch numbers, rescaled to the grid of the pre-training (baaivision/EVA, EVA-02/asuka/rope.py)."""

    kind: Literal["eva02"] = "eva02"
    base: float = Field(default=10000.0, gt=1.0)
    """The longest wave is close to 2 pi times this many patches, the shortest is 2 pi patches."""
    pretrained_grid: Annotated[int, Field(ge=1)] | None = None
    """Patches per side in pre-training: at any other size the image is as many long. null: those of the image size."""

    def build(self, *, head_width: int, grid: Grid) -> AxialRope:
        """The encoding for heads of `head_width` channels of a model whose images have `grid` patches."""
        pretrained = grid if self.pretrained_grid is None else Grid(rows=self.pretrained_grid, columns=self.pretrained_grid)

        def coordinates(own: Grid) -> Tensor:
            return _places(own) / torch.tensor(own, dtype=torch.float64) * torch.tensor(pretrained, dtype=torch.float64)

        frequencies_F = _frequencies(head_width, base=self.base)
        return AxialRope(coordinates=coordinates, frequencies_F=frequencies_F, pairing="interleaved", draws=None)


class MixedRopeConfig(Config):
    """RoPE-Mixed: learned frequencies, per block and head, of rows and columns together (Heo et al. 2024; naver-ai/rope-vit)."""

    kind: Literal["mixed"] = "mixed"
    base: float = Field(default=10.0, gt=1.0)
    """Frequencies start between 1 / base and 1 radian per patch, in a direction that is random for each head."""

    def build(self, *, num_heads: int, head_width: int) -> "MixedRope":
        """The frequencies of one block."""
        return MixedRope(num_heads=num_heads, head_width=head_width, base=self.base)


RotaryConfig = Annotated[Dinov3RopeConfig | Eva02RopeConfig | MixedRopeConfig, Field(discriminator="kind")]


def _take_tokens(table: Tensor, index_BT: Tensor) -> Tensor:
    """(1 or B, 1 or H, N, K) to (B, 1 or H, T, K)."""
    num_samples, num_tokens = index_BT.shape
    _, num_heads, _, head_width = table.shape
    index = index_BT.view(num_samples, 1, num_tokens, 1).expand(-1, num_heads, -1, head_width)
    return table.expand(num_samples, -1, -1, -1).gather(2, index)


def _places(grid: Grid) -> Tensor:
    """fp64 (N, 2): row and column of every patch, row by row."""
    rows_R, columns_C = (torch.arange(length, dtype=torch.float64) for length in grid)
    return torch.stack(torch.meshgrid(rows_R, columns_C, indexing="ij"), dim=-1).flatten(0, 1)


def _frequencies(head_width: int, *, base: float) -> Tensor:
    """fp64 (F,): base^(-k/F)."""
    assert head_width % 4 == 0, f"a head of {head_width} channels does not hold pairs for two axes"
    num_frequencies = head_width // 4
    exponents_F = torch.arange(num_frequencies, dtype=torch.float64, device="cpu") / num_frequencies
    return torch.pow(torch.tensor(base, dtype=torch.float64, device="cpu"), -exponents_F)


def _axial_angles(coordinates_N2: Tensor, frequencies_F: Tensor) -> Tensor:
    """(..., N, 2) and (F,) to (..., N, 2F): the row's angles, then the column's."""
    return (coordinates_N2.unsqueeze(-1) * frequencies_F).flatten(-2)


def _rotation(angles: Tensor, *, num_prefix: int, pairing: Pairing, dtype: torch.dtype) -> Rotation:
    """Angles (..., N, K/2) of the patch tokens to a rotation of all tokens."""
    angles = nn.functional.pad(angles, (0, 0, num_prefix, 0))
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    if pairing == "halves":
        return Rotation(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1), pairing)
    return Rotation(torch.stack([cos, cos], dim=-1).flatten(-2), torch.stack([-sin, sin], dim=-1).flatten(-2), pairing)
