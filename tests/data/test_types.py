import pickle

import pytest

from vitscale.data.types import LostSample, RawSample, SampleFields, StagedTransform
from vitscale.dist.seeding import CounterRng


def first(sample: RawSample, rng: CounterRng) -> SampleFields:  # noqa: ARG001
    return {"stage": 0}


def second(sample: RawSample, rng: CounterRng) -> SampleFields:  # noqa: ARG001
    return {"stage": 1}


def third(sample: RawSample, rng: CounterRng) -> SampleFields:  # noqa: ARG001
    return {"stage": 2}


@pytest.mark.parametrize(("consumed", "stage"), [(0, first), (96, first), (128, second), (160, second), (256, third), (10**12, third)])
def test_a_stage_begins_with_the_batch_that_follows_its_start(consumed: int, stage: object) -> None:
    staged = StagedTransform(starts=(0, 128, 256), transforms=(first, second, third))
    assert staged.at(consumed) is stage


def test_one_transform_for_the_whole_run() -> None:
    assert all(StagedTransform(transforms=(second,)).at(consumed) is second for consumed in (0, 1, 10**12))


def test_transforms_and_losses_travel_to_and_from_loader_processes() -> None:
    staged = StagedTransform(starts=(0, 128), transforms=(first, second))
    lost = LostSample(sample_id=3, epoch=1, view=5, shard="a.tar", reason="gone", replaced_by=7)
    for value in (staged, lost):
        assert pickle.loads(pickle.dumps(value)) == value


def test_one_of_several_forms_is_drawn_for_each_batch_of_a_stage() -> None:
    def drawn(*, seed: int) -> list[object]:
        staged = StagedTransform(starts=(0, 1600), transforms=(first, second, second, third), num_forms=2, seed=seed)
        return [staged.at(consumed) for consumed in range(0, 3200, 16)]

    once = drawn(seed=0)
    assert set(once[:100]) == {first, second}
    assert set(once[100:]) == {second, third}
    assert 30 < once[:100].count(first) < 70
    assert drawn(seed=0) == once != drawn(seed=1)
