"""Messages name the programs as the present one was called."""

import sys

import pytest

from simsfl.system.programs import called, command


@pytest.mark.parametrize(
    ("started", "words", "short"),
    [
        ("simsfl run", ["simsfl", "pi-bench"], "simsfl pi-bench"),
        ("/somewhere/experiments/run.py", ["python", "/somewhere/hw_profile/pi_bench.py"], "pi_bench.py"),
        ("/somewhere/hw_profile/pi_bench.py", ["python", "/somewhere/hw_profile/pi_bench.py"], "pi_bench.py"),
        ("/usr/bin/pytest", ["simsfl", "pi-bench"], "simsfl pi-bench"),
        ("", ["simsfl", "pi-bench"], "simsfl pi-bench"),
    ],
)
def test_programs_are_named_as_this_one_was_called(monkeypatch, started, words, short):
    monkeypatch.setattr(sys, "argv", [started])
    assert command("pi-bench") == words
    assert called("pi-bench") == short
