"""How the values of our tensors lie in other projects' tensors: pure functions of tensors, there and back."""

# D width, C channels, P patch side, H heads, K head width, N tokens, M MLP width

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitscale.config import CheckpointError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of our tensors do not tell, and names and shapes elsewhere depend on.

    `num_channels` are those that patches are cut from, of the image or of a stem's features; `stem_units` the units of each stage of a
    ResNet stem (None: there is none), `stage_depths` the blocks of each stage. `own_row` and `their_row` say whether the table of
    positions has a row for the class token, here and there; `is_gated` whether the MLP is, `is_pooled_norm` whether the final norm
    comes after pooling, `has_two_tables` whether there are positions within mask units. `is_split_mlp` and `is_split_qkv`: both halves
    of a gated MLP, and queries, keys and values, are apart there.
    """

    num_channels: int
    num_heads: int
    own_row: bool = True
    their_row: bool = True
    is_gated: bool = False
    is_pooled_norm: bool = False
    has_two_tables: bool = False
    is_split_mlp: bool = False
    is_split_qkv: bool = False
    stage_depths: tuple[int, ...] = ()
    stem_units: tuple[int, ...] | None = None


Convert = Callable[[Sequence[Tensor], Sizes], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How values go from our tensors to theirs and back. `in_order`: theirs, one after the other, hold the elements of ours, one after
    the other, as they lie in memory, so that nothing needs to be held whole to convert it."""

    to_theirs: Convert
    to_ours: Convert
    in_order: bool = False


def _same(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return list(values)


def _to_oihw(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    weight = values[0]
    side = math.isqrt(weight.shape[1] // sizes.num_channels)
    return [weight.reshape(weight.shape[0], sizes.num_channels, side, side)]


def _from_oihw(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].flatten(1)]


def _to_hwio(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    return [_to_oihw(values, sizes)[0].permute(2, 3, 1, 0)]


def _from_hwio(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].permute(3, 2, 0, 1).flatten(1)]


def _kernel_to_hwio(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].permute(2, 3, 1, 0)]


def _kernel_from_hwio(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].permute(3, 2, 0, 1)]


def _flatten(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].flatten()]


def _transpose(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].T]


def _to_map(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    """(1, N, D) to (1, D, rows, columns)."""
    side = math.isqrt(values[0].shape[1])
    return [values[0].transpose(1, 2).unflatten(2, (side, side))]


def _from_map(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].flatten(2).transpose(1, 2)]


def _squeeze(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].squeeze(0)]


def _unsqueeze(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].unsqueeze(0)]


def _as_token(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].view(1, 1, -1)]


def _without_bias(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].T]


def _with_zeros_for_bias(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].T, values[0].new_zeros(values[0].shape[1])]


def _join(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [torch.cat(list(values))]


def _to_scales(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].view(-1, 1, 1)]


def _to_out_kernel(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """(D, D) to (H, K, D)."""
    return [values[0].T.unflatten(0, (sizes.num_heads, -1))]


def _from_out_kernel(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].flatten(0, 1).T]


def _to_token_and_table(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """The class token and the table, whose row for it comes or goes without a change of their sum."""
    token_11D, table_1ND = values
    if sizes.own_row == sizes.their_row:
        return [token_11D, table_1ND]
    return _without_row(token_11D, table_1ND) if sizes.own_row else _with_row(token_11D, table_1ND)


def _from_token_and_table(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    token_11D, table_1ND = values
    if sizes.own_row == sizes.their_row:
        return [token_11D, table_1ND]
    return _with_row(token_11D, table_1ND) if sizes.own_row else _without_row(token_11D, table_1ND)


def _without_row(token_11D: Tensor, table_1ND: Tensor) -> list[Tensor]:
    return [token_11D + table_1ND[:, :1], table_1ND[:, 1:]]


def _with_row(token_11D: Tensor, table_1ND: Tensor) -> list[Tensor]:
    return [token_11D, torch.cat([torch.zeros_like(token_11D), table_1ND], dim=1)]


def _to_class_and_mean(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    """A head on the class token (classes, D) to one on the class token and the mean of the patches (classes, 2D)."""
    return [torch.cat([values[0], torch.zeros_like(values[0])], dim=1)]


def _from_class_and_mean(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    on_class, on_mean = values[0].chunk(2, dim=1)
    if bool(on_mean.any()):
        raise CheckpointError(
            "its head reads the mean of the patches beside the class token, and a head here reads one of them; leave the head out with"
            " --drop 'classifier.*'"
        )
    return [on_class]


def stacked(count: int) -> Form:
    """Ours is `count` of theirs, one below the other."""

    def to_theirs(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
        return list(values[0].chunk(count))

    return Form(to_theirs=to_theirs, to_ours=_join, in_order=True)


def split_at(*shares: int) -> Form:
    """Theirs is ours, one below the other; each of ours has as many rows as its share of them."""

    def to_ours(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
        unit = values[0].shape[0] // sum(shares)
        return list(values[0].split([share * unit for share in shares]))

    return Form(to_theirs=_join, to_ours=to_ours, in_order=True)


def head_kernels(count: int) -> Form:
    """(count * D, D), rows of query, key and value, to `count` of (D, H, K)."""

    def to_theirs(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        return [part_DD.T.unflatten(1, (sizes.num_heads, -1)) for part_DD in values[0].chunk(count)]

    def to_ours(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
        return [torch.cat([kernel_DHK.flatten(1).T for kernel_DHK in values])]

    return Form(to_theirs=to_theirs, to_ours=to_ours)


def head_biases(count: int) -> Form:
    """(count * D) to `count` of (H, K)."""

    def to_theirs(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        return [part_D.unflatten(0, (sizes.num_heads, -1)) for part_D in values[0].chunk(count)]

    def to_ours(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
        return [torch.cat([bias_HK.flatten() for bias_HK in values])]

    return Form(to_theirs=to_theirs, to_ours=to_ours, in_order=True)


SAME = Form(to_theirs=_same, to_ours=_same, in_order=True)
OIHW = Form(to_theirs=_to_oihw, to_ours=_from_oihw, in_order=True)
HWIO = Form(to_theirs=_to_hwio, to_ours=_from_hwio)
KERNEL_HWIO = Form(to_theirs=_kernel_to_hwio, to_ours=_kernel_from_hwio)
"""Of a convolution, which is OIHW here."""
FLAT = Form(to_theirs=_same, to_ours=_flatten, in_order=True)
"""A vector, which may have axes of length 1 before it."""
TRANSPOSED = Form(to_theirs=_transpose, to_ours=_transpose)
AS_MAP = Form(to_theirs=_to_map, to_ours=_from_map)
WITHOUT_BATCH = Form(to_theirs=_squeeze, to_ours=_unsqueeze, in_order=True)
AS_VECTOR = Form(to_theirs=lambda values, _: [values[0].flatten()], to_ours=_as_token, in_order=True)
"""Of a token (1, 1, D)."""
PROJECTION = Form(to_theirs=_without_bias, to_ours=_with_zeros_for_bias)
"""(D, classes), for weight and bias of a head: it is read only, with a bias of zeros."""
PER_HEAD = Form(to_theirs=_to_scales, to_ours=_flatten, in_order=True)
OUT_KERNEL = Form(to_theirs=_to_out_kernel, to_ours=_from_out_kernel)
TOKEN_AND_TABLE = Form(to_theirs=_to_token_and_table, to_ours=_from_token_and_table)
CLASS_AND_MEAN = Form(to_theirs=_to_class_and_mean, to_ours=_from_class_and_mean)
