"""The sample log: a line per step, readable while the run goes on, nothing without a path, one paragraph when the disk is full."""

import json
import os
from pathlib import Path

import pytest
import torch

from vitscale.config import ConfigError
from vitscale.train.sample_log import SampleLog


def test_lines_are_there_before_close(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "rank-00000.jsonl"
    log = SampleLog(path)
    log.write(1, torch.tensor([3, 1]))
    log.write(2, torch.tensor([2, 0]))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1, "ids": [3, 1]}, {"step": 2, "ids": [2, 0]}]
    log.close()


def test_a_resumed_run_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.jsonl"
    for step in (1, 2):
        log = SampleLog(path)
        log.write(step, torch.tensor([step]))
        log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    SampleLog(None).write(1, torch.tensor([1]))
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_takes_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    path = tmp_path / "rank-00000.jsonl"
    SampleLog(path).write(1, torch.arange(20))
    assert json.loads(path.read_text()) == {"step": 1, "ids": list(range(20))}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_ends_in_one_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.jsonl"
    path.symlink_to("/dev/full")
    log = SampleLog(path)
    with pytest.raises(ConfigError, match=r"rank-00000\.jsonl cannot be written: No space left on device") as caught:
        log.write(1, torch.tensor([1]))
    assert caught.value.scope == "rank", "another rank's disk may have room: the one that fails must say so itself"
    log.close()  # must not raise again over the error that the user shall read


def test_a_folder_that_cannot_be_created_ends_in_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("in the way")
    with pytest.raises(ConfigError, match=r"data\.log_samples: .* cannot be written: .*set data\.log_samples to false"):
        SampleLog(tmp_path / "samples" / "rank-00000.jsonl")
