"""Backbones and the table of their configurations: a new model is one file and one line here."""

from typing import Annotated

from pydantic import Field

from vitscale.models.base import Backbone, BackboneConfig, BackboneShape, BlockRunner, BlockShape, Draws, Features, PooledInput
from vitscale.models.hiera import Hiera, HieraConfig
from vitscale.models.hiera_shape import HieraShape
from vitscale.models.swin import Swin, SwinConfig
from vitscale.models.swin_shape import SwinShape
from vitscale.models.vit import ViT
from vitscale.models.vit_config import ViTConfig
from vitscale.models.vit_shape import ViTShape

ModelConfig = Annotated[ViTConfig | SwinConfig | HieraConfig, Field(discriminator="kind")]

MODELS: dict[str, type[ViTConfig | SwinConfig | HieraConfig]] = {
    config.model_fields["kind"].default: config for config in (ViTConfig, SwinConfig, HieraConfig)
}
"""Configuration classes by `kind`."""

__all__ = [
    "MODELS",
    "Backbone",
    "BackboneConfig",
    "BackboneShape",
    "BlockRunner",
    "BlockShape",
    "Draws",
    "Features",
    "Hiera",
    "HieraConfig",
    "HieraShape",
    "ModelConfig",
    "PooledInput",
    "Swin",
    "SwinConfig",
    "SwinShape",
    "ViT",
    "ViTConfig",
    "ViTShape",
]
