"""How far a run has come, as its directory tells."""

import json
from pathlib import Path

import pytest

from tests.train.tiny_run import tiny_config
from vitscale.api import train
from vitscale.config import StopRequested
from vitscale.train.progress import Progress, read_progress


def test_the_newest_committed_step_and_the_last_logged_one(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert read_progress(config.run_dir) == Progress(committed=0, reached=0)
    with pytest.raises(StopRequested):
        train(config, stop_at_step=3)
    checkpoints = config.run_dir / "checkpoints"
    assert read_progress(config.run_dir) == Progress(committed=3, reached=3)
    (checkpoints / "step-00000009.tmp").mkdir()
    (checkpoints / "step-00000008").mkdir()
    assert read_progress(config.run_dir).committed == 3, "only what is committed counts"
    with (config.run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 1.0}) + "\n" + '{"step": 6, "lo')
    assert read_progress(config.run_dir).reached == 5
    (config.run_dir / "metrics.jsonl").write_text('"x"\n' * 100_000)
    assert read_progress(config.run_dir).reached == 0
