"""Script of the watchdog's tests: a rank without torch that beats for a while and then does what its fault says.

Arguments: run directory, rank, world size, hang_seconds, fault. Prints its process id and its watchdog's.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vitscale.train.heartbeat import Heartbeat
from vitscale.train.watchdog import Watchdog

GOOD_STEPS = 3


def main() -> None:
    run_dir, rank, world_size, seconds, fault = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    heartbeat = Heartbeat()
    hang_seconds = "auto" if seconds == "auto" else float(seconds)
    begin = time.perf_counter()
    watchdog = Watchdog(heartbeat, run_dir=run_dir, rank=rank, world_size=world_size, attempt="a", hang_seconds=hang_seconds)
    print(os.getpid(), watchdog.pid, time.perf_counter() - begin, flush=True)
    if fault == "slow start":
        time.sleep(3.0)
    for step in range(GOOD_STEPS):
        for phase in ("step", "data", "vote"):
            heartbeat.beat(phase, step + (phase != "step"))
            time.sleep(0.05)
    FAULTS[fault](heartbeat)
    watchdog.close()
    heartbeat.close()


def stop_itself(heartbeat: Heartbeat) -> None:
    heartbeat.beat("step", GOOD_STEPS)
    os.kill(os.getpid(), signal.SIGSTOP)


def loop_in_python(heartbeat: Heartbeat) -> None:
    heartbeat.beat("step", GOOD_STEPS)
    while True:
        pass


def loop_holding_the_interpreter(heartbeat: Heartbeat) -> None:
    heartbeat.beat("step", GOOD_STEPS)
    re.match("(a+)+$", "a" * 60 + "b")  # for years, in C, without letting another thread run


def wait_in_a_collective(heartbeat: Heartbeat) -> None:
    heartbeat.beat("step", GOOD_STEPS)
    heartbeat.enter_collective()
    time.sleep(1000)


def evaluate_for_long(heartbeat: Heartbeat) -> None:
    for _ in range(30):
        heartbeat.beat("evaluate", GOOD_STEPS)
        time.sleep(0.1)


def sleep_in_a_step(heartbeat: Heartbeat) -> None:
    heartbeat.beat("step", GOOD_STEPS)
    time.sleep(1000)


FAULTS = {
    "none": lambda _heartbeat: None,
    "slow start": lambda _heartbeat: None,
    "stopped": stop_itself,
    "loop": loop_in_python,
    "locked": loop_holding_the_interpreter,
    "waits": wait_in_a_collective,
    "sleeps": sleep_in_a_step,
    "evaluates": evaluate_for_long,
}

if __name__ == "__main__":
    main()
