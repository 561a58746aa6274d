"""The configuration of a vision transformer, and which class it builds."""

from vitscale.models.halting_vit import HaltingViT
from vitscale.models.merging_vit import MergingViT
from vitscale.models.naflex_vit import NaFlexViT
from vitscale.models.vit import ViT
from vitscale.models.vit_checks import CheckedViTSettings


class ViTConfig(CheckedViTSettings):
    """A pre-norm vision transformer, by name, by sizes, or by name with some sizes replaced."""

    def build(self) -> ViT:
        """The model, with parameters on the current default device; see nn/init.py for their values."""
        if self.naflex is not None:
            return NaFlexViT(self)
        if self.halting is not None:
            return HaltingViT(self)
        return ViT(self) if self.token_merging is None else MergingViT(self)
