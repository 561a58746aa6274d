"""Stops asked for through a file: seen once a second, honoured once, and never by a start that they were not meant for."""

from pathlib import Path

import pytest

from vitscale.train.stop_request import STOP_REQUEST, RequestFile, ask_to_stop, withdraw_request


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_request_is_seen_within_a_second_and_stays_seen(tmp_path: Path) -> None:
    clock = Clock()
    requests = RequestFile(tmp_path, clock=clock)
    assert not requests.is_asked()
    ask_to_stop(tmp_path, reason="SIGTERM")
    assert not requests.is_asked(), "not at every step"
    clock.now += 1.0
    assert requests.is_asked()
    assert requests.reason == "SIGTERM"
    (tmp_path / STOP_REQUEST).unlink()
    assert requests.is_asked()


def test_a_clock_that_somebody_sets_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: -1e9)
    requests = RequestFile(tmp_path, seconds_between_looks=0.0)
    ask_to_stop(tmp_path, reason="x")
    assert requests.is_asked()


def test_what_was_honoured_does_not_stop_the_next_start(tmp_path: Path) -> None:
    requests = RequestFile(tmp_path, seconds_between_looks=0.0)
    ask_to_stop(tmp_path, reason="x")
    assert requests.is_asked()
    requests.close()
    assert list(tmp_path.iterdir()) == []
    assert not RequestFile(tmp_path, seconds_between_looks=0.0).is_asked()


@pytest.mark.parametrize(
    ("meant_for", "starting", "stops"), [("a", "a", True), ("a", "b", False), ("a", None, False), (None, None, False), (None, "a", False)]
)
def test_a_request_from_before_the_start_counts_only_for_its_own_launch(
    tmp_path: Path, meant_for: str | None, starting: str | None, stops: bool
) -> None:
    ask_to_stop(tmp_path, reason="x", launch=meant_for)
    requests = RequestFile(tmp_path, launch=starting, seconds_between_looks=0.0)
    assert requests.is_asked() is stops
    assert (tmp_path / STOP_REQUEST).exists() is stops


@pytest.mark.parametrize("text", ["", "{", "[1]", "stop please"])
def test_a_file_made_by_hand_is_a_request_too(tmp_path: Path, text: str) -> None:
    requests = RequestFile(tmp_path, seconds_between_looks=0.0)
    (tmp_path / STOP_REQUEST).write_text(text)
    assert requests.is_asked()
    assert requests.reason == "asked by a file in the run directory"


def test_a_directory_that_vanished_asks_for_nothing(tmp_path: Path) -> None:
    requests = RequestFile(tmp_path / "missing", seconds_between_looks=0.0)
    assert not requests.is_asked()
    requests.close()
    withdraw_request(tmp_path / "missing")


def test_who_lost_the_directory_stops_and_leaves_the_requests_to_the_new_holder(tmp_path: Path) -> None:
    lost = False
    requests = RequestFile(tmp_path, seconds_between_looks=0.0, is_shut_out=lambda: lost)
    assert not requests.is_asked()
    lost = True
    assert requests.is_asked()
    assert requests.reason == "another process group has taken over the run directory"
    ask_to_stop(tmp_path, reason="for the new holder")
    requests.close()
    assert (tmp_path / STOP_REQUEST).exists()
