"""Messages name the programs as the present one was called."""

import shutil
import subprocess
import sys

import pytest

from simsfl.system.messages import visible
from simsfl.system.programs import called, command, pasted


@pytest.mark.parametrize(
    ("started", "words", "short"),
    [
        ("simsfl run", ["simsfl", "pi-bench"], "simsfl pi-bench"),
        ("/somewhere/experiments/run.py", ["python", "/somewhere/hw_profile/pi_bench.py"], "pi_bench.py"),
        ("/somewhere/hw_profile/pi_bench.py", ["python", "/somewhere/hw_profile/pi_bench.py"], "pi_bench.py"),
        ("experiments/run.py", ["python", "hw_profile/pi_bench.py"], "pi_bench.py"),
        ("/usr/bin/pytest", ["simsfl", "pi-bench"], "simsfl pi-bench"),
        ("", ["simsfl", "pi-bench"], "simsfl pi-bench"),
    ],
)
def test_programs_are_named_as_this_one_was_called(monkeypatch, started, words, short):
    monkeypatch.setattr(sys, "argv", [started])
    assert command("pi-bench") == words
    assert called("pi-bench") == short


def test_commands_can_be_pasted_as_they_are_printed():
    """Bash reads the same words again, whatever bytes are in them."""
    bash = shutil.which("bash") or pytest.skip("there is no bash")
    words = ["plain", "two words", "it's", "caf\u00e9", "a\x1b]0;b\x07\n", "\udcff\udcfe'\\ \u00e9", ""]
    line = visible(pasted(words))
    assert line.isprintable()
    printed = subprocess.run([bash, "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    assert printed.decode("utf-8", "surrogateescape").split("\0")[:-1] == words
