"""Halting tokens (A-ViT; Yin et al. 2022): each token leaves the computation after the block at which it is done, and its result is the
mean of what it was after each block, weighted by the probability of halting there."""

# B batch, N tokens, T tokens that go on (of all images, one after the other), I images with such, M most of them in one image,
# Q = B x N, L blocks, D width, H heads, K head width

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vitscale.config import Config
from vitscale.nn.attention import Attention
from vitscale.nn.block import Block, scaled


class PriorConfig(Config):
    """Where tokens are expected to halt."""

    depth: float = Field(gt=0)
    """The block, from 1, around which the expected probabilities are centred: a normal distribution with deviation 1."""
    weight: float = Field(default=0.01, gt=0)
    """Factor of the divergence from it in the loss."""


class HaltingConfig(Config):
    """Adaptive computation. There are no parameters in it: the first channel of a token decides, so that pre-trained weights fit."""

    gate_scale: float = Field(default=5.0, gt=0)
    """A token halts with probability sigmoid(gate_scale * its first channel + gate_shift) after each block, until the sum
    reaches `threshold`."""
    gate_shift: float = -10.0
    """See gate_scale; the default lets all tokens go through all blocks at first."""
    threshold: float = Field(default=0.99, gt=0, le=1)
    """The sum of probabilities at which a token halts."""
    ponder_weight: float = Field(default=5e-4, ge=0)
    """Factor of the ponder loss: the mean number of blocks that a token of the image goes through, and what is left of its probability."""
    prior: PriorConfig | None = None
    """Pulls the depth at which tokens halt to an expected one; null does not."""


class Packing(NamedTuple):
    """Where the tokens that go on stand when each image's are put in a row of their own. Rows are filled up, to no effect."""

    slot_IM: Tensor
    """Which token stands there; the first of all where none does."""
    is_token_IM: Tensor
    place_T: Tensor
    """Where in the rows, one after the other, each token stands."""


class HaltingBlock(Block):
    """A block that runs on the tokens which go on, of all images in one sequence; they attend to those of their own image."""

    def forward(self, x_1TD: Tensor, *, num_tokens: int, packing: Packing | None) -> Tensor:  # type: ignore[override]
        """(1, T, D) to (1, T, D). Without `packing` every image has all of its `num_tokens`."""
        assert isinstance(self.attn, Attention), "what halts are tokens, which attend to tokens"
        q_1THK, k_1THK, v_1THK = self.attn.heads(self.norm1(x_1TD))
        if packing is None:
            rows = (part_1THK[0].unflatten(0, (-1, num_tokens)).transpose(1, 2) for part_1THK in (q_1THK, k_1THK, v_1THK))
            mixed_THK = F.scaled_dot_product_attention(*rows).transpose(1, 2).flatten(0, 1)
        elif not x_1TD.shape[1]:
            # A rank without tokens still runs the block: all gather its weights, and reduce a gradient of each, norms of keys included.
            mixed_THK = (q_1THK + k_1THK + v_1THK)[0]
        else:
            q_IHMK, k_IHMK, v_IHMK = (_rows(part_1THK[0], packing) for part_1THK in (q_1THK, k_1THK, v_1THK))
            mask_I11M = packing.is_token_IM[:, None, None]
            mixed_IHMK = F.scaled_dot_product_attention(q_IHMK, k_IHMK, v_IHMK, attn_mask=mask_I11M)
            mixed_THK = mixed_IHMK.transpose(1, 2).flatten(0, 1).index_select(0, packing.place_T)
        x_1TD = x_1TD + scaled(self.attn.proj(mixed_THK.flatten(1).unsqueeze(0)), by=self.ls1)
        return x_1TD + scaled(self.mlp(self.norm2(x_1TD), seed_B=None), by=self.ls2)


class Halted(NamedTuple):
    """What has become of all tokens."""

    x_BND: Tensor
    """Their results."""
    loss_B: Tensor
    """What the halting adds to the loss of each image, in fp32."""
    tokens_BL: Tensor
    """How many tokens of each image went into each block (int64)."""


