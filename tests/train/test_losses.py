"""The ledger of lost samples, alone and in whole runs: what is damaged is replaced, told, remembered and held against the budget."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.packed import pack_images
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, events, losses, sample_ids, tiny_config
from vitscale import api
from vitscale.config import DataError, StopRequested
from vitscale.data.dataset import open_dataset
from vitscale.data.types import LostSample
from vitscale.run_config import RunConfig
from vitscale.train.losses import Losses, LossLedger, first_of_each, read_ledger, replacements

FORGIVING = "data.max_lost_fraction=0.5"


def lost(sample_id: int, *, epoch: int = 0, replaced_by: int = 1, shard: str = "a.tar") -> LostSample:
    return LostSample(sample_id=sample_id, epoch=epoch, view=epoch, shard=shard, reason=f"{shard} is damaged.", replaced_by=replaced_by)


def flip(root: Path, *, sample_id: int) -> None:
    """Flip a bit of the payload of one of the 96 samples, 40 to a shard; flipping it again mends it."""
    dataset = open_dataset(root / "shards")
    span = dataset.locate(sample_id)
    path = root / "shards" / span.shard.name
    raw = bytearray(path.read_bytes())
    raw[int(dataset.read_index(span.shard)["offset"][span.first]) + 600] ^= 4
    path.write_bytes(raw)


def ledger(path: Path, *, saved: Losses | None = None, written: Losses | None = None) -> LossLedger:
    return LossLedger(path / "rank-00000.jsonl", saved=saved or {}, written=written or {})


def names(entries: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(entry["view"], entry["sample_id"]) for entry in entries]


def test_what_is_recorded_is_on_disk_before_it_is_shared(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    losses = ledger(folder, saved=first_of_each([lost(3)]))
    losses.record([])
    assert not folder.exists(), "nothing lost, nothing written"
    losses.record([lost(3), lost(7), lost(7, epoch=1)])
    assert names(read_ledger(folder)) == [(0, 7), (1, 7)], "3 is in the checkpoint"
    assert losses.take_unshared() == [], "the batch they are in is still to be trained on"
    losses.batch_done()
    shared = losses.take_unshared()
    assert losses.take_unshared() == []
    assert losses.merge([*reversed(shared), *shared, asdict(lost(4))]) == [lost(4), lost(7), lost(7, epoch=1)]
    assert losses.count == 4
    assert names(losses.save(2)) == [(0, 3), (0, 4), (0, 7), (1, 7)]


def test_saves_of_whose_end_a_rank_hears_nothing_leave_nothing_behind(tmp_path: Path) -> None:
    losses = ledger(tmp_path)
    for step in range(1, 5):
        losses.save(step)
        losses.merge([asdict(lost(step))])
    assert len(losses._offered) == 2
    losses.save_ended(3, is_committed=True)
    losses.save_ended(4, is_committed=True)
    losses.forget_unsaved()
    assert names(read_ledger(tmp_path)) == [(0, 1), (0, 2), (0, 3)], "4 was lost after the save of step 4"


def test_what_an_earlier_attempt_wrote_is_counted_and_told_when_it_is_lost_again_as_it_was_written(tmp_path: Path) -> None:
    ledger(tmp_path).record([lost(5, replaced_by=8)])
    losses = ledger(tmp_path, written=first_of_each(LostSample(**entry) for entry in read_ledger(tmp_path)))
    assert losses.count == 0, "its step is still to be done again"
    losses.record([replace(lost(5, replaced_by=8), reason="replaced again")])
    losses.batch_done()
    assert losses.merge(losses.take_unshared()) == [lost(5, replaced_by=8)]
    assert losses.count == 1
    assert names(read_ledger(tmp_path)) == [(0, 5)], "not written twice"


def test_a_torn_line_is_no_entry_and_takes_none_with_it(tmp_path: Path) -> None:
    ledger(tmp_path).record([lost(3, replaced_by=4)])
    with open(tmp_path / "rank-00000.jsonl", "a") as file:
        file.write('{"sample_id": 9, "epo')
    assert names(read_ledger(tmp_path)) == [(0, 3)]
    ledger(tmp_path).record([lost(5), lost(6)])
    assert names(read_ledger(tmp_path)) == [(0, 3), (0, 5), (0, 6)]


def test_the_first_of_several_entries_counts() -> None:
    assert replacements(first_of_each([lost(3, replaced_by=8), lost(3, replaced_by=4), lost(5)])) == {(0, 3): 8, (0, 5): 1}


@pytest.mark.parametrize(
    ("count", "samples", "epoch_samples", "stops"), [(1, 50, 1000, False), (2, 50, 1000, True), (2, 2000, 1000, False), (1, 50, None, True)]
)
def test_the_budget_counts_against_an_epoch_or_what_was_consumed(
    tmp_path: Path, count: int, samples: int, epoch_samples: int | None, stops: bool
) -> None:
    losses = ledger(tmp_path, saved=first_of_each(lost(i, shard=f"{i}.tar") for i in range(count)))
    message = losses.exceeds(max_fraction=0.001, samples=samples, epoch_samples=epoch_samples)
    assert (message is not None) == stops
    if message is not None:
        assert f"{count} samples were lost, more than data.max_lost_fraction 0.001" in message
        assert "0.tar is damaged" in message
        assert "\n" not in message


def test_what_no_checkpoint_knows_can_be_forgotten(tmp_path: Path) -> None:
    losses = ledger(tmp_path)
    losses.record([lost(3)])
    losses.batch_done()
    losses.merge(losses.take_unshared())
    losses.save(2)
    losses.save_ended(2, is_committed=True)
    losses.record([lost(5)])
    losses.batch_done()
    losses.merge(losses.take_unshared())
    losses.save(4)
    losses.save_ended(4, is_committed=False)
    losses.save(6)  # still under way
    LossLedger(tmp_path / "rank-00001.jsonl", saved={}, written={}).record([lost(6)])
    losses.forget_unsaved()
    assert names(read_ledger(tmp_path)) == [(0, 3)], "an older checkpoint may have to be gone back to"


def test_an_unwritable_ledger_is_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("in the way")
    with pytest.raises(DataError, match="the ledger of lost samples cannot be written: ") as caught:
        ledger(tmp_path / "ledger").record([lost(1)])
    assert "\n" not in str(caught.value)


def test_a_damaged_sample_is_replaced_told_and_saved(tmp_path: Path) -> None:
    clean = tiny_config(tmp_path, "name=clean")
    api.train(clean)
    flip(tmp_path, sample_id=17)
    damaged = tiny_config(tmp_path, "name=damaged", FORGIVING)
    api.train(damaged)
    (event,) = events(damaged.run_dir, "lost_samples")
    ((epoch, sample_id, replaced_by),) = event["samples"]
    assert (epoch, sample_id, event["shard"], event["count"]) == (0, 17, "train-00000.tar", 1)
    different = differences(clean, damaged)
    assert different == [(17, replaced_by)], "everything else stayed in its place"
    metrics = [json.loads(line) for line in (damaged.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["lost_samples"] == 1
    state = json.loads((damaged.run_dir / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert [(entry["sample_id"], entry["replaced_by"]) for entry in state["lost"]] == different


def differences(one: RunConfig, other: RunConfig) -> list[tuple[int, int]]:
    """(sample id here, sample id there) wherever two runs consumed another sample at a place."""
    ours, theirs = sample_ids(one.run_dir), sample_ids(other.run_dir)
    assert ours.keys() == theirs.keys()
    return [(a, b) for step in sorted(ours) for a, b in zip(ours[step], theirs[step], strict=True) if a != b]


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_replay_makes_the_same_replacements_after_the_shards_were_mended(tmp_path: Path, repeats: int) -> None:
    """The newer checkpoints are lost, so that steps are done again whose losses only the ledger's files know."""
    config = tiny_config(tmp_path, FORGIVING, f"data.repeats={repeats}")
    damaged = range(0, 96, 5)
    for sample_id in damaged:
        flip(tmp_path, sample_id=sample_id)
    api.train(config)
    ids, weights = sample_ids(config.run_dir), checkpoint_tensors(config.run_dir, step=6)
    told = [event["samples"] for event in events(config.run_dir, "lost_samples") if event["step"] > 2]
    for step in (4, 6):
        shutil.rmtree(config.run_dir / f"checkpoints/step-{step:08d}")
    for sample_id in damaged:
        flip(tmp_path, sample_id=sample_id)
    api.train(config)
    assert told
    assert sample_ids(config.run_dir) == ids
    assert [event["samples"] for event in events(config.run_dir, "lost_samples") if event["step"] > 2] == [*told, *told]
    assert_equal_tensors(checkpoint_tensors(config.run_dir, step=6), weights)


