"""A bar on a terminal, seldom lines elsewhere."""

import io

import pytest

from vitscale_data_tools import progress as progress_module
from vitscale_data_tools.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with progress("packing", total=200, stream=stream) as report:
        report(200)
    assert "200/200" in stream.getvalue()


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    stream = io.StringIO()
    with progress("packing", total=200, stream=stream) as report:
        for step in range(1, 41):
            now = float(step)
            report(5 * step)
    assert stream.getvalue().splitlines() == [f"packing: {n} of 200 ({n // 2} %)" for n in (50, 100, 150)]
