"""Events on the console and in the run's ledger."""

import json
from pathlib import Path

import pytest

from vitscale_launch.ledger import LaunchLedger


def test_an_event_is_told_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start"}\n')
    ledger = LaunchLedger(path)
    ledger.event("restart", "rank 1 died", rank=1, trace=None)
    ledger.record("gave_up", "three times")
    first, second = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert first.pop("time") <= second.pop("time")
    assert first == {"event": "restart", "message": "rank 1 died", "rank": 1}
    assert second == {"event": "gave_up", "message": "three times"}
    assert capsys.readouterr().out == "rank 1 died\n"


def test_without_a_run_directory_an_event_is_only_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LaunchLedger(tmp_path / "missing" / "events.jsonl").event("restart", "rank 1 died")
    assert capsys.readouterr().out == "rank 1 died\n"
    assert list(tmp_path.iterdir()) == []
