"""Every vision transformer that can be named, with its parameters, FLOPs and tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vitscale.models.variants import MODELS_BY_NAME, SIZES, known_patches
from vitscale.models.vit import ViTConfig

_FOR_TESTS = "mu"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named model without a head, at an image size in pixels; FLOPs are those of one image's forward pass."""

    name: str
    num_parameters: int
    forward_flops: int
    num_tokens: int
    image_size: int


def catalogue(*, image_size: int, containing: str = "") -> Iterator[Entry]:
    """The models whose name contains a text, plain sizes first, at the least size from `image_size` on that their patch divides."""
    bases = [name for name in (*SIZES, *MODELS_BY_NAME) if name != _FOR_TESTS]
    names = [(f"{base}/{patch}", patch) for base in bases for patch in known_patches(base)]
    for name, patch in names:
        if containing.casefold() in name.casefold():
            yield _entry(name, image_size=-(-image_size // patch) * patch)


def _entry(name: str, *, image_size: int) -> Entry:
    config = ViTConfig(variant=name, image_size=image_size)
    with torch.device("meta"):
        model = config.build()
    return Entry(
        name=name,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        forward_flops=config.shape.forward_flops,
        num_tokens=config.shape.num_tokens,
        image_size=image_size,
    )
