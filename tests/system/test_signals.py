"""A signal stops a program unless the program was started with that signal ignored."""

import os
import signal

import pytest

from simsfl.system.signals import Stop

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def signals_as_before():
    """Give signals back the handlers that they had before the test."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_noted_and_the_second_raises(number):
    with Stop() as stop:
        stop.patient = True
        os.kill(os.getpid(), number)
        assert stop.received == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPPING)
def test_without_patience_the_first_signal_raises(number):
    with Stop() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert stop.received == number


@pytest.mark.parametrize("number", STOPPING)
def test_an_ignored_signal_stays_ignored_and_the_others_are_caught(number):
    signal.signal(number, signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), number)
        assert stop.received is None
        assert signal.getsignal(number) == signal.SIG_IGN
        other = next(one for one in STOPPING if one != number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), other)
    assert signal.getsignal(number) == signal.SIG_IGN


def test_handlers_come_back():
    def own(*_):
        """Do nothing."""

    signal.signal(signal.SIGHUP, own)
    with Stop():
        assert signal.getsignal(signal.SIGHUP) != own
    assert signal.getsignal(signal.SIGHUP) == own
