"""The sample log: a line per step, readable while the run goes on, nothing without a path."""

import json
from pathlib import Path

import torch

from vitscale.train.sample_log import SampleLog


def test_lines_are_there_before_close(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "rank-00000.jsonl"
    log = SampleLog(path)
    log.write(1, torch.tensor([3, 1]))
    log.write(2, torch.tensor([2, 0]))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1, "ids": [3, 1]}, {"step": 2, "ids": [2, 0]}]
    log.close()


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    SampleLog(None).write(1, torch.tensor([1]))
    assert list(tmp_path.iterdir()) == []
