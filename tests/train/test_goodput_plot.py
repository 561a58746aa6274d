"""The picture: its bins hold all the time there is, and what it shows can be told apart."""

import pytest

from tests.train.goodput_simulation import simulate
from vitscale.train.goodput_plot import _COLOURS, bin_seconds
from vitscale.train.goodput_timeline import RUN_CAUSES, Segment, Timeline, make_timeline


def test_every_cause_has_a_colour_of_its_own() -> None:
    assert set(_COLOURS) == set(RUN_CAUSES)
    assert len(set(_COLOURS.values())) == len(RUN_CAUSES)


@pytest.mark.parametrize("num_bins", [1, 7, 240])
def test_bins_are_full_and_lose_nothing(num_bins: int) -> None:
    timeline = make_timeline(simulate(3, num_attempts=6).records)
    wall = sum(segment.seconds for segment in timeline.segments)
    bins = bin_seconds(timeline, num_bins=num_bins)
    for number in range(num_bins):
        assert sum(row[number] for row in bins.values()) == pytest.approx(wall / num_bins)
    for cause, row in bins.items():
        assert sum(row) == pytest.approx(sum(segment.seconds for segment in timeline.segments if segment.cause == cause))


def test_a_segment_falls_into_the_bins_it_covers() -> None:
    segments = (
        Segment(begin=0.0, seconds=3.0, cause="step", attempt=0),
        Segment(begin=3.0, seconds=1.0, cause="checkpoint", attempt=0),
    )
    bins = bin_seconds(Timeline(segments=segments, attempts=(), notes=()), num_bins=2)
    assert bins == {"step": [2.0, 1.0], "checkpoint": [0.0, 1.0]}


def test_no_segments_make_no_bins() -> None:
    assert bin_seconds(Timeline(segments=(), attempts=(), notes=()), num_bins=5) == {}
