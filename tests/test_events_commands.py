"""`vitscale events`: the tables of a run with several attempts, its options, and bad input with exit code and one paragraph."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.train.goodput_simulation import simulate
from vitscale.cli import app


def vitscale(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["events", *arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run directory with the events of several attempts, the last line torn."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    folder.mkdir()
    history = next(history for seed in range(100) if (history := simulate(seed, num_attempts=6)).totals()["lost_work"] > 50)
    lines = [json.dumps(record) for record in history.records]
    (folder / "events.jsonl").write_text("\n".join(lines) + '\n{"time": 1.0, "ev')
    return str(folder)


def test_the_tables_say_where_the_time_went_and_how_often_to_save(run: str) -> None:
    result = vitscale(run)
    assert result.exit_code == 0, result.output
    for text in (
        "goodput",
        "100.00%",
        "lost_work",
        "attempts 6",
        "restarts",
        "mean time between failures",
        "Young and Daly",
        "checkpoint.every_steps",
    ):
        assert text in result.output, text
    assert "note: 1 line of" in result.output


def test_events_are_listed_by_kind_and_number(run: str) -> None:
    def listed(*options: str) -> list[str]:
        return vitscale(run, *options).output.rsplit("\n\n", 1)[1].splitlines()

    assert len(listed("--tail", "4")) == 4
    assert all("time" not in line.split()[2:4] for line in listed("--tail", "10000"))
    assert {line.split()[3] for line in listed("--kind", "checkpoint", "--tail", "3")} == {"checkpoint"}
    assert any("seconds=" in line for line in listed("--kind", "time", "--tail", "1"))
    assert listed("--tail", "0") == []


def test_json_has_the_figures_and_the_events(run: str) -> None:
    values = json.loads(vitscale(run, "--json", "--tail", "2", "--kind", "restart").output)
    assert sum(values["shares"].values()) == pytest.approx(1.0)
    assert [event["event"] for event in values["events"]] == ["restart", "restart"]
    assert values["counts"]["attempts"] == 6


def test_the_time_stopped_counts_on_request(run: str) -> None:
    without, with_stops = (json.loads(vitscale(run, "--json", *option).output) for option in ((), ("--include-stopped",)))
    assert "stopped" not in without["seconds"]
    assert with_stops["wall_seconds"] == pytest.approx(without["wall_seconds"] + with_stops["seconds"]["stopped"])


def test_a_plot_is_a_picture(run: str, tmp_path: Path) -> None:
    result = vitscale(run, "--plot", str(tmp_path / "new" / "time.png"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "time.png").read_bytes().startswith(b"\x89PNG")


def test_following_lists_what_comes_until_it_is_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"time": 1.0, "event": "start", "step": 0, "message": "first"}\n')
    # A shell lets what it starts in the background, these tests perhaps, ignore SIGINT.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from vitscale.cli import main; main()"
    command = [sys.executable, "-c", program, "events", str(tmp_path), "-f"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        assert any("first" in line for line in process.stdout)
        time.sleep(0.1)
        with open(path, "a") as file:
            file.write('{"time": 2.0, "event": "time"}\n{"time": 2.0, "event": "checkpoint", "step": 7, "message": "second\\ntrace"}\n')
        assert process.stdout.readline().split()[2:] == ["7", "checkpoint", "second"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent",), "absent: no run directory with an events.jsonl"),
        ((".", "--json", "-f"), "give one of the two"),
        ((".", "--plot", "x.png"), "no records of time to draw"),
        ((".", "--plot", "events.jsonl/x.png"), "no records of time to draw"),
    ],
)
def test_bad_input_is_one_paragraph(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("events.jsonl").write_text('{"event": "start"}\n')
    result = vitscale(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_plot_that_cannot_be_written_is_told(run: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = vitscale(run, "--plot", str(tmp_path / "file" / "time.png"))
    assert result.exit_code == 2
    assert "cannot be written" in result.output


def test_a_plot_without_matplotlib_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = vitscale("absent", "--plot", "x.png")
    assert result.exit_code == 2
    assert "pip install 'vitscale[plot]'" in result.output
