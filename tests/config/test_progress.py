"""A bar on a terminal, seldom lines elsewhere."""

import io

import pytest

from vitscale.config import progress as progress_module
from vitscale.config.progress import Unit, format_size, progress, silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("unit", "shown"), [("items", "2048/2048"), ("bytes", "2.0/2.0 KiB")])
def test_a_terminal_gets_a_bar(unit: Unit, shown: str) -> None:
    stream = Terminal()
    with progress("packing [red]", total=2048, unit=unit, stream=stream) as report:
        report(2048)
    assert shown in stream.getvalue()
    assert "[red]" in stream.getvalue(), "a label is no markup"


@pytest.mark.parametrize(
    ("unit", "lines"),
    [("items", [f"packing: {n} of 200 ({n // 2} %)" for n in (50, 100, 150)]),
     ("bytes", [f"packing: {n} bytes of 200 bytes ({n // 2} %)" for n in (50, 100, 150)])],
)  # fmt: skip
def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, unit: Unit, lines: list[str]) -> None:
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    stream = io.StringIO()
    with progress("packing", total=200, unit=unit, stream=stream) as report:
        for step in range(1, 41):
            now = float(step)
            report(5 * step)
    assert stream.getvalue().splitlines() == lines


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with silent("importing", total=2) as report:
        report(1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_have_units(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text
