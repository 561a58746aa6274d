"""Tables and progress: every fact is shown, names with brackets are no markup, and off a terminal there is a line now and then."""

import io
from pathlib import Path

import pytest

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.checkpoint.describe import describe_checkpoint, find_folders, list_checkpoints
from vitscale.checkpoint.retention import RetentionPolicy
from vitscale.checkpoint.tables import byte_progress, format_size, print_description, print_list

TENSORS = make_tensors(seed=1, shapes={"[red]a": (4, 6), "b": ()}, kinds=("weight", "ema"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (1, 2):
        save_as(TENSORS, folder=tmp_path, step=step, world_size=2, state={"step": step, "samples": 12345})
    (tmp_path / "step-00000003").mkdir()
    return tmp_path


def test_the_list_has_a_row_for_each_and_the_reason_below(folder: Path) -> None:
    stream = io.StringIO()
    print_list(list_checkpoints(find_folders(folder), policy=RetentionPolicy(keep=1)), knows_policy=True, stream=stream)
    text = stream.getvalue()
    rows = {name: next(line for line in text.splitlines() if name in line) for name in ("step-00000001", "step-00000002", "step-00000003")}
    assert "the next save deletes it" in rows["step-00000001"]
    assert "the newest" in rows["step-00000002"]
    assert "12,345" in rows["step-00000002"]
    assert "damaged" in rows["step-00000003"]
    assert "has no manifest.json" in text.splitlines()[-1]


def test_without_a_policy_nothing_is_said_of_deleting(folder: Path) -> None:
    stream = io.StringIO()
    print_list(list_checkpoints(find_folders(folder), policy=None), knows_policy=False, stream=stream)
    assert "deletes" not in stream.getvalue()


def test_the_description_shows_facts_and_tensors(folder: Path) -> None:
    stream = io.StringIO()
    print_description(describe_checkpoint(folder / "step-00000002"), stream=stream)
    text = stream.getvalue()
    for shown in ("12,345", "by 2 ranks at ZeRO stage 1", "not recorded", "25 in 2 tensors", "[red]a", "4 x 6", "scalar", "weight, ema"):
        assert shown in text, shown


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_have_units(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text


def test_progress_off_a_terminal_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("vitscale.checkpoint.tables.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with byte_progress("verifying", total=4096, stream=stream) as report:
        for seconds, done in ((1, 1024), (10, 2048), (1, 3072), (20, 4096)):
            now[0] += seconds
            report(done)
    assert stream.getvalue() == "verifying: 2.0 KiB of 4.0 KiB\n"


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with byte_progress("verifying", total=4096, stream=stream) as report:
        report(4096)
    assert "verifying" in stream.getvalue()
