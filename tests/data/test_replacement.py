from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest

from vitscale.config import DataError
from vitscale.data.lanes import BatchSlice, LaneReader, runs_of
from vitscale.data.order import Order, Window
from vitscale.data.replacement import Row, RowMaker
from vitscale.data.types import LostSample, RawSample, SampleFields, UnreadableSampleError
from vitscale.dist.seeding import CounterRng
from vitscale.train.losses import first_of_each, replacements

ORDER = Order(num_samples=96, seed=3, lanes=4, block=6, window=2)
SEED = 11


@dataclass
class Shelf:
    """Samples in memory. `lost` are damaged one by one; a read that touches `cut` loses all that it was to fetch."""

    lost: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)
    undecodable: set[int] = field(default_factory=set)
    reads: list[range] = field(default_factory=list)

    def scan(self, first: int, stop: int, *, epoch: int) -> Iterator[RawSample | LostSample]:
        ids = range(first, stop)
        self.reads.append(ids)
        for i in ids:
            if i in self.lost or self.cut & set(ids):
                yield LostSample(sample_id=i, epoch=epoch, view=epoch, shard="a.tar", reason=f"sample {i} is damaged.")
            else:
                yield RawSample(sample_id=i, epoch=epoch, view=epoch, key=str(i), shard="a.tar", members={})

    def io_counters(self) -> Mapping[str, int]:
        return {}

    def transform(self, sample: RawSample, rng: CounterRng) -> SampleFields:
        if sample.sample_id in self.undecodable:
            raise UnreadableSampleError(f"sample {sample.sample_id} cannot be decoded.")
        return {"draw": rng.uniform(), "view": sample.view}


def maker(shelf: Shelf, *, replaced_before: Mapping[tuple[int, int], int] | None = None, order: Order = ORDER) -> RowMaker:
    return RowMaker(shelf, order=order, seed=SEED, replaced_before=replaced_before or {})


