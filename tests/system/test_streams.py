"""Standard streams take every character, and errors in writing them become exit codes."""

import io
import logging
import signal
import sys
import warnings

import pytest

from simsfl.system import streams
from simsfl.system.console import Output
from simsfl.system.streams import Formatter, ended, print_error, set_up
from tests.streams import FULL, stdout_to, stdout_without_a_reader

pytestmark = pytest.mark.usefixtures("nothing_lost")


def test_errors_and_warnings_are_one_line_each(capsys):
    print_error("out: a\nb [/] \x1b[2J")
    streams._Printing().emit(logging.makeLogRecord({"msg": "%s", "args": ("x\x1b\ny",), "levelname": "WARNING"}))
    assert capsys.readouterr().err == "error: out: a\\nb [/] \\x1b[2J\nwarning: x\\x1b\\ny\n"


def test_warnings_of_libraries_are_logged(caplog):
    with warnings.catch_warnings():
        set_up()
        warnings.simplefilter("always")
        warnings.warn("a glyph\nis missing", stacklevel=1)
    assert caplog.messages == ["a glyph\nis missing"]


def test_log_files_have_one_line_for_each_record():
    record = logging.makeLogRecord({"msg": "client said %s", "args": ("a\nb\x1b",)})
    assert Formatter("%(message)s").format(record) == r"client said a\nb\x1b"


@pytest.mark.parametrize(
    ("encoding", "out", "err"),
    [
        ("ascii", [r"2.26 +-0.1 W at 51 deg C, \u65e5 .# *", r"plain +- \udcff"], r"no such file \xf1..."),
        ("latin-1", [r"2.26 ±0.1 W at 51 °C, \u65e5 .# *", r"plain ± \udcff"], "no such file ñ..."),
        ("utf-8", ["2.26 ±0.1 W at 51 °C, 日 ▁█ †", r"plain ± \udcff"], "no such file ñ…"),
    ],
)
def test_every_stream_takes_every_character(encoding, out, err, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    set_up()
    Output().say("2.26 ±0.1 W at 51 °C, 日 ▁█ †")
    print("plain ± \udcff")
    print_error("no such file ñ…")
    sys.stdout.flush()
    sys.stderr.flush()
    assert sys.stdout.buffer.getvalue().decode(encoding).splitlines() == out
    assert sys.stderr.buffer.getvalue().decode(encoding) == f"error: {err}\n"


def test_a_reader_that_has_ended_is_no_error(capsys):
    with stdout_without_a_reader():
        output = Output()
        output.say("nobody reads this")
        output.say("nor this")
        assert isinstance(output.lost, BrokenPipeError)
        assert ended(0) == 128 + signal.SIGPIPE
        assert ended(2) == 2
    assert capsys.readouterr().err == ""


@FULL
@pytest.mark.parametrize("write", [lambda text: Output().say(text), print], ids=["console", "print"])
def test_a_full_disk_is_said_in_one_line(write, capsys):
    with stdout_to("/dev/full"):
        write("too much")
        assert ended(0) == 1
    error = "error: output: stdout cannot be written (No space left on device); allowed: a file or pipe with room\n"
    assert capsys.readouterr().err == error


@FULL
def test_an_error_that_cannot_be_said_is_passed_over(monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", stream)
        print_error("nobody sees this")
    monkeypatch.setattr(sys, "stderr", None)
    print_error("nor this")


def test_a_stdout_that_was_closed_before_the_start(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    Output("auto").say("nobody sees this")
    assert ended(0) == 0
