"""NaFlex: settings of a vision transformer whose images keep their aspect ratio, and what it cannot be combined with."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from vitscale.config import Config
from vitscale.models.settings import Count
from vitscale.nn.input_form import InputForm, PatchSequence
from vitscale.nn.rope import Dinov3RopeConfig, MixedRopeConfig
from vitscale.nn.stems import PatchStemConfig

_CONFLICTS: dict[str, str] = {
    "flexible_patches": "sizes of patches, of which sequences have one",
    "window": "windows of a grid, of which every image has its own",
    "patch_dropout": "a fixed number of patches, of which every image has its own",
    "position_bias": "a bias for one grid of patches, of which every image has its own",
    "token_merging": "a fixed number of merged patches, of which every image has its own",
}


class NaFlexConfig(Config):
    """Images of mixed resolutions and aspect ratios in one batch (NaViT, Dehghani et al. 2023; SigLIP 2, Tschannen et al. 2025).

    Each image is scaled to as many patches as its sequence holds, its aspect ratio kept, and filled up; attention and pooling see the
    real patches only. Positions are resampled to the grid of each image, as model.resampling says.
    """

    sequence_lengths: tuple[Count, ...] = Field(min_length=1)
    """Patches of an image at most. Training draws one of these for each step; evaluations take the largest unless they ask for another.
    Planned for the largest."""
    least_share: float = Field(default=1.0, gt=0, le=1)
    """A training image fills a share of its sequence that is drawn evenly between this and 1, so that resolutions are mixed within a
    batch; 1 fills it as far as the aspect ratio allows."""

    @field_validator("sequence_lengths")
    @classmethod
    def _lengths_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"one is drawn for each step, evenly: give each once, not {list(value)}")
        return value

    def forms(self, *, patch_size: int) -> tuple[InputForm, ...]:
        """The forms of training batches."""
        return tuple(
            InputForm(sequence=PatchSequence(length=length, patch_size=patch_size, least_share=self.least_share))
            for length in self.sequence_lengths
        )

    def eval_form(self, *, patch_size: int) -> InputForm:
        """Sequences of the greatest length, filled."""
        return InputForm(sequence=PatchSequence(length=max(self.sequence_lengths), patch_size=patch_size))


def naflex_problem(settings: Mapping[str, Any]) -> str | None:
    """Why sequences of patches do not go with other settings of the model; None where they do."""
    found = next((name for name in _CONFLICTS if settings.get(name)), None)
    if found is not None:
        return f"model.{found} is for {_CONFLICTS[found]}; use one of the two"
    stem, rotary = settings.get("stem"), settings.get("rotary")
    if stem is not None and not isinstance(stem, PatchStemConfig):
        return f"model.stem {stem.kind} sees across patches, which lie apart in a sequence; use one of the two"
    if isinstance(rotary, MixedRopeConfig):
        return "model.rotary mixed learns its angles for one grid of patches, of which every image has its own; use one of the two"
    if isinstance(rotary, Dinov3RopeConfig) and rotary.draws is not None:
        return "model.rotary draws coordinates for one grid of patches; leave out its shift, jitter and rescale, or model.naflex"
    return None
