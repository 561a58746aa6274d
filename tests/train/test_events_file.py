"""Reading events.jsonl: broken lines, what is no run, and following a file that grows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitscale.config import UsageError
from vitscale.train.events_file import follow_events, read_events


def line(number: int) -> bytes:
    return json.dumps({"time": float(number), "event": f"kind_{number}"}).encode() + b"\n"


def test_torn_lines_are_counted_and_what_was_appended_to_one_is_read(tmp_path: Path) -> None:
    content = line(1) + b'{"time": 1.5, "event": "che' + line(2) + b"\x00\x00\n[1]\n" + b'{"time": 3'
    (tmp_path / "events.jsonl").write_bytes(content)
    found = read_events(tmp_path)
    assert [event["event"] for event in found.events] == ["kind_1", "kind_2"]
    assert found.num_torn == 4
    assert content[found.num_bytes :] == b'{"time": 3'


def test_a_file_is_followed_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1) + line(2)[:10])
    parts = [line(2)[10:], b"", line(3) + line(4)[:-1], b"\n"]

    def write_more() -> None:
        if not parts:
            raise KeyboardInterrupt
        with open(path, "ab") as file:
            file.write(parts.pop(0))

    seen: list[str] = []

    def follow() -> None:
        for event in follow_events(tmp_path, after=read_events(tmp_path).num_bytes, wait=write_more):
            seen.append(event["event"])

    with pytest.raises(KeyboardInterrupt):
        follow()
    assert seen == ["kind_2", "kind_3", "kind_4"]


def test_a_file_that_vanishes_ends_the_following(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1))
    events = follow_events(tmp_path, after=0, wait=path.unlink)
    assert next(events)["event"] == "kind_1"
    with pytest.raises(UsageError, match="no run directory"):
        next(events)


@pytest.mark.parametrize("make", [lambda _: None, lambda path: path.write_text("a file"), lambda path: path.mkdir()])
def test_what_is_no_run_is_a_usage_error(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "run")
    with pytest.raises(UsageError, match="give the folder of a run that was started"):
        read_events(tmp_path / "run")


def test_an_unreadable_ledger_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read_events(tmp_path)
