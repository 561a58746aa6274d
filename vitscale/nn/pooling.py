"""From the tokens of the last block to one vector per image."""

# B batch, N tokens, D width

from typing import Literal

from torch import Tensor, nn

Pooling = Literal["cls", "mean"]
"""cls: the class token. mean: the average over all patch tokens; the model then has no class token."""


def pool_tokens(tokens_BND: Tensor, *, norm: nn.Module, pooling: Pooling) -> Tensor:
    """(B, N, D) to (B, D): the final norm, then the class token or the mean, as in big_vision (`pool_type` tok and gap).

    timm's `fc_norm`, which averages before it normalises, is another function.
    """
    if pooling == "cls":
        # Layer norm works token by token: only the token that is used is normalised.
        class_BD: Tensor = norm(tokens_BND[:, 0])
        return class_BD
    mean_BD: Tensor = norm(tokens_BND).mean(dim=1)
    return mean_BD
