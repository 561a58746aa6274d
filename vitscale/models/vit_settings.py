"""The settings of a vision transformer: its sizes and the switches of its blocks, by name or one by one."""

from typing import Annotated, Literal

from pydantic import Field

from vitscale.dist.seeding import DrawSource
from vitscale.models.base import BackboneConfig
from vitscale.models.naflex import NaFlexConfig
from vitscale.models.settings import Count
from vitscale.models.variants import parse_variant
from vitscale.models.vit_shape import ViTShape
from vitscale.nn.attention import QkvBias
from vitscale.nn.block import BlockSpec
from vitscale.nn.counter_hash import SEED_KEY, SeedSource
from vitscale.nn.cross_covariance import AttentionKind
from vitscale.nn.halting import HaltingConfig
from vitscale.nn.input_form import InputForm
from vitscale.nn.layers import NormKind
from vitscale.nn.mlp import Gelu, MlpKind, gated_width
from vitscale.nn.pooling import NormPlace, Pooling
from vitscale.nn.position_bias import PositionBiasConfig
from vitscale.nn.positions import Positions
from vitscale.nn.relative_bias import RelativeBiasConfig
from vitscale.nn.resample import POSITION_MODES, Grid, PositionMode
from vitscale.nn.rope import Dinov3RopeConfig, MixedRopeConfig, RotaryConfig
from vitscale.nn.stems import PatchStemConfig, StemConfig
from vitscale.nn.token_merging import TokenMergingConfig


