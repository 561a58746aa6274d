"""How a parameter starts: a small frozen recipe attached to it, drawn from a key made of the seed and its name.

A value depends on (seed, parameter name, recipe, shape) alone, so a model starts from the same weights whatever builds it:
on the meta device, at any ZeRO stage, on any number of ranks, one parameter at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitscale.dist.seeding import counter_key


@dataclass(frozen=True, kw_only=True)
class Init:
    """`kind` constant fills with `value`; trunc_normal has standard deviation `value`, cut at two of them;
    normal has standard deviation `value`; xavier_uniform sees the tensor as `stack` matrices on top of one another
    (3 for a fused qkv), as the unfused layers would be drawn."""

    kind: str
    value: float = 0.0
    stack: int = 1


def zeros() -> Init:
    """All zeros."""
    return Init(kind="constant", value=0.0)


def constant(value: float) -> Init:
    """One value everywhere."""
    return Init(kind="constant", value=value)


def trunc_normal(std: float) -> Init:
    """Normal with standard deviation `std`, redrawn outside two standard deviations."""
    return Init(kind="trunc_normal", value=std)


def normal(std: float) -> Init:
    """Normal with standard deviation `std`."""
    return Init(kind="normal", value=std)


def xavier_uniform(*, stack: int = 1) -> Init:
    """Glorot and Bengio (2010), uniform, on each of `stack` equal row blocks."""
    return Init(kind="xavier_uniform", stack=stack)


def set_init(parameter: nn.Parameter, init: Init) -> nn.Parameter:
    """Attach the recipe to a parameter and return it."""
    parameter.init = init  # type: ignore[attr-defined]
    return parameter


def initial_value(parameter: nn.Parameter, *, name: str, shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    """The fp32 CPU tensor that the parameter called `name` starts from.

    `shape` is the whole parameter's, which ZeRO-3 hides from `parameter.shape`.
    """
    init: Init | None = getattr(parameter, "init", None)
    assert init is not None, f"{name} has no init recipe: give it one with set_init"
    generator = torch.Generator().manual_seed(counter_key(seed, "init", name) >> 1)
    value = torch.empty(tuple(shape), dtype=torch.float32)
    _FILL[init.kind](value, init, generator)
    return value


def _constant(value: Tensor, init: Init, generator: torch.Generator) -> None:
    value.fill_(init.value)


def _trunc_normal(value: Tensor, init: Init, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(value, std=init.value, a=-2 * init.value, b=2 * init.value, generator=generator)


def _normal(value: Tensor, init: Init, generator: torch.Generator) -> None:
    value.normal_(std=init.value, generator=generator)


def _xavier_uniform(value: Tensor, init: Init, generator: torch.Generator) -> None:
    for part in value.chunk(init.stack):
        nn.init.xavier_uniform_(part, generator=generator)


_FILL: dict[str, Callable[[Tensor, Init, torch.Generator], None]] = {
    "constant": _constant,
    "trunc_normal": _trunc_normal,
    "normal": _normal,
    "xavier_uniform": _xavier_uniform,
}