def rows(
    shelf: Shelf, batches: range, *, order: Order = ORDER, replaced_before: Mapping[tuple[int, int], int] | None = None, slices: int = 1
) -> list[Row]:
    """The rows of whole batches of 16, made by `slices` readers that know nothing of each other."""
    made: dict[int, list[Row]] = {}
    for number in range(slices):
        reader, row_maker = LaneReader(shelf, order=order), maker(shelf, replaced_before=replaced_before, order=order)
        part = BatchSlice(start=16 * number // slices, stop=16 * (number + 1) // slices)
        for batch in batches:
            consumed = 16 * batch
            for place, sample in enumerate(reader.read(consumed, global_batch=16, batch_slice=part), start=part.start):

                def window(consumed: int = consumed, place: int = place) -> Window:
                    return order.window_at(consumed, global_batch=16, position=place)

                made.setdefault(batch, []).append(row_maker.row(sample, transform=shelf.transform, window=window))
        reader.close()
    return [row for batch in batches for row in made[batch]]


def lost_of(found: list[Row]) -> dict[tuple[int, int], int | None]:
    return {(row.lost.view, row.lost.sample_id): row.lost.replaced_by for row in found if row.lost is not None}


def window_of(sample_id: int, *, epoch: int = 0, order: Order = ORDER) -> Window:
    windows = [Window(lane=lane, epoch=epoch, index=index) for lane in range(order.lanes) for index in range(3)]
    return next(window for window in windows if sample_id in order.window_ids(window))


def lost_sample(sample_id: int, *, epoch: int = 0) -> LostSample:
    return LostSample(sample_id=sample_id, epoch=epoch, view=epoch, shard="a.tar", reason="Gone.")


def replacement_of(sample_id: int, shelf: Shelf, *, row_maker: RowMaker | None = None) -> Row:
    return (row_maker or maker(shelf)).row(lost_sample(sample_id), transform=shelf.transform, window=lambda: window_of(sample_id))


def test_what_can_be_read_is_taken_as_it_is_and_reads_nothing() -> None:
    shelf = Shelf()
    sample = next(shelf.scan(5, 6, epoch=2))
    assert isinstance(sample, RawSample)
    row = maker(shelf).row(sample, transform=shelf.transform, window=lambda: pytest.fail("not asked for"))
    assert (row.sample, row.lost) == (sample, None)
    assert row.fields["draw"] == CounterRng(SEED, 2, 5, "transform").uniform()
    assert len(shelf.reads) == 1


def test_a_lost_sample_is_replaced_by_one_of_its_window_which_is_seen_in_its_place() -> None:
    shelf = Shelf(lost={40})
    row = replacement_of(40, shelf)
    assert row.sample.sample_id in set(ORDER.window_ids(window_of(40)).tolist()) - {40}
    assert row.lost == replace(lost_sample(40), replaced_by=row.sample.sample_id)
    assert row.fields["draw"] == CounterRng(SEED, 0, 40, "transform").uniform(), "drawn for the one that is lost"


def test_the_choice_depends_on_seed_epoch_and_sample() -> None:
    taken = {lost: replacement_of(lost, Shelf(lost={lost})).sample.sample_id for lost in range(96)}
    assert len(set(taken.values())) > 40
    shelf = Shelf()
    other = RowMaker(shelf, order=ORDER, seed=SEED + 1, replaced_before={})
    changed = [replacement_of(lost, shelf, row_maker=other).sample.sample_id != taken[lost] for lost in range(96)]
    assert sum(changed) > 60


def test_candidates_that_are_lost_or_cannot_be_decoded_are_passed_over() -> None:
    first = replacement_of(40, Shelf(lost={40})).sample.sample_id
    second = replacement_of(40, Shelf(lost={40, first})).sample.sample_id
    assert second != first
    shelf = Shelf(lost={40}, undecodable={first})
    assert replacement_of(40, shelf).sample.sample_id == second
    assert second in set(ORDER.window_ids(window_of(40)).tolist()), "the same window while it has any"


def test_where_a_whole_window_is_lost_the_next_of_the_lane_helps() -> None:
    window = window_of(40)
    row = replacement_of(40, Shelf(lost=set(ORDER.window_ids(window).tolist())))
    assert row.sample.sample_id in ORDER.window_ids(ORDER.window_after(window))


def test_where_nothing_is_left_the_loss_ends_the_run_after_a_bounded_search() -> None:
    shelf = Shelf(lost=set(range(96)))
    with pytest.raises(DataError, match=r"^Gone\. No readable sample was found to take its place in the 8 windows"):
        replacement_of(40, shelf)
    assert len(shelf.reads) == len(set(shelf.reads)) <= 8 * 3, "no run is read twice"


def test_a_sample_is_never_its_own_replacement() -> None:
    shelf = Shelf(undecodable=set(range(96)) - {40})
    with pytest.raises(DataError, match="No readable sample"):
        replacement_of(40, shelf)


def test_a_run_is_lost_as_a_whole_so_what_a_reader_has_come_across_makes_no_difference() -> None:
    ids = ORDER.window_ids(window_of(40)).tolist()
    run = next(run for run in runs_of(ORDER.window_ids(window_of(40))) if 40 in run)
    shelf = Shelf(cut={run.stop - 1})  # read one by one, all of the run but its last could be had
    found = rows(shelf, range(0, 6))
    assert lost_of(found).keys() == {(0, i) for i in run}
    assert set(lost_of(found).values()) <= set(ids) - set(run)
    for slices in (2, 4, 8, 16):
        assert [(row.sample, row.fields, row.lost) for row in rows(shelf, range(0, 6), slices=slices)] == [
            (row.sample, row.fields, row.lost) for row in found
        ]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("slices", [2, 5, 16])
def test_any_readers_replace_alike(repeats: int, slices: int) -> None:
    order = replace(ORDER, repeats=repeats)
    shelf = Shelf(lost={3, 40, 41, 77}, cut={60}, undecodable={10, 11, 12, 50})
    found = rows(shelf, range(0, 19), order=order)  # epoch 0 and what follows
    assert lost_of(found).keys() >= {(0, 40), (0, 60), (0, 10)}
    assert {row.lost.view for row in found if row.lost and row.lost.sample_id == 40 and row.lost.epoch == 0} == set(range(repeats))
    assert rows(shelf, range(0, 19), order=order, slices=slices) == found


def test_a_replay_replaces_again_though_all_can_be_read_by_now() -> None:
    found = rows(Shelf(lost={3, 40, 41, 77}, cut={60}), range(0, 14))
    again = rows(Shelf(), range(0, 14), replaced_before=lost_of(found), slices=4)  # type: ignore[arg-type]
    assert [(row.sample.sample_id, row.fields) for row in again] == [(row.sample.sample_id, row.fields) for row in found]
    assert lost_of(again) == lost_of(found)
    assert all("replaced again" in row.lost.reason for row in again if row.lost is not None)


def test_a_view_that_cannot_be_decoded_is_replaced_alone_also_in_a_replay() -> None:
    order, shelf = replace(ORDER, repeats=3), Shelf()

    def transform(sample: RawSample, rng: CounterRng) -> SampleFields:
        if (sample.sample_id, sample.view) == (40, 1):  # cut short in the part that this view's crop shows
            raise UnreadableSampleError("cannot be decoded")
        return shelf_transform(sample, rng)

    shelf_transform, shelf.transform = shelf.transform, transform  # type: ignore[method-assign]
    found = rows(shelf, range(0, 19), order=order)
    lost = [row.lost for row in found if row.lost is not None]
    assert [(sample.sample_id, sample.view) for sample in lost] == [(40, 1)]
    assert rows(shelf, range(0, 19), order=order, slices=16) == found
    replaced_before = replacements(first_of_each(lost))
    again = rows(shelf, range(0, 19), order=order, replaced_before=replaced_before)
    assert [(row.sample, row.fields) for row in again] == [(row.sample, row.fields) for row in found]


def test_where_a_recorded_replacement_is_lost_too_another_is_found() -> None:
    shelf = Shelf(lost={7})
    row = replacement_of(40, shelf, row_maker=maker(shelf, replaced_before={(0, 40): 7}))
    assert row.sample.sample_id == replacement_of(40, Shelf()).sample.sample_id != 7


def test_another_epoch_is_another_loss() -> None:
    shelf = Shelf()
    sample = next(shelf.scan(40, 41, epoch=1))
    row = maker(shelf, replaced_before={(0, 40): 7}).row(sample, transform=shelf.transform, window=lambda: window_of(40, epoch=1))
    assert (row.sample, row.lost) == (sample, None)


def test_what_the_transform_says_of_the_data_set_as_a_whole_is_not_hidden() -> None:
    def transform(sample: RawSample, rng: CounterRng) -> SampleFields:  # noqa: ARG001
        raise DataError("the label of every sample is missing")

    with pytest.raises(DataError, match="every sample"):
        maker(Shelf()).row(next(Shelf().scan(5, 6, epoch=0)), transform=transform, window=lambda: window_of(5))