class ViTSettings(BackboneConfig):
    """A pre-norm vision transformer, by name, by sizes, or by name with some sizes replaced."""

    kind: Literal["vit"] = "vit"
    variant: str | None = None
    """A size and a patch, for example S/16, or a published model, for example DINOv2-B/14, which also fixes the settings below that
    make it what it is; `vitscale models` lists them. null: give width, depth, num_heads and patch_size."""
    patch_size: Count | None = None
    """Side of a patch in pixels; replaces the variant's."""
    flexible_patches: tuple[Count, ...] = ()
    """FlexiViT (Beyer et al. 2023): sides of the patches that training draws one of for each step, each a divisor of the image size. The
    kernel is kept at model.patch_size, which need not divide it, the learned table at as many whole patches of that size as the image
    has a side; both are resampled in every step, and evaluations may ask for any size. Planned for the smallest."""
    image_size: int = Field(ge=1)
    """Side of the square input in pixels, a multiple of the patch size."""
    num_channels: int = Field(default=3, ge=1)
    """Channels of the input: 3 for colour, 1 for grey."""
    num_heads: Count | None = None
    """Attention heads; replaces the variant's."""
    width: Count | None = None
    """Width of the token vectors, a multiple of the number of heads; replaces the variant's."""
    depth: Count | None = None
    """Number of blocks; replaces the variant's."""
    stem: StemConfig = PatchStemConfig()
    """What turns the image into what patches are cut from. patches: nothing. convolutions: a few small ones. resnet: a ResNet, as in
    Google's hybrids. The patch size stays in pixels of the image and is a multiple of the stem's stride."""
    patch_bias: bool = True
    """Whether the embedding of the patches has a bias; CLIP's has none."""
    embedding_norm: bool = False
    """Whether the embedded tokens are normalised before the first block (CLIP)."""
    mlp: MlpKind = "gelu"
    """gelu: two matrices. swiglu, swiglu64: gated by SiLU, three matrices, with a hidden width that is a multiple of 8 (DINOv2) or of
    64 (DINOv3)."""
    mlp_width: Count | None = None
    """Hidden width of the MLP; replaces the variant's. null without a variant: 4 times the width. Where a gated MLP takes the place of
    a variant's plain one, null is two thirds of the variant's, rounded up to a multiple of 8 or 64."""
    gelu: Gelu = "exact"
    """exact: by the error function (timm, Hugging Face). tanh: Google's released models. quick: x sigmoid(1.702 x) (OpenAI's CLIP)."""
    mlp_norm: bool = False
    """Whether the hidden values of the MLP are normalised before its last layer (EVA-02)."""
    positions: Positions | Literal["factorised", "none"] = "learned"
    """learned: a trained table. sincos2d_mae, sincos2d_big_vision: fixed 2-D sines and cosines; the width is then a multiple of 4.
    factorised: a trained table of rows and one of columns, added up. none: nothing is added to the tokens."""
    resampling: PositionMode = "timm"
    """How the learned table is resampled for images of another size, here and where another model starts from these weights: by the
    name of the system that they come from, see docs/resampling.md."""
    pooling: Pooling = "cls"
    """cls: a class token. mean: the average of the patch tokens. map: attention of a learned query (SigLIP). none: tokens only."""
    norm_place: NormPlace = "tokens"
    """tokens: the final norm comes before pooling. pooled: after it (timm's fc_norm)."""
    class_token: bool | None = None
    """Whether there is a class token. null: with pooling cls only."""
    distillation_token: bool = False
    """A second class token with a head of its own (DeiT); predictions are the average of both heads."""
    num_registers: int = Field(default=0, ge=0)
    """Register tokens: learned, of no use to the output (Darcet et al. 2024; storage tokens in DINOv3)."""
    prefix_positions: bool = True
    """Whether the learned table has rows for class and distillation token (ViT, DeiT, DINOv2) or for the patches only (DeiT III).
    Register tokens never have one."""
    norm: NormKind = "layer"
    """layer: LayerNorm. rms: RMSNorm, without centring and shift."""
    layer_norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in norms: 1e-6 in Google's and timm's models, 1e-12 by default in Hugging Face's."""
    qkv_bias: QkvBias = "all"
    """all: queries, keys and values have a bias. no_key: only queries and values (BEiT, EVA-02; masked in DINOv3). none: no bias."""
    proj_bias: bool = True
    """Whether the projection after attention has a bias."""
    mlp_bias: bool = True
    """Whether the layers of the MLP have a bias."""
    qk_norm: bool = False
    """Whether queries and keys are normalised head by head (ViT-22B)."""
    layer_scale: float | None = Field(default=None, gt=0)
    """Start of the learned factors of every channel at the end of each branch (CaiT, DeiT III, DINOv2); null has none."""
    attention: AttentionKind = "softmax"
    """softmax: each token attends to all. cross_covariance: channels of a head attend to each other, at a cost linear in the number of
    tokens, and convolutions mix neighbouring patches (XCiT); for many tokens, see docs/attention.md."""
    parallel: bool = False
    """Attention and MLP side by side after one norm (ViT-22B) instead of one after the other."""
    window: Count | None = None
    """Attention stays in windows of so many tokens a side, but for `global_blocks` (ViTDet: 14); null attends to all tokens."""
    global_blocks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Numbers, from 0, of the blocks that attend to all tokens where there is a window; SAM has 2, 5, 8 and 11 of 12."""
    stochastic_depth: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training samples that skip a branch of the last block, and save its compute."""
    stochastic_depth_schedule: Literal["linear", "constant"] = "linear"
    """linear: the share rises from 0 at the first block. constant: the same at every block (DeiT III, DINOv2)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of values dropped in training: of the embedding, after attention, and twice in the MLP, as in vit_jax."""
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the patches left out in training, others for each sample (FLIP)."""
    rotary: RotaryConfig | None = None
    """Turns queries and keys by angles that depend on row and column; null: no turn."""
    position_bias: PositionBiasConfig | None = None
    """Adds a trained number to each attention score, for the offset of the two tokens; null: none."""
    token_merging: TokenMergingConfig | None = None
    """Patches that are alike are merged in every block (ToMe), in training and evaluation; null merges none."""
    naflex: NaFlexConfig | None = None
    """Images of mixed resolutions and aspect ratios as sequences of patches; null: square images of image_size pixels. With it
    image_size says only how many patches a side the tables of positions have."""
    halting: HaltingConfig | None = None
    """Tokens leave the computation when they are done (A-ViT), so that easy images take less of it; null: all go through all blocks."""
    image_mean: tuple[float, ...] = (0.5,)
    """Subtracted from the image, in units where white is 1: one number per channel, or one for all."""
    image_std: tuple[float, ...] = (0.5,)
    """Divides the image after that: one number per channel, or one for all."""

    @property
    def draw_sources(self) -> dict[str, DrawSource]:
        """A seed for each training sample where anything is dropped."""
        is_turned = isinstance(self.rotary, Dinov3RopeConfig) and self.rotary.draws is not None
        return {SEED_KEY: SeedSource()} if self.stochastic_depth or self.dropout or self.patch_dropout or is_turned else {}

    @property
    def input_forms(self) -> tuple[InputForm, ...]:
        """One for each of the flexible patch sizes or lengths of sequences."""
        if self.naflex is not None:
            return self.naflex.forms(patch_size=self.shape.patch_size)
        return tuple(InputForm(patch_size=size) for size in self.flexible_patches) or (InputForm(),)

    @property
    def eval_form(self) -> InputForm:
        """The smallest of the flexible patch sizes, the longest of sequences."""
        if self.naflex is not None:
            return self.naflex.eval_form(patch_size=self.shape.patch_size)
        return InputForm(patch_size=self.shape.finest_patch) if self.flexible_patches else InputForm()

    def patch_size_problem(self, patch_size: int) -> str | None:
        """Flexible patches may have any side that divides the image's and holds whole positions of the stem's features."""
        if not self.flexible_patches:
            return super().patch_size_problem(patch_size)
        if patch_size % self.stem.stride:
            return f"{patch_size} is not a multiple of {self.stem.stride}, the stride of model.stem {self.stem.kind}"
        return f"{patch_size} does not divide model.image_size {self.image_size}" if self.image_size % patch_size else None

    @property
    def shape(self) -> ViTShape:
        """The sizes with the variant's filled in."""
        variant = parse_variant(self.variant) if self.variant is not None else None
        size = variant.size if variant else None
        width = self.width or (size and size.width)
        depth = self.depth or (size and size.depth)
        num_heads = self.num_heads or (size and size.num_heads)
        patch_size = self.patch_size or (variant and variant.patch_size)
        assert width, "validation lets no size be missing"
        assert depth, "validation lets no size be missing"
        assert num_heads, "validation lets no size be missing"
        assert patch_size, "validation lets no size be missing"
        plain_width = size.mlp_width if size else 4 * width
        return ViTShape(
            width=width,
            depth=depth,
            mlp_width=self.mlp_width or (plain_width if self.mlp == "gelu" else gated_width(plain_width, kind=self.mlp)),
            num_heads=num_heads,
            patch_size=patch_size,
            flexible_patches=self.flexible_patches,
            sequence_length=max(self.naflex.sequence_lengths) if self.naflex else None,
            image_size=self.image_size,
            num_channels=self.num_channels,
            stem_config=self.stem,
            embedding_norm=self.embedding_norm,
            class_token=self.pooling == "cls" if self.class_token is None else self.class_token,
            is_distilled=self.distillation_token,
            num_registers=self.num_registers,
            learned_positions=self.positions == "learned",
            prefix_positions=self.prefix_positions,
            pooling=self.pooling,
            is_gated=self.mlp != "gelu",
            is_parallel=self.parallel,
            qk_norm=self.qk_norm,
            mlp_norm=self.mlp_norm,
            layer_scale=self.layer_scale is not None,
            drops_values=self.dropout > 0,
            window=self.window,
            global_blocks=self.global_blocks,
            patch_dropout=self.patch_dropout,
            mixes_channels=self.attention == "cross_covariance",
            rotary=self.rotary.kind if self.rotary else None,
            position_bias=self.position_bias.kind if self.position_bias else None,
            halts=self.halting is not None,
            merged_tokens=() if self.token_merging is None else self.token_merging.wanted(depth=depth),
        )

    def block_spec(self, index: int) -> BlockSpec:
        """What block number `index` is made of."""
        shape = self.shape
        is_shared = isinstance(self.position_bias, RelativeBiasConfig) and self.position_bias.shared
        return BlockSpec(
            width=shape.width,
            num_heads=shape.num_heads,
            mlp_width=shape.mlp_width,
            norm=self.norm,
            norm_eps=self.layer_norm_eps,
            mlp=self.mlp,
            gelu=self.gelu,
            mlp_norm=self.mlp_norm,
            qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias,
            mlp_bias=self.mlp_bias,
            qk_norm=self.qk_norm,
            layer_scale=self.layer_scale,
            attention=self.attention,
            window=shape.window_of(index),
            dropout=self.dropout,
            grid=Grid(rows=shape.grid, columns=shape.grid),
            has_prefix=shape.num_prefix > 0,
            rope=self.rotary if isinstance(self.rotary, MixedRopeConfig) else None,
            position_bias=None if is_shared else self.position_bias,
            relative_rule=POSITION_MODES[self.resampling].relative,
            drop_rate=self._drop_rate(index, depth=shape.depth),
        )

    def _drop_rate(self, index: int, *, depth: int) -> float:
        if self.stochastic_depth_schedule == "constant":
            return self.stochastic_depth
        return self.stochastic_depth * index / max(1, depth - 1)
