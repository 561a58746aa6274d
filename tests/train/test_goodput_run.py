"""The ledger of time in real runs: killed, stopped and finished attempts account for all the time that passes outside."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.tiny_run import events, tiny_values
from vitscale import api
from vitscale.config import dump_yaml
from vitscale.train.goodput_report import GoodputReport

pytestmark = pytest.mark.chaos

RUN = ("checkpoint.every_steps=20", "train.log_every_steps=5", "data.log_samples=false")


def start(root: Path, *overrides: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "vitscale", "train", "run.yaml", *RUN, *overrides]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))


def wait_for(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    pytest.fail("".join(seen))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, GoodputReport]:
    """Killed in its steps, gone on and stopped, gone on and finished; and the seconds from the first start to the last end."""
    root = tmp_path_factory.mktemp("time")
    (root / "run.yaml").write_text(dump_yaml(tiny_values(root) | {"name": "tiny", "output": str(root / "runs")}))
    begin = time.monotonic()
    killed = start(root, "train.num_samples=3200")
    wait_for(killed, "step  55/200")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    stopped = start(root, "train.num_samples=3200", "--stop-at", "100")
    output, _ = stopped.communicate()
    assert stopped.returncode == 75, output
    finished = start(root, "train.num_samples=3200")
    output, _ = finished.communicate()
    assert finished.returncode == 0, output
    seconds = time.monotonic() - begin
    return root / "runs" / "tiny", seconds, api.events(root / "runs" / "tiny", include_stopped=True)


def test_all_the_time_is_accounted_for(run: tuple[Path, float, GoodputReport]) -> None:
    _, seconds, report = run
    # What no process can tell is how long Python takes to start it, and to end it behind its last record: longer on a busy machine.
    assert 0 <= seconds - report.wall_seconds < max(0.25 * seconds, 3.0)
    assert sum(report.shares.values()) == pytest.approx(1.0)
    assert [attempt.outcome for attempt in report.attempts] == ["died", "stopped", "finished"]
    killed, *others = ((attempt.from_step, attempt.step) for attempt in report.attempts)
    assert killed[0] == 0
    assert killed[1] >= 50, "the line of step 55 is shown before its time is recorded"
    assert others == [(others[0][0], 100), (100, 200)]
    assert others[0][0] % 20 == 0


def test_each_cause_has_its_time(run: tuple[Path, float, GoodputReport]) -> None:
    folder, _, report = run
    for cause in ("start_up", "compile", "data_wait", "step", "checkpoint", "report", "stop", "lost_work", "restart", "stopped"):
        assert report.seconds[cause] > 0, cause
    stalls = [event["stall_seconds"] for event in events(folder, "checkpoint")]
    assert report.seconds["checkpoint"] >= 0.9 * sum(stalls)
    assert report.counts.failures == 1
    assert report.save_interval is not None


def test_steps_done_again_are_lost(run: tuple[Path, float, GoodputReport]) -> None:
    folder, _, report = run
    slices = events(folder, "time")
    resumed_at = report.attempts[1].from_step
    again = [record for record in slices if record["attempt"] == slices[0]["attempt"] and record["step"] > resumed_at]
    trained = sum(sum(record["seconds"].get(cause, 0.0) for cause in ("compile", "data_wait", "step")) for record in again)
    assert report.seconds["lost_work"] >= trained - 1e-3


def test_every_slice_has_the_fields_that_the_documentation_promises(run: tuple[Path, float, GoodputReport]) -> None:
    folder, _, _ = run
    promised = {
        "time",
        "event",
        "step",
        "from_step",
        "attempt",
        "begin",
        "monotonic",
        "boot",
        "after_seconds",
        "seconds",
        "unfinished_seconds",
    }
    assert {frozenset(record) for record in events(folder, "time")} == {frozenset(promised)}
