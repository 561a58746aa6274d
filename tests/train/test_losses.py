"""The ledger of lost samples, alone and in whole runs: what is damaged is replaced, told, remembered and held against the budget."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, events, losses, sample_ids, tiny_config
from vitscale import api
from vitscale.config import DataError, StopRequested
from vitscale.data.dataset import open_dataset
from vitscale.data.types import LostSample
from vitscale.run_config import RunConfig
from vitscale.train.losses import LossLedger, by_name, read_ledger, replacements

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


def test_what_is_recorded_is_on_disk_before_it_is_shared(tmp_path: Path) -> None:
    ledger = LossLedger(tmp_path / "ledger" / "rank-00000.jsonl", known=by_name([lost(3)]))
    ledger.record([])
    assert not (tmp_path / "ledger").exists(), "nothing lost, nothing written"
    ledger.record([lost(3), lost(7), lost(7, epoch=1)])
    entries = read_ledger(tmp_path / "ledger", saved=[])
    assert [(entry["epoch"], entry["sample_id"]) for entry in entries] == [(0, 7), (1, 7)], "3 was known"
    assert ledger.take_unshared() == [], "the batch they are in is still to be trained on"
    ledger.batch_done()
    shared = ledger.take_unshared()
    assert ledger.take_unshared() == []
    assert ledger.merge([*reversed(shared), *shared, asdict(lost(4))]) == [lost(4), lost(7), lost(7, epoch=1)]
    assert ledger.count == 4
    assert [entry["sample_id"] for entry in ledger.to_json()] == [3, 4, 7, 7]


def test_the_ledger_of_a_checkpoint_and_of_all_attempts_are_one_and_a_torn_line_is_no_entry(tmp_path: Path) -> None:
    LossLedger(tmp_path / "rank-00000.jsonl", known={}).record([lost(3, replaced_by=4)])
    LossLedger(tmp_path / "rank-00001.jsonl", known={}).record([lost(5)])
    with open(tmp_path / "rank-00001.jsonl", "a") as file:
        file.write('{"sample_id": 9, "epo')
    saved = LossLedger(tmp_path / "unused.jsonl", known=by_name([lost(3, replaced_by=8)])).to_json()
    named = by_name(LostSample(**entry) for entry in read_ledger(tmp_path, saved=saved))
    assert replacements(named) == {(0, 3): 8, (0, 5): 1}


@pytest.mark.parametrize(
    ("count", "samples", "num_samples", "stops"), [(1, 50, 1000, False), (2, 50, 1000, True), (2, 2000, 1000, False), (1, 50, None, True)]
)
def test_the_budget_counts_against_an_epoch_or_what_was_consumed(
    tmp_path: Path, count: int, samples: int, num_samples: int | None, stops: bool
) -> None:
    ledger = LossLedger(tmp_path / "rank-00000.jsonl", known=by_name(lost(i, shard=f"{i}.tar") for i in range(count)))
    if not stops:
        return ledger.check(max_fraction=0.001, samples=samples, num_samples=num_samples)
    with pytest.raises(DataError, match=rf"{count} samples were lost, more than data.max_lost_fraction 0.001 .* in 0.tar") as caught:
        ledger.check(max_fraction=0.001, samples=samples, num_samples=num_samples)
    assert "0.tar is damaged" in str(caught.value)


def test_an_unwritable_ledger_is_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("in the way")
    with pytest.raises(DataError, match="the ledger of lost samples cannot be written: ") as caught:
        LossLedger(tmp_path / "ledger" / "rank-00000.jsonl", known={}).record([lost(1)])
    assert "\n" not in str(caught.value)


def test_a_damaged_sample_is_replaced_told_and_saved(tmp_path: Path) -> None:
    clean = tiny_config(tmp_path, "name=clean")
    api.train(clean)
    flip(tmp_path, sample_id=17)
    damaged = tiny_config(tmp_path, "name=damaged", FORGIVING)
    api.train(damaged)
    (event,) = events(damaged.run_dir, "lost_sample")
    assert (event["sample_id"], event["shard"]) == (17, "train-00000.tar")
    different = differences(clean, damaged)
    assert different == [(17, event["replaced_by"])], "everything else stayed in its place"
    metrics = [json.loads(line) for line in (damaged.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["lost_samples"] == 1
    state = json.loads((damaged.run_dir / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert [(entry["sample_id"], entry["replaced_by"]) for entry in state["lost"]] == different


def differences(one: RunConfig, other: RunConfig) -> list[tuple[int, int]]:
    """(sample id here, sample id there) wherever two runs consumed another sample at a place."""
    ours, theirs = sample_ids(one.run_dir), sample_ids(other.run_dir)
    assert ours.keys() == theirs.keys()
    return [(a, b) for step in sorted(ours) for a, b in zip(ours[step], theirs[step], strict=True) if a != b]


@pytest.mark.parametrize("keep_files", [True, False])
def test_a_replay_makes_the_same_replacement_after_the_shard_was_mended(tmp_path: Path, keep_files: bool) -> None:
    """With `repeats` both views of a sample lie on either side of the stop; the second must be replaced like the first."""
    options = (FORGIVING, "data.repeats=6", "data.block=2", "data.window=1")
    clean = tiny_config(tmp_path, "name=clean", *options)
    api.train(clean)
    ids = sample_ids(clean.run_dir)
    flips = sorted(set(ids[4]) & set(ids[5]))
    assert flips
    for sample_id in flips:
        flip(tmp_path, sample_id=sample_id)
    whole = tiny_config(tmp_path, "name=whole", *options)
    api.train(whole)
    parts = tiny_config(tmp_path, "name=parts", *options)
    with pytest.raises(StopRequested):
        api.train(parts, stop_at_step=4)
    for sample_id in flips:
        flip(tmp_path, sample_id=sample_id)
    if not keep_files:  # the checkpoint knows them too
        for path in (parts.run_dir / "ledger").iterdir():
            path.unlink()
    api.train(parts)
    assert sample_ids(parts.run_dir) == sample_ids(whole.run_dir) != ids
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))


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
