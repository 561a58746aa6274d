"""The blocks of plain vision transformers: attention and MLP, one after the other or side by side, as residual branches."""

# B batch, N tokens, D width

from dataclasses import dataclass

from torch import Tensor, nn

from vitscale.nn.attention import Attention, QkvBias
from vitscale.nn.context import BlockContext
from vitscale.nn.cross_covariance import AttentionKind, CrossCovarianceAttention
from vitscale.nn.dropout import Dropout
from vitscale.nn.layers import LayerScale, NormKind, norm_layer
from vitscale.nn.mlp import Gelu, Mlp, MlpKind
from vitscale.nn.position_bias import PositionBias, PositionBiasConfig, position_bias
from vitscale.nn.resample import Grid, RelativeRule
from vitscale.nn.rope import MixedRopeConfig
from vitscale.nn.stochastic_depth import add_branch

FIRST_BLOCK_SITE = 1
DROPOUTS_PER_BLOCK = 3


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """What a block is made of. `window` is the side of the windows that attention stays in (null: all tokens)."""

    width: int
    num_heads: int
    mlp_width: int
    norm: NormKind = "layer"
    norm_eps: float = 1e-6
    mlp: MlpKind = "gelu"
    gelu: Gelu = "exact"
    mlp_norm: bool = False
    qkv_bias: QkvBias = "all"
    proj_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    attention: AttentionKind = "softmax"
    window: int | None = None
    dropout: float = 0.0
    grid: Grid | None = None
    """Patches of the image, which the tables of a position bias are made for where there is no window."""
    has_prefix: bool = False
    rope: MixedRopeConfig | None = None
    position_bias: PositionBiasConfig | None = None
    """These two where the block has one of its own."""
    relative_rule: RelativeRule | None = None
    """How a table of relative positions is resampled."""
    drop_rate: float = 0.0
    """Share of the training samples that skip a branch of this block."""


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; each branch may be scaled by channel and dropped by sample."""

    num_branches = 2

    def __init__(self, spec: BlockSpec, *, index: int) -> None:
        super().__init__()
        self.index = index
        self.drop_rate = spec.drop_rate
        self.norm1 = norm_layer(spec.norm, width=spec.width, eps=spec.norm_eps)
        self.attn = _attention(spec)
        self.ls1 = LayerScale(spec.width, init=spec.layer_scale) if spec.layer_scale else None
        self.norm2 = norm_layer(spec.norm, width=spec.width, eps=spec.norm_eps)
        self.attention_dropout, *mlp_dropouts = _dropouts(spec, index=index)
        self.mlp = _mlp(spec, dropouts=(mlp_dropouts[0], mlp_dropouts[1]))
        self.ls2 = LayerScale(spec.width, init=spec.layer_scale) if spec.layer_scale else None

    def forward(self, x_BND: Tensor, *, context: BlockContext) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        first = self.num_branches * self.index
        x_BND = add_branch(x_BND, self._attend, context=context, index=first, rate=self.drop_rate)
        return add_branch(x_BND, self._feed_forward, context=context, index=first + 1, rate=self.drop_rate)

    def _attend(self, x_BND: Tensor, context: BlockContext) -> Tensor:
        y_BND = self.attn(self.norm1(x_BND), context=context)
        return scaled(self.attention_dropout(y_BND, seed_B=context.seed_B), by=self.ls1)

    def _feed_forward(self, x_BND: Tensor, context: BlockContext) -> Tensor:
        return scaled(self.mlp(self.norm2(x_BND), seed_B=context.seed_B), by=self.ls2)


class ParallelBlock(nn.Module):
    """`x + attention(norm(x)) + mlp(norm(x))` with one norm, as in ViT-22B (Dehghani et al. 2023); the sum is one branch."""

    num_branches = 1

    def __init__(self, spec: BlockSpec, *, index: int) -> None:
        super().__init__()
        self.index = index
        self.drop_rate = spec.drop_rate
        self.norm1 = norm_layer(spec.norm, width=spec.width, eps=spec.norm_eps)
        self.attn = _attention(spec)
        self.attention_dropout, *mlp_dropouts = _dropouts(spec, index=index)
        self.mlp = _mlp(spec, dropouts=(mlp_dropouts[0], mlp_dropouts[1]))
        self.ls1 = LayerScale(spec.width, init=spec.layer_scale) if spec.layer_scale else None

    def forward(self, x_BND: Tensor, *, context: BlockContext) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return add_branch(x_BND, self._both, context=context, index=self.index, rate=self.drop_rate)

    def _both(self, x_BND: Tensor, context: BlockContext) -> Tensor:
        normed_BND = self.norm1(x_BND)
        mixed_BND = self.attention_dropout(self.attn(normed_BND, context=context), seed_B=context.seed_B)
        return scaled(mixed_BND + self.mlp(normed_BND, seed_B=context.seed_B), by=self.ls1)


def scaled(y_BND: Tensor, *, by: LayerScale | None) -> Tensor:
    """A branch's result, channel by channel."""
    if by is None:
        return y_BND
    scaled_BND: Tensor = by(y_BND)
    return scaled_BND


def _attention(spec: BlockSpec) -> Attention | CrossCovarianceAttention:
    if spec.attention == "cross_covariance":
        return CrossCovarianceAttention(width=spec.width, num_heads=spec.num_heads, qkv_bias=spec.qkv_bias, proj_bias=spec.proj_bias)
    return Attention(
        width=spec.width,
        num_heads=spec.num_heads,
        qkv_bias=spec.qkv_bias,
        proj_bias=spec.proj_bias,
        qk_norm=spec.norm if spec.qk_norm else None,
        norm_eps=spec.norm_eps,
        window=spec.window,
        rope=spec.rope.build(num_heads=spec.num_heads, head_width=spec.width // spec.num_heads) if spec.rope else None,
        position_bias=_position_bias(spec),
    )


def _position_bias(spec: BlockSpec) -> PositionBias | None:
    if spec.position_bias is None:
        return None
    grid = Grid(rows=spec.window, columns=spec.window) if spec.window else spec.grid
    assert grid is not None, "a position bias is made for a grid"
    return position_bias(
        spec.position_bias,
        grid=grid,
        num_heads=spec.num_heads,
        head_width=spec.width // spec.num_heads,
        has_prefix=spec.has_prefix,
        rule=spec.relative_rule,
    )


def _mlp(spec: BlockSpec, *, dropouts: tuple[Dropout, Dropout]) -> Mlp:
    return Mlp(
        width=spec.width,
        hidden_width=spec.mlp_width,
        gelu=spec.gelu,
        is_gated=spec.mlp != "gelu",
        has_bias=spec.mlp_bias,
        hidden_norm=spec.norm if spec.mlp_norm else None,
        norm_eps=spec.norm_eps,
        dropouts=dropouts,
    )


def _dropouts(spec: BlockSpec, *, index: int) -> list[Dropout]:
    """After attention, on the hidden values of the MLP, and after it."""
    first = FIRST_BLOCK_SITE + DROPOUTS_PER_BLOCK * index
    return [Dropout(rate=spec.dropout, site=first + offset) for offset in range(DROPOUTS_PER_BLOCK)]
