"""What every backbone offers to objectives, the planner, the engine and evaluators."""

# B batch, C channels, H height, W width, N tokens, D model width

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vitscale.config import Config
from vitscale.dist.seeding import DrawSource
from vitscale.nn.input_form import InputForm
from vitscale.nn.preprocess import Normaliser
from vitscale.nn.stem import StemShape


class BlockRunner(Protocol):
    """Runs block number i on its input and what else it takes, by keyword, and gives what it gives: tokens, or a tuple that begins with
    them. The engine puts its own in place to recompute activations."""

    def __call__(self, index: int, block: nn.Module, x_BND: Tensor, /, **context: Any) -> Any: ...


Draws = Mapping[str, Tensor]
"""What the loader adds to each sample for the model, by batch key: numbers drawn in training, and marks of the batch's form."""


@dataclass(frozen=True, kw_only=True)
class PooledInput:
    """What goes into a block that pools its queries, and so makes fewer and wider tokens of it."""

    width: int
    num_tokens: int
    projects: bool
    """Whether what goes past the attention is brought to the new width by a matrix."""


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """The sizes of one transformer block that its parameters, FLOPs and memory depend on; counts of tokens are per image."""

    width: int
    mlp_width: int
    num_tokens: int
    """Tokens that pass through the block."""
    attended_tokens: int
    """Tokens that each token attends to: all of them, or those of its window. Where attention is between channels, channels of a head."""
    padding_tokens: int = 0
    """Further tokens that only the attention sees, to fill its windows."""
    merged_tokens: int = 0
    """Of the tokens, those that are merged into others between attention and MLP."""
    num_gathered: int = 0
    """Tensors like its tokens that are kept for backward beside those of a plain block, where images have different numbers of them."""
    matching_flops: int = 0
    """What it takes to find them, in the forward pass."""
    lies_in_windows: bool = False
    """Whether the tokens come window by window, so that nothing is copied to cut them."""
    pooled_input: PooledInput | None = None
    """What goes in, where that is not `num_tokens` of `width`; `attended_tokens` are of those."""
    mixes_channels: bool = False
    """Whether attention is between the channels of a head, each of which attends to as many as the head is wide, and neighbouring
    patches are mixed by convolutions."""
    num_score_heads: int = 0
    """Heads whose scores are kept for backward: those with a trained bias, for which the fused kernels have no gradient."""
    rotary: Literal["fixed", "learned"] | None = None
    """Whether queries and keys are turned, and whether by learned frequencies."""
    bias_flops: int = 0
    """Of making the position bias out of the queries of one image, where it depends on them."""
    is_gated: bool = False
    """Whether the MLP has three matrices instead of two."""
    is_parallel: bool = False
    """Whether attention and MLP share one norm."""
    qk_norm: bool = False
    by_cosines: bool = False
    """Whether attention is by cosines: queries and keys divided by their lengths, and the queries scaled."""
    mlp_norm: bool = False
    layer_scale: bool = False
    drops_values: bool = False
    """Whether values are dropped after attention, inside the MLP and after it."""

    @property
    def num_weights(self) -> int:
        """Elements of the block's matrices."""
        pooled = self.pooled_input
        into_attention = 3 * self.width if pooled is None else (4 if pooled.projects else 3) * pooled.width
        return self.width * (into_attention + self.width + self._mlp_matrices * self.mlp_width)

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one image."""
        in_attention = self.num_tokens + self.padding_tokens
        projections = self._qkv_flops + 2 * self.num_tokens * self.width**2
        attention = 4 * in_attention * self.attended_tokens * self.width
        mlp = 2 * self._mlp_matrices * self.mlp_tokens * self.width * self.mlp_width
        return projections + attention + self.bias_flops + mlp + self.matching_flops + self._mixing_flops

    @property
    def _mixing_flops(self) -> int:
        """Of two convolutions with a kernel of 3 x 3 for each channel."""
        return 2 * 2 * 9 * self.num_tokens * self.width if self.mixes_channels else 0

    @property
    def mlp_tokens(self) -> int:
        """Tokens that pass through the MLP, and leave the block."""
        return self.num_tokens - self.merged_tokens

    @property
    def _qkv_flops(self) -> int:
        """Of the projections to queries, keys and values, and of the one past the attention."""
        pooled = self.pooled_input
        if pooled is None:
            return 6 * (self.num_tokens + self.padding_tokens) * self.width**2
        return (8 if pooled.projects else 6) * pooled.num_tokens * pooled.width * self.width

    @property
    def _mlp_matrices(self) -> int:
        return 3 if self.is_gated else 2


class BackboneShape(Protocol):
    """The sizes of a backbone, which its configuration knows before anything is built. Lengths are in pixels."""

    @property
    def width(self) -> int:
        """Width of the pooled features."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square image that the other sizes hold for."""
        ...

    @property
    def patch_size(self) -> int:
        """What the side of every image is a multiple of."""
        ...

    @property
    def num_channels(self) -> int:
        """Channels of the image."""
        ...

    @property
    def kernel_side(self) -> int:
        """Side of a patch where it is cut, in pixels of the image, or in positions of the stem's features."""
        ...

    @property
    def grid(self) -> int:
        """Patches per side."""
        ...

    @property
    def class_token(self) -> bool:
        """Whether a class token goes before the patches."""
        ...

    @property
    def is_distilled(self) -> bool:
        """Whether there is a distillation token, for a head of its own."""
        ...

    @property
    def stem(self) -> StemShape | None:
        """What comes before patches are cut; None: nothing does."""
        ...

    @property
    def blocks(self) -> tuple[BlockShape, ...]:
        """Every block in the order in which they run; in a hierarchical model they differ."""
        ...

    @property
    def forward_flops(self) -> int:
        """FLOPs of the backbone's forward pass of one image."""
        ...


