"""What a user sees of an error: its paragraph and exit code, the trace only when asked for, and bugs untouched."""

import pytest

from vitscale.config import CheckpointError, ConfigError, DataError, StopRequested, UsageError, UserError, presentation
from vitscale.config.errors import Scope
from vitscale.config.presentation import present_errors


@pytest.mark.parametrize(
    ("error_class", "code"), [(UsageError, 2), (ConfigError, 3), (DataError, 10), (CheckpointError, 20), (UserError, 1)]
)
def test_a_user_error_is_one_paragraph_with_its_exit_code(
    error_class: type[UserError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info, present_errors(debug=False):
        raise error_class("shards/: no manifest. Pack the data.")
    assert exit_info.value.code == code
    captured = capsys.readouterr()
    assert captured.err == "error: shards/: no manifest. Pack the data.\n"
    assert captured.out == ""


def test_debug_adds_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), present_errors(debug=True):
        raise DataError("broken")
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: broken\n")


def test_a_stop_on_request_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info, present_errors(debug=False):
        raise StopRequested("stopped after step 7, all saved")
    assert exit_info.value.code == 75
    assert capsys.readouterr().err == "stopped after step 7, all saved\n"


def test_ctrl_c_exits_as_shells_expect(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info, present_errors(debug=False):
        raise KeyboardInterrupt
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), present_errors(debug=False):
        1 / 0  # noqa: B018


SHOWN_BY = {"rank": {(0, 0), (1, 1), (2, 0), (3, 1)}, "node": {(0, 0), (2, 0)}, "run": {(0, 0)}}
"""(rank, local rank) of the processes that show an error, of two machines with two processes each."""


@pytest.mark.parametrize("scope", SHOWN_BY)
@pytest.mark.parametrize(("rank", "local_rank"), sorted(SHOWN_BY["rank"]))
def test_of_the_processes_that_raise_the_same_error_one_shows_it(
    scope: Scope, rank: int, local_rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    waits: list[float] = []
    monkeypatch.setattr(presentation.time, "sleep", waits.append)
    error = DataError("broken")
    error.scope = scope
    with pytest.raises(SystemExit) as exit_info, present_errors(debug=False):
        raise error
    assert exit_info.value.code == 10
    is_shown = (rank, local_rank) in SHOWN_BY[scope]
    assert capsys.readouterr().err == ("error: broken\n" if is_shown else "")
    # Else torchrun may end the process that shows it before it has.
    assert waits == ([] if is_shown else [presentation.QUIET_SECONDS])


def test_who_raises_an_error_by_itself() -> None:
    scopes = {error("").scope: error for error in (DataError, ConfigError, StopRequested)}
    assert set(scopes) == {"rank", "node", "run"}
    retold = CheckpointError("inner")
    retold.scope = "run"
    assert (str(retold.retold("outer")), retold.retold("outer").scope) == ("outer", "run")
