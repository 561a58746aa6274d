"""Saving at once: the path of what was committed, or an error and nothing changed."""

from pathlib import Path

import pytest

from tests.checkpoint.simulation import FakeStore, make_tensors
from vitscale.checkpoint.discover import find_newest
from vitscale.checkpoint.save import save_checkpoint
from vitscale.config import CheckpointError


def test_it_gives_the_path_of_what_was_committed_and_deletes_nothing(tmp_path: Path) -> None:
    store = FakeStore(make_tensors(seed=1), rank=0, world_size=1, zero_stage=1)
    paths = [save_checkpoint(store, folder=tmp_path, step=step, state={}, config_text="") for step in (1, 2)]
    assert sorted(tmp_path.iterdir()) == paths
    assert find_newest(tmp_path).checkpoint == paths[1]


def test_what_fails_is_raised_and_leaves_nothing(tmp_path: Path) -> None:
    store = FakeStore(make_tensors(seed=1), rank=0, world_size=2, zero_stage=3)  # one of two ranks, alone
    with pytest.raises(CheckpointError, match=r"step 1 could not be saved: .*elements \[8, 15\) of backbone\.a"):
        save_checkpoint(store, folder=tmp_path, step=1, state={}, config_text="")
    assert list(tmp_path.iterdir()) == []
