"""What the loader draws for the device: beside the fields, after the transform's own draws."""

import pickle

import numpy as np

from vitscale.data.types import RawSample, SampleFields
from vitscale.dist.seeding import CounterRng
from vitscale.objectives.draws import WithDraws
from vitscale.objectives.erasing import ERASE_KEY, ErasingConfig
from vitscale.objectives.mixing import MIX_KEY, Mixing

BOTH = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, probability=0.9)


def label_and_one_draw(sample: RawSample, rng: CounterRng) -> SampleFields:
    return {"label": sample.sample_id, "crop": rng.uniform()}


def test_transform_adds_its_draw_and_can_be_sent_to_a_worker() -> None:
    transform = pickle.loads(pickle.dumps(WithDraws(transform=label_and_one_draw, key=MIX_KEY, source=BOTH, image_size=16)))
    sample = RawSample(sample_id=7, epoch=0, view=0, key="a", shard="b", members={})
    fields, again = transform(sample, CounterRng(5)), transform(sample, CounterRng(5))
    assert (fields["label"], fields["crop"]) == (7, CounterRng(5).uniform())
    assert fields[MIX_KEY].shape == (5,)
    assert fields[MIX_KEY].dtype == np.float32
    assert np.array_equal(fields[MIX_KEY], again[MIX_KEY])


class _Plain:
    """A transform that draws once."""

    def __call__(self, sample: RawSample, rng: CounterRng) -> SampleFields:  # noqa: ARG002
        return {"image": np.zeros((1, 2, 2), np.uint8), "drawn": rng.uniform()}


def test_the_draw_is_added_to_what_the_transform_makes() -> None:
    config = ErasingConfig(probability=1.0)
    transform = WithDraws(transform=_Plain(), key=ERASE_KEY, source=config, image_size=32)
    sample = RawSample(sample_id=0, epoch=0, view=0, key="k", shard="s", members={})
    fields = transform(sample, CounterRng(1, 2))
    rng = CounterRng(1, 2)
    assert fields["drawn"] == rng.uniform()
    np.testing.assert_array_equal(fields[ERASE_KEY], config.draw(rng, image_size=32))
    assert pickle.loads(pickle.dumps(transform.source)) == config
