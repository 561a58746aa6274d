"""Host state: what a checkpoint needs beside tensors, and refusing one of another data set."""

from pathlib import Path

import pytest

from tests.train.tiny_run import tiny_config
from vitscale.checkpoint.config_hash import config_hash
from vitscale.config import CheckpointError
from vitscale.train.state import TrainState, host_state, last_step, read_host_state

DATA = {"manifest_sha256": "ab", "order": {"lanes": 8, "block": 64}}


def test_round_trip(tmp_path: Path) -> None:
    state = TrainState().advance(32).advance(16)
    assert state == TrainState(step=2, samples=48)
    config = tiny_config(tmp_path, "seed=3")
    saved = host_state(state, config=config, data=DATA, lost=[{"sample_id": 7}], skipped_in_a_row=2)
    assert saved["lost"] == [{"sample_id": 7}]
    assert saved["skipped_in_a_row"] == 2
    assert saved["cursor"]["consumed"] == 48
    assert saved["schedule"] == {"kind": "cosine", "samples": 48, "total_samples": 96, "lr": pytest.approx(0.00853553)}
    assert saved["config_hash"] == config_hash(config) != config_hash(tiny_config(tmp_path, "seed=4"))
    assert saved["rng"]["seed"] == 3
    assert read_host_state(saved, data=DATA, where="here") == state


def test_another_data_set_is_refused_by_name(tmp_path: Path) -> None:
    saved = host_state(TrainState(), config=tiny_config(tmp_path), data=DATA, lost=[], skipped_in_a_row=0)
    with pytest.raises(CheckpointError, match="manifest_sha256 was 'ab' and is 'cd'"):
        read_host_state(saved, data={**DATA, "manifest_sha256": "cd"}, where="here")


@pytest.mark.parametrize(("step", "samples", "last"), [(0, 0, 6), (3, 48, 6), (12, 48, 15), (6, 96, 6), (7, 112, 7), (5, 95, 5)])
def test_a_run_ends_when_no_whole_batch_is_left(step: int, samples: int, last: int) -> None:
    assert last_step(TrainState(step=step, samples=samples), num_samples=96, global_batch=16) == last
