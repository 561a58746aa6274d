"""The public API: a run is stopped by a signal and goes on as if nothing had been, also when one of two ranks got it.

Run as a script, it is one of the ranks.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.launcher import run_ranks
from tests.train.tiny_run import (
    assert_equal_tensors,
    checkpoint_tensors,
    events,
    losses,
    pack_tiny,
    read_lines,
    sample_ids,
    tiny_config,
    tiny_values,
)
from vitscale import api
from vitscale.config import ConfigError, StopRequested, dump_yaml
from vitscale.run_config import RunConfig

LONG_RUN = ("name=long", "train.num_samples=1280", "checkpoint.every_steps=100000")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(dump_yaml(tiny_values(tmp_path)))
    return tmp_path / "run.yaml"


def test_a_configuration_is_loaded_with_overrides(path: Path, tmp_path: Path) -> None:
    assert api.load_config(path) == api.load_config(str(path)) == tiny_config(tmp_path)
    assert api.load_config(path, overrides=["optim.lr=0.5"]).optim.lr == 0.5
    with pytest.raises(ConfigError, match="2 problems"):
        api.load_config(path, overrides=["optim.lrr=1", "seed=many"])


def test_a_plan_is_made_for_any_number_of_processes(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert [api.plan(config, world_size=n).rank_batch for n in (1, 2, 4)] == [16, 8, 4]
    with pytest.raises(ConfigError, match="16 does not divide among 3 ranks; use 15 or 18"):
        api.plan(config, world_size=3)


def test_a_bug_is_in_the_log_of_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_run: object) -> None:
        raise ZeroDivisionError("in the loop")

    monkeypatch.setattr(api, "train_loop", broken)
    config = tiny_config(tmp_path)
    with pytest.raises(ZeroDivisionError):
        api.train(config)
    last = read_lines(config.run_dir / "logs" / "rank-00000.jsonl")[-1]
    assert "ZeroDivisionError: in the loop" in last["trace"]


def test_the_result_says_where_and_how_far_and_what_was_measured(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, f"evals.test={{kind: classification, path: {tmp_path}/shards}}")
    result = api.train(config)
    assert (result.run_dir, result.step, result.samples) == (config.run_dir, 6, 96)
    assert result.values["loss"] == losses(config.run_dir)[6]
    assert api.evaluate(config) == {"test": {key: result.values[f"eval/test/{key}"] for key in ("top1", "top5", "num_samples")}}
    assert api.train(config) == result, "a finished run tells the same again"
    assert [event["step"] for event in events(config.run_dir, "finished")] == [6, 6]


def test_a_stop_is_in_the_ledger_with_its_step(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    for asked, message in ((4, "after step 4 of 6"), (3, "after step 4 of 6"), (5, "after step 5 of 6")):
        with pytest.raises(StopRequested, match=message):
            api.train(config, stop_at_step=asked)
    assert [(event["step"], event["exit_code"]) for event in events(config.run_dir, "ended")] == [(4, 75), (4, 75), (5, 75)]
    assert api.train(config, stop_at_step=6).step == 6, "the last step is the end, not a stop"


@pytest.mark.chaos
def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(tmp_path: Path) -> None:
    pack_tiny(tmp_path)
    stopped = run_ranks(Path(__file__), tmp_path, 1, "long", num_ranks=2)
    step = stopped[0][0]["step"]
    assert stopped == [[{"exit_code": 75, "step": step}]] * 2
    run_dir = tiny_config(tmp_path, *LONG_RUN).run_dir
    assert 3 < step < 80
    assert max(sample_ids(run_dir)) == step
    assert {len(batch) for batch in sample_ids(run_dir).values()} == {16}
    assert [folder.name for folder in (run_dir / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    whole = tiny_config(tmp_path, *LONG_RUN, "name=whole")
    finished = {"exit_code": 0, "step": 80}
    assert run_ranks(Path(__file__), tmp_path, "nobody", "long", "whole", num_ranks=2) == [[finished, finished]] * 2
    assert losses(run_dir) == losses(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(run_dir, step=80), checkpoint_tensors(whole.run_dir, step=80))


def main() -> list[dict[str, Any]]:
    """Train the named runs one after the other; the rank that is named gets SIGTERM after some steps of each."""
    root, receiver, *names = sys.argv[1:]
    return [train(tiny_config(Path(root), *LONG_RUN, f"name={name}"), receiver=receiver) for name in names]


def train(config: RunConfig, *, receiver: str) -> dict[str, Any]:
    if os.environ["RANK"] == receiver:
        threading.Thread(target=_signal_after_steps, args=(config.run_dir,), daemon=True).start()
    try:
        return {"exit_code": 0, "step": api.train(config).step}
    except StopRequested as stop:
        rank = int(os.environ["RANK"])
        last = read_lines(config.run_dir / "samples" / f"rank-{rank:05d}.jsonl")[-1]
        return {"exit_code": stop.exit_code, "step": last["step"]}


def _signal_after_steps(run_dir: Path) -> None:
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    print(json.dumps(main()))
