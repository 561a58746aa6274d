"""The first signal is remembered, the second ends the command."""

import os
import signal
import threading
import time

import pytest

from vitscale_launch.stop_signals import StopSignals

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
    time.sleep(30.0)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_remembered_and_ends_a_pause(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with StopSignals() as stop:
        assert stop.reason is None
        threading.Timer(0.1, os.kill, args=(os.getpid(), number)).start()
        begin = time.monotonic()
        stop.wait(60.0)
        assert time.monotonic() - begin < 30.0
        assert stop.reason == number.name
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_the_second_signal_ends_the_command(number: signal.Signals, code: int) -> None:
    with pytest.raises(SystemExit) as caught, StopSignals():
        send(signal.SIGUSR1, number)
    assert caught.value.code == code


def test_a_second_control_c_is_a_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals():
        send(signal.SIGTERM, signal.SIGINT)


def test_in_another_thread_it_hears_nothing_and_breaks_nothing() -> None:
    found: list[str | None] = []

    def listen() -> None:
        with StopSignals() as stop:
            stop.wait(0.01)
            found.append(stop.reason)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [None]