class Features(NamedTuple):
    """What a backbone makes of a batch of images.

    `pooled_BD` is one normalised vector per image, of width 0 in a model without pooling. `tokens_BND` are the last block's outputs
    before the final norm, so that nothing is computed which is not used; `backbone.norm(tokens_BND)` normalises them.
    `distilled_BD` is the normalised distillation token, where there is one.
    """

    # A tuple because DeepSpeed's ZeRO-3 hooks look for tensors in tuples, lists and dicts only.
    pooled_BD: Tensor
    tokens_BND: Tensor
    distilled_BD: Tensor | None = None
    loss_B: Tensor | None = None
    """What the backbone itself adds to the loss of each image, in fp32, where it has something to add."""
    tokens_BL: Tensor | None = None
    """How many tokens each block has computed of each image (int64), where that is not the same for all."""


class BackboneConfig(Config):
    """What configurations of all kinds of backbones have in common."""

    @property
    def draw_sources(self) -> dict[str, DrawSource]:
        """What the loader draws for each training sample, by batch key: all the randomness of the model."""
        return {}

    @property
    def input_forms(self) -> tuple[InputForm, ...]:
        """The forms of a batch in training, of which the loader draws one for each step."""
        return (InputForm(),)

    @property
    def eval_form(self) -> InputForm:
        """The form of a batch in evaluations that ask for no other."""
        return self.input_forms[0]

    def patch_size_problem(self, patch_size: int) -> str | None:
        """Why images cannot be cut into patches of that side in an evaluation; None where they can."""
        return f"{patch_size} has no effect on a model whose patches have one size; leave it out, or set model.flexible_patches"


class Backbone(nn.Module, ABC):
    """Images to features. Built from parameters with init recipes and no buffers, so it can be built on the meta device."""

    width: int
    image_size: int
    patch_size: int
    num_channels: int
    normaliser: Normaliser
    blocks: nn.ModuleList
    norm: nn.Module
    block_runner: BlockRunner
    is_distilled: bool = False
    """Whether features have a `distilled_BD`."""
    draw_keys: frozenset[str] = frozenset()
    """What `draws` holds in training only."""
    form_keys: frozenset[str] = frozenset()
    """What `draws` always holds: which form the images have."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type that images are normalised to: that of the parameters."""
        return next(self.parameters()).dtype

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to normalised images of the compute type on the same device."""
        return self.normaliser(image_BCHW, dtype=self.compute_dtype)

    @abstractmethod
    def forward(self, image_BCHW: Tensor, *, draws: Draws | None = None) -> Features:
        """Normalised images (B, C, H, W) to features; sides other than `image_size` are multiples of the patch size.

        In training `draws` decides what is dropped; without `draw_keys` in it nothing is random.
        """


def run_block(index: int, block: nn.Module, x_BND: Tensor, /, **context: Any) -> Any:  # noqa: ARG001  (a BlockRunner)
    """The plain block runner: just calls the block."""
    return block(x_BND, **context)
