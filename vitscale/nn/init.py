"""How a parameter starts: a small frozen recipe attached to it, drawn from a key made of the seed and its name.

A value depends on (seed, parameter name, recipe, shape) alone, so a model starts from the same weights whatever builds it:
on the meta device, at any ZeRO stage, on any number of ranks, one parameter at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from vitscale.dist.seeding import counter_key

P = TypeVar("P", bound=Tensor)

_STD_OF_CUT_NORMAL = 0.87962566103423978
"""Standard deviation of a standard normal cut at two."""


@dataclass(frozen=True, kw_only=True)
class Init:
    """`kind` constant fills with `value`; trunc_normal has standard deviation `value`, cut at two of them;
    normal has standard deviation `value`; xavier_uniform sees the tensor as `stack` matrices on top of one another
    (3 for a fused qkv), as the unfused layers would be drawn; rotated_frequencies has the base `value`."""

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


def lecun_normal(fan_in: int) -> Init:
    """LeCun (1998) scaling as flax draws it: variance 1 / fan_in after the cut at two standard deviations."""
    return trunc_normal(fan_in**-0.5 / _STD_OF_CUT_NORMAL)


def normal(std: float) -> Init:
    """Normal with standard deviation `std`."""
    return Init(kind="normal", value=std)


def xavier_uniform(*, stack: int = 1) -> Init:
    """Glorot and Bengio (2010), uniform, on each of `stack` equal row blocks."""
    return Init(kind="xavier_uniform", stack=stack)


def rotated_frequencies(base: float) -> Init:
    """Frequencies (2, heads, 2F) of RoPE-Mixed (Heo et al. 2024): vectors of lengths base^(-k/F), k < F, all in one random direction
    for each head, then the same at right angles to it."""
    return Init(kind="rotated_frequencies", value=base)


def set_init(parameter: P, init: Init) -> P:
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


def materialise(module: nn.Module, *, seed: int, device: torch.device | str = "cpu") -> nn.Module:
    """Give every parameter of `module`, perhaps built on the meta device, its initial fp32 value; returns the module.

    For models that one process holds whole; the engine fills sharded ones parameter by parameter.
    """
    for name, parameter in list(module.named_parameters()):
        value = initial_value(parameter, name=name, shape=parameter.shape, seed=seed).to(device)
        owner_name, _, own_name = name.rpartition(".")
        filled = set_init(nn.Parameter(value, requires_grad=parameter.requires_grad), parameter.init)  # type: ignore[attr-defined]
        setattr(module.get_submodule(owner_name), own_name, filled)
    return module


def _constant(value: Tensor, init: Init, generator: torch.Generator) -> None:  # noqa: ARG001  (one signature for all)
    value.fill_(init.value)


def _trunc_normal(value: Tensor, init: Init, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(value, std=init.value, a=-2 * init.value, b=2 * init.value, generator=generator)


def _normal(value: Tensor, init: Init, generator: torch.Generator) -> None:
    value.normal_(std=init.value, generator=generator)


def _xavier_uniform(value: Tensor, init: Init, generator: torch.Generator) -> None:
    for part in value.chunk(init.stack):
        nn.init.xavier_uniform_(part, generator=generator)


def _rotated_frequencies(value: Tensor, init: Init, generator: torch.Generator) -> None:
    _, num_heads, num_pairs = value.shape
    lengths = init.value ** (-torch.arange(num_pairs // 2) / (num_pairs // 2))
    first = 2 * math.pi * torch.rand(num_heads, 1, generator=generator)
    for axis, part in zip((torch.cos, torch.sin), value, strict=True):
        part.copy_(torch.cat([lengths * axis(first), lengths * axis(first + math.pi / 2)], dim=-1))


_FILL: dict[str, Callable[[Tensor, Init, torch.Generator], None]] = {
    "constant": _constant,
    "trunc_normal": _trunc_normal,
    "normal": _normal,
    "xavier_uniform": _xavier_uniform,
    "rotated_frequencies": _rotated_frequencies,
}
