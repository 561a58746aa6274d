"""Observers: what lands in the JSON lines, in TensorBoard and on the console."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.limits import largest_file
from vitscale.train.goodput import TimeSlice
from vitscale.train.observers import ConsoleObserver, JsonLinesObserver, TensorBoardObserver
from vitscale.train.reports import DataReport, EvaluationReport, Event, InputPictures, StepReport, Timing

DATA = DataReport(lost_samples=3, io={"bytes_read": 4096})
TIMING = Timing(images_per_second=1234.5, data_wait_share=0.25, step_seconds_p50=0.1, step_seconds_p99=0.2)

SPENT = TimeSlice(
    attempt="a",
    begin=1.0,
    monotonic=2.0,
    boot="b",
    after_seconds=3.0,
    from_step=5,
    step=10,
    seconds={"step": 4.0},
    unfinished_seconds=0.0,
)
SHARES = {"productive": 0.75, "checkpoint": 0.25}


def step_report(step: int, loss: float = 1.5) -> StepReport:
    values = {"loss": loss, "loss_max": loss, "lr": 1e-3, "grad_norm": 2.0}
    return StepReport(step=step, samples=step * 8, values=values, timing=TIMING, data=DATA, memory_gib=0.5, spent=SPENT, shares=SHARES)


EVALUATION = EvaluationReport(name="test", step=20, samples=160, values={"top1": 0.875, "num_samples": 10_000.0})


def test_json_lines(tmp_path: Path) -> None:
    observer = JsonLinesObserver(metrics=tmp_path / "metrics.jsonl", events=tmp_path / "events.jsonl", warn=pytest.fail)
    observer.on_step(step_report(10))
    observer.on_evaluation(EVALUATION)
    observer.on_event(Event(kind="checkpoint", step=20, message="saved", details={"seconds": 0.5}))
    observer.close()
    step, evaluation = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert step == {
        "step": 10,
        "samples": 80,
        "loss": 1.5,
        "loss_max": 1.5,
        "lr": 1e-3,
        "grad_norm": 2.0,
        "images_per_second": 1234.5,
        "data_wait_share": 0.25,
        "step_seconds_p50": 0.1,
        "step_seconds_p99": 0.2,
        "lost_samples": 3,
        "io_bytes_read": 4096,
        "memory_gib": 0.5,
    }
    assert evaluation == {"step": 20, "samples": 160, "eval/test/top1": 0.875, "eval/test/num_samples": 10_000.0}
    spent, event = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert spent == {"time": spent["time"], **SPENT.record()}
    assert event.pop("time") > 0
    assert event == {"event": "checkpoint", "step": 20, "message": "saved", "seconds": 0.5}


def test_tensorboard_shows_curves_pictures_text_and_hides_repeated_steps(tmp_path: Path) -> None:
    first = TensorBoardObserver(tmp_path, start_step=0, config_text="a: 1", plan_text="{}", warn=pytest.fail)
    for step in (10, 20, 30):
        first.on_step(step_report(step, loss=9.0))
    first.close()
    resumed = TensorBoardObserver(tmp_path, start_step=20, config_text="a: 1", plan_text="{}", warn=pytest.fail)
    resumed.on_pictures(InputPictures(step=20, images=torch.zeros(2, 1, 28, 28, dtype=torch.uint8), captions=["a", "b"]))
    resumed.on_step(step_report(30, loss=3.0))
    resumed.on_evaluation(EVALUATION)
    resumed.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 9.0), (20, 9.0), (30, 3.0)]
    assert set(events.Tags()["scalars"]) == {
        "train/loss",
        "train/loss_max",
        "train/lr",
        "train/grad_norm",
        "throughput/images_per_second",
        "time/data_wait_share",
        "data/lost_samples",
        "data/io_bytes_read",
        "time/step_seconds_p50",
        "time/step_seconds_p99",
        "memory/peak_gib",
        "eval/test/top1",
        "eval/test/num_samples",
        "goodput/productive",
        "goodput/checkpoint",
    }
    assert len(events.Images("inputs")) == 1
    assert {"config/text_summary", "plan/text_summary"} <= set(events.Tags()["tensors"])


def test_console_prints_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    observer = ConsoleObserver(num_steps=1000, start_step=0)
    observer.on_progress(1)
    observer.on_step(step_report(10))
    observer.on_evaluation(EVALUATION)
    observer.on_event(Event(kind="checkpoint", step=20, message="saved checkpoint"))
    observer.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step   10/1000  loss 1.5000  lr 1.00e-03  grad norm 2.000  1,234 images/s  data wait 25.0%  0.50 GiB",
        "step 20  eval/test  top1 0.8750  num_samples 10000",
        "saved checkpoint",
    ]


@pytest.mark.parametrize("kind", ["ended", "non_finite"])
def test_console_leaves_to_the_command_what_it_says_at_the_end(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    observer = ConsoleObserver(num_steps=10, start_step=0)
    for shown in (kind, "finished"):
        observer.on_event(Event(kind=shown, step=3, message=f"the message of {shown}"))
    observer.close()
    assert capsys.readouterr().out == "the message of finished\n"


def test_a_console_that_takes_nothing_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        observer = ConsoleObserver(num_steps=10, start_step=0)
        observer.on_step(step_report(3))
        observer.close()
        with pytest.raises(OSError, match="No space left"):
            print("the disk is full indeed", flush=True)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_what_a_full_disk_kept_out_is_there_when_it_has_room_again(tmp_path: Path) -> None:
    warnings: list[str] = []
    lines = JsonLinesObserver(metrics=tmp_path / "metrics.jsonl", events=tmp_path / "events.jsonl", warn=warnings.append)
    board = TensorBoardObserver(tmp_path / "board", start_step=0, config_text="a: 1", plan_text="{}", warn=warnings.append)
    event = Event(kind="save_failed", step=20, message="no space left", details={"failed_saves": 1})
    for observer in (lines, board):
        observer.on_step(step_report(10))
    with largest_file(max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) + 10):
        for observer in (lines, board):
            observer.on_event(event)
            for step in range(20, 80, 10):
                observer.on_step(step_report(step, loss=float(step)))
    assert sorted(warnings) == sorted(set(warnings)), "each file is told of once"
    for observer in (lines, board):
        observer.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == list(range(10, 80, 10))
    kinds = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert kinds == ["time", "save_failed", *["time"] * 6]
    shown = EventAccumulator(str(tmp_path / "board"), size_guidance={"scalars": 0})
    shown.Reload()
    assert [e.step for e in shown.Scalars("train/loss")] == list(range(10, 80, 10))
    assert [(e.step, e.value) for e in shown.Scalars("checkpoint/failed_saves")] == [(20, 1.0)]
    assert any("tfevents" in text and "cannot be written" in text for text in warnings)
