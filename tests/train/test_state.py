"""Host state: what a checkpoint needs beside tensors, and refusing one of another data set."""

import pytest

from vitscale.config import CheckpointError
from vitscale.train.state import TrainState, host_state, last_step, read_host_state

DATA = {"manifest_sha256": "ab", "order": {"lanes": 8, "block": 64}}


def test_round_trip() -> None:
    state = TrainState().advance(128).advance(64)
    assert state == TrainState(step=2, samples=192)
    saved = host_state(state, seed=3, data=DATA, lost=[{"sample_id": 7}])
    assert saved["lost"] == [{"sample_id": 7}]
    assert saved["cursor"]["consumed"] == 192
    assert saved["rng"]["seed"] == 3
    assert read_host_state(saved, data=DATA, where="here") == state


def test_another_data_set_is_refused_by_name() -> None:
    saved = host_state(TrainState(), seed=0, data=DATA, lost=[])
    with pytest.raises(CheckpointError, match="manifest_sha256 was 'ab' and is 'cd'"):
        read_host_state(saved, data={**DATA, "manifest_sha256": "cd"}, where="here")


@pytest.mark.parametrize(("step", "samples", "last"), [(0, 0, 6), (3, 48, 6), (12, 48, 15), (6, 96, 6), (7, 112, 7), (5, 95, 5)])
def test_a_run_ends_when_no_whole_batch_is_left(step: int, samples: int, last: int) -> None:
    assert last_step(TrainState(step=step, samples=samples), num_samples=96, global_batch=16) == last