class Halting:
    """Follows the tokens of a batch (B, N, D) from block to block and takes out those that are done.

    What a token is expected to take is its ponder cost, the number of blocks it went through plus what was left of its probability at
    the last of them; the gradient reaches the gates through what was left. The probabilities of an image's tokens, averaged, are held
    against the prior by their divergence, image by image: that of a batch, as in the authors' code, would depend on how it is cut into
    micro-batches.
    """

    def __init__(self, config: HaltingConfig, x_BND: Tensor, *, num_blocks: int) -> None:
        self._config = config
        self._num_blocks = num_blocks
        self._num_images, self.num_tokens, _ = x_BND.shape
        self._output_QD = torch.zeros_like(x_BND.flatten(0, 1))
        self._live_T = torch.arange(len(self._output_QD), device=x_BND.device)
        self._left_T = torch.ones(len(self._live_T), device=x_BND.device)
        self._tokens: list[Tensor] = []
        self._probability: list[Tensor] = []
        self._left: list[Tensor] = []
        self.packing: Packing | None = None
        """How the tokens that go on are spread over the images; None while all do."""

    def after_block(self, x_1TD: Tensor) -> Tensor:
        """From the tokens that a block gives to those which go into the next: (1, T, D) to (1, fewer, D). Waits for the device."""
        image_T = self._live_T // self.num_tokens
        gate_T = torch.sigmoid(self._config.gate_scale * x_1TD[0, :, 0].float() + self._config.gate_shift)
        is_last = len(self._tokens) == self._num_blocks - 1
        halts_T = torch.ones_like(gate_T, dtype=torch.bool) if is_last else self._left_T - gate_T <= 1 - self._config.threshold
        probability_T = torch.where(halts_T, self._left_T, gate_T)
        weighted_TD = probability_T.to(x_1TD.dtype).unsqueeze(-1) * x_1TD[0]
        self._output_QD = self._output_QD.index_add(0, self._live_T, weighted_TD)
        self._tokens.append(torch.bincount(image_T, minlength=self._num_images))
        self._probability.append(self._image_means(probability_T, image_T))
        self._left.append(self._image_means(self._left_T * halts_T, image_T))
        goes_on_T = (~halts_T).nonzero().squeeze(1)
        if len(goes_on_T) == len(halts_T):
            self._left_T = self._left_T - gate_T
            return x_1TD
        self._left_T = (self._left_T - gate_T).index_select(0, goes_on_T)
        self._live_T = self._live_T.index_select(0, goes_on_T)
        self.packing = pack(self._live_T // self.num_tokens, num_images=self._num_images)
        return x_1TD.index_select(1, goes_on_T)

    def result(self) -> Halted:
        """After the last block."""
        tokens_BL = torch.stack(self._tokens, dim=1)
        ponder_B = tokens_BL.sum(dim=1) / self.num_tokens + torch.stack(self._left).sum(dim=0)
        loss_B = self._config.ponder_weight * ponder_B
        if self._config.prior is not None:
            probability_BL = torch.stack(self._probability, dim=1)
            loss_B = loss_B + self._config.prior.weight * divergence(probability_BL, log_prior(self._config.prior.depth, probability_BL))
        return Halted(self._output_QD.unflatten(0, (self._num_images, self.num_tokens)), loss_B, tokens_BL)

    def _image_means(self, values_T: Tensor, image_T: Tensor) -> Tensor:
        """Means over all tokens of each image (B,), where those that are gone count as zeros."""
        return values_T.new_zeros(self._num_images).index_add(0, image_T, values_T) / self.num_tokens


def pack(image_T: Tensor, *, num_images: int) -> Packing:
    """The packing of tokens whose images (T,) rise. Images without a token have no row. Waits for the device."""
    counts_B = torch.bincount(image_T, minlength=num_images)
    first_B = counts_B.cumsum(0) - counts_B
    longest = int(counts_B.max())
    images_I = counts_B.nonzero().squeeze(1)
    column_M = torch.arange(longest, device=image_T.device)
    is_token_IM = column_M < counts_B[images_I].unsqueeze(1)
    slot_IM = torch.where(is_token_IM, first_B[images_I].unsqueeze(1) + column_M, 0)
    row_B = (counts_B > 0).cumsum(0) - 1
    place_T = row_B[image_T] * longest + torch.arange(len(image_T), device=image_T.device) - first_B[image_T]
    return Packing(slot_IM, is_token_IM, place_T)


def log_prior(depth: float, like_BL: Tensor) -> Tensor:
    """Logarithms (L,) of a normal distribution around block `depth` (counted from 1) with deviation 1, cut to the blocks that are there."""
    block_L = torch.arange(1, like_BL.shape[1] + 1, device=like_BL.device, dtype=torch.float32)
    return torch.log_softmax(-0.5 * (block_L - depth).square(), dim=0)


def divergence(probability_BL: Tensor, log_prior_L: Tensor) -> Tensor:
    """Kullback and Leibler's divergence (B,) of distributions from another."""
    # A block at which nothing halts adds nothing, and neither infinity to the gradient.
    log_BL = probability_BL.clamp(min=math.exp(-20)).log()
    divergence_B: Tensor = (probability_BL * (log_BL - log_prior_L)).sum(dim=1)
    return divergence_B


def _rows(x_THK: Tensor, packing: Packing) -> Tensor:
    """(T, H, K) to rows of one image each (I, H, M, K)."""
    rows_IMHK: Tensor = x_THK.index_select(0, packing.slot_IM.flatten()).unflatten(0, packing.slot_IM.shape)
    return rows_IMHK.transpose(1, 2)
