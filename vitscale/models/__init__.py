"""Backbones and the table of their configurations: a new model is one file and one line here."""

from vitscale.models.base import Backbone, BackboneConfig, BackboneShape, BlockRunner, BlockShape, Draws, Features
from vitscale.models.vit import ViT, ViTConfig
from vitscale.models.vit_shape import ViTShape

MODELS: dict[str, type[ViTConfig]] = {config.model_fields["kind"].default: config for config in (ViTConfig,)}
"""Configuration classes by `kind`."""

# With a second kind: Annotated[ViTConfig | OtherConfig, Field(discriminator="kind")]; pydantic refuses one on a single member.
ModelConfig = ViTConfig

__all__ = [
    "MODELS",
    "Backbone",
    "BackboneConfig",
    "BackboneShape",
    "BlockRunner",
    "BlockShape",
    "Draws",
    "Features",
    "ModelConfig",
    "ViT",
    "ViTConfig",
    "ViTShape",
]
