"""The run directory: logs cut back to the resumed step, small files never half-written."""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from vitscale.train.run_dir import RunDirectory, replace_text


def test_rewinding_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    directory = RunDirectory(root=tmp_path)
    directory.sample_log(3).parent.mkdir()
    for path in (directory.metrics, directory.sample_log(0), directory.sample_log(3)):
        path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    directory.rewind_logs(step=3)
    for path in (directory.metrics, directory.sample_log(0), directory.sample_log(3)):
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


@given(
    steps=st.lists(st.integers(1, 9), max_size=12).map(sorted),
    length=st.sampled_from([0, 10, 70_000]),
    torn=st.sampled_from(["", "{", '{"step": 10}', "no json\n"]),
    last=st.integers(0, 10),
)
def test_rewinding_keeps_the_lines_up_to_the_step_however_long_they_are(steps: list[int], length: int, torn: str, last: int) -> None:
    with TemporaryDirectory() as folder:
        directory = RunDirectory(root=Path(folder))
        lines = [json.dumps({"step": step, "ids": "x" * length}) + "\n" for step in steps]
        directory.metrics.write_text("".join(lines) + torn)
        directory.rewind_logs(step=last)
        assert directory.metrics.read_text() == "".join(line for line, step in zip(lines, steps, strict=True) if step <= last)


def test_rewinding_a_long_log_reads_only_what_it_drops(tmp_path: Path) -> None:
    directory = RunDirectory(root=tmp_path)
    line = json.dumps({"step": 1, "ids": list(range(1000))}) + "\n"
    directory.metrics.write_text(line * 20_000 + '{"step": 7}\n')
    begin = time.process_time()
    directory.rewind_logs(step=1)
    assert time.process_time() - begin < 0.05, "a hundred megabytes would take a second to read"
    assert directory.metrics.stat().st_size == 20_000 * len(line)


def test_replace_text_leaves_no_temporary_file(tmp_path: Path) -> None:
    replace_text(tmp_path / "deep" / "file.txt", "one")
    replace_text(tmp_path / "deep" / "file.txt", "two")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["file.txt"]
    assert (tmp_path / "deep" / "file.txt").read_text() == "two"


def test_the_newest_value_of_every_figure(tmp_path: Path) -> None:
    directory = RunDirectory(root=tmp_path)
    assert directory.newest_values() == {}
    records = [
        {"step": 1, "samples": 8, "loss": 3.0},
        {"step": 1, "samples": 8, "eval/a/top1": 0.5},
        {"step": 2, "samples": 16, "loss": 2.0},
    ]
    lines = [json.dumps(record) for record in records]
    directory.metrics.write_text("".join(f"{line}\n" for line in lines))
    assert directory.newest_values() == {"loss": 2.0, "eval/a/top1": 0.5}
    for broken in (lines[0][:7] + lines[0], lines[0][7:], "7", "null", "\0\0"):
        directory.metrics.write_text("".join(f"{line}\n" for line in [*lines[:2], broken, lines[2]]))
        assert directory.newest_values() == {"loss": 2.0, "eval/a/top1": 0.5}, broken


def test_evaluations_of_a_step_are_found_without_reading_what_is_before_it(tmp_path: Path) -> None:
    directory = RunDirectory(root=tmp_path)
    assert directory.evaluations_of(2) == set()
    evaluations = [{"step": step, f"eval/{name}/top1": 0.5} for step, name in ((1, "a"), (2, "a"), (2, "b"), (3, "c"))]
    directory.metrics.write_text("no record at all\n" + "".join(json.dumps(record) + "\n" for record in [{"step": 0}, *evaluations]))
    assert [directory.evaluations_of(step) for step in (1, 2, 3, 4)] == [{"a"}, {"a", "b"}, {"c"}, set()]