def test_too_many_losses_stop_the_run_with_nothing_of_them_saved(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "train.log_every_steps=2")
    flip(tmp_path, sample_id=17)
    with pytest.raises(DataError, match=r"1 samples were lost, more than data.max_lost_fraction 0.001 of 96 .*sample 17"):
        api.train(config)
    flip(tmp_path, sample_id=17)
    api.train(config)
    assert sorted(losses(config.run_dir)) == [2, 4, 6]


def test_a_run_with_losses_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "name=whole", FORGIVING)
    flip(tmp_path, sample_id=17)
    (tmp_path / "shards" / "train-00002.tar").chmod(0o600)
    api.train(config)
    parts = tiny_config(tmp_path, "name=parts", FORGIVING)
    for stop in (1, 2, 5):
        with pytest.raises(StopRequested):
            api.train(parts, stop_at_step=stop)
    api.train(parts)
    assert sample_ids(parts.run_dir) == sample_ids(config.run_dir)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=6), checkpoint_tensors(config.run_dir, step=6))


def test_a_stop_right_before_a_loss_does_not_keep_it_from_being_told(tmp_path: Path) -> None:
    """The batch that holds it was fetched, and its loss written, before the stop."""
    clean = tiny_config(tmp_path, "name=clean")
    api.train(clean)
    sample_id = sample_ids(clean.run_dir)[3][0]
    flip(tmp_path, sample_id=sample_id)
    config = tiny_config(tmp_path, "name=stopped", FORGIVING)
    with pytest.raises(StopRequested):
        api.train(config, stop_at_step=2)
    assert not events(config.run_dir, "lost_samples")
    api.train(config)
    (event,) = events(config.run_dir, "lost_samples")
    assert (event["step"], event["samples"][0][1]) == (3, sample_id)


