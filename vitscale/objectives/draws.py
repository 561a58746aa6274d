"""Draws that the loader makes for what the device does later: a few numbers per sample beside its fields."""

from dataclasses import dataclass

from vitscale.data.types import RawSample, SampleFields, SampleTransform
from vitscale.dist.seeding import CounterRng, DrawSource


@dataclass(frozen=True, kw_only=True)
class WithDraws:
    """A sample transform that adds a draw of `source` under `key` to what `transform` makes."""

    transform: SampleTransform
    key: str
    source: DrawSource
    image_size: int

    def __call__(self, sample: RawSample, rng: CounterRng) -> SampleFields:
        """Raises what `transform` raises."""
        fields = self.transform(sample, rng)
        return {**fields, self.key: self.source.draw(rng, image_size=self.image_size)}
