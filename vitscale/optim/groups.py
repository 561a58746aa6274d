"""Which parameters weight decay applies to."""

from collections.abc import Iterable
from dataclasses import dataclass

# Embeddings are added to activations, not multiplied with them; shrinking them to zero is no regularisation of a kernel.
_EMBEDDINGS = ("pos_embed", "window_pos_embed", "cls_token", "dist_token", "reg_token", "latent")

# What says where tokens are: tables, frequencies, the small network that makes a bias (microsoft/Swin-Transformer,
# `no_weight_decay_keywords`; timm's `RotaryEmbeddingMixed.no_weight_decay`).
_POSITIONS = frozenset({"position_bias", "shared_position_bias", "rope", "factorised_positions"})


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Names of parameters that share one weight decay."""

    names: tuple[str, ...]
    weight_decay: float


def decays(name: str, *, num_dims: int) -> bool:
    """Whether weight decay applies: to kernels of linear layers and convolutions, not to biases, norms, learned tokens or positions."""
    parts = name.split(".")
    return num_dims >= 2 and parts[-1] not in _EMBEDDINGS and _POSITIONS.isdisjoint(parts)


def parameter_groups(shapes: Iterable[tuple[str, tuple[int, ...]]], *, weight_decay: float) -> list[ParameterGroup]:
    """Split (name, shape) pairs into the decayed and the undecayed group; a group without members is left out."""
    decayed: list[str] = []
    undecayed: list[str] = []
    for name, shape in shapes:
        (decayed if decays(name, num_dims=len(shape)) else undecayed).append(name)
    groups = (
        ParameterGroup(names=tuple(decayed), weight_decay=weight_decay),
        ParameterGroup(names=tuple(undecayed), weight_decay=0.0),
    )
    return [group for group in groups if group.names]