@pytest.mark.parametrize("change", ["nothing", "seed", "data"])
def test_a_ledger_of_another_run_in_the_same_place_changes_nothing(tmp_path: Path, change: str) -> None:
    config = tiny_config(tmp_path, "name=again", FORGIVING)
    damaged = [17, 60, 90]
    for sample_id in damaged:
        flip(tmp_path, sample_id=sample_id)
    api.train(config)
    for sample_id in damaged:
        flip(tmp_path, sample_id=sample_id)
    other = {"nothing": [], "seed": ["seed=5"], "data": [f"data.path={pack_other(tmp_path)}"]}[change]
    if change == "data":  # goes on from the checkpoint
        api.train(tiny_config(tmp_path, "name=again", "train.num_samples=160", *other), allow_change=["data.path", "train.num_samples"])
        by_step = sample_ids(config.run_dir)
        assert {sample_id for step in range(7, 11) for sample_id in by_step[step]} <= set(range(40))
        return
    shutil.rmtree(config.run_dir / "checkpoints")  # as the message about damaged checkpoints advises to start over
    api.train(tiny_config(tmp_path, "name=again", *other))
    fresh = tiny_config(tmp_path, "name=fresh", *other)
    api.train(fresh)
    assert sample_ids(config.run_dir) == sample_ids(fresh.run_dir)


def pack_other(root: Path) -> Path:
    folder = root / "other"
    folder.mkdir()
    pack_images(folder, num_samples=40, samples_per_shard=40, size=8)
    return folder
