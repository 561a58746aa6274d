"""environment.json and the per-rank log."""

import json
import logging
from pathlib import Path

from vitscale.train.environment import environment_json, start_rank_log, stop_rank_log


def test_environment_names_versions_and_command() -> None:
    record = json.loads(environment_json())
    assert record["versions"]["torch"].startswith("2.")
    assert record["command"]
    assert set(record) >= {"host", "python", "cpu_cores", "git_commit", "time"}


def test_log_records_become_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "rank-00000.jsonl"
    handler = start_rank_log(path)
    try:
        logging.getLogger("vitscale.test").info("hello %s", "there")
        try:
            raise ValueError("inside")
        except ValueError:
            logging.getLogger("some_library").exception("it failed")
    finally:
        stop_rank_log(handler)
    logging.getLogger("vitscale.test").warning("after the end")
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["message"] == "hello there"
    assert first["level"] == "INFO"
    assert "ValueError: inside" in second["trace"]
