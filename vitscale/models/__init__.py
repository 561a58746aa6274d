"""Backbones and the table of their configurations: a new model is one file and one line here."""

from vitscale.models.base import Backbone, BackboneShape, BlockRunner, BlockShape, Features
from vitscale.models.vit import ViT, ViTConfig, ViTShape

MODELS: dict[str, type[ViTConfig]] = {config.model_fields["kind"].default: config for config in (ViTConfig,)}
"""Configuration classes by `kind`."""

# With a second kind: Annotated[ViTConfig | OtherConfig, Field(discriminator="kind")]; pydantic refuses one on a single member.
ModelConfig = ViTConfig

__all__ = ["MODELS", "Backbone", "BackboneShape", "BlockRunner", "BlockShape", "Features", "ModelConfig", "ViT", "ViTConfig", "ViTShape"]
