"""Every vision transformer that can be named, with its parameters, FLOPs and tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vitscale.models import MODELS
from vitscale.models.hiera_settings import HIERA_PATCH_STRIDE, HIERA_VARIANTS
from vitscale.models.swin_settings import SWIN_PATCH_SIZE, SWIN_VARIANTS
from vitscale.models.variants import MODELS_BY_NAME, SIZES, known_patches, parse_variant

_FOR_TESTS = "mu"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model without a head that `kind` and `variant` of a configuration name, at an image size in pixels.

    FLOPs are those of one image's forward pass; tokens are those of its first block.
    """

    kind: str
    name: str
    num_parameters: int
    forward_flops: int
    num_tokens: int
    image_size: int


def catalogue(*, image_size: int, containing: str = "") -> Iterator[Entry]:
    """The models whose name contains a text, plain sizes first, at the least size from `image_size` on that they can take."""
    for named in _all_named():
        if containing.casefold() in named.name.casefold():
            yield _entry(named, image_size=-(-image_size // named.side_multiple) * named.side_multiple)


@dataclass(frozen=True, kw_only=True)
class _Named:
    kind: str
    name: str
    side_multiple: int


def _all_named() -> Iterator[_Named]:
    for base in (*SIZES, *MODELS_BY_NAME):
        for patch in () if base == _FOR_TESTS else known_patches(base):
            name = f"{base}/{patch}"
            yield _Named(kind="vit", name=name, side_multiple=parse_variant(name).patch_size)
    for swin in SWIN_VARIANTS:
        yield _Named(kind="swin", name=swin, side_multiple=SWIN_PATCH_SIZE)
    for hiera, variant in HIERA_VARIANTS.items():
        yield _Named(kind="hiera", name=hiera, side_multiple=HIERA_PATCH_STRIDE * 2 ** (len(variant.depths) - 1))


def _entry(named: _Named, *, image_size: int) -> Entry:
    config = MODELS[named.kind].model_validate({"variant": named.name, "image_size": image_size})
    with torch.device("meta"):
        model = config.build()
    return Entry(
        kind=named.kind,
        name=named.name,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        forward_flops=config.shape.forward_flops,
        num_tokens=config.shape.blocks[0].num_tokens,
        image_size=image_size,
    )
