"""What is printed: text of others shows as it is, and views are live where a terminal can draw them."""

import io
import os
import pty
import sys

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from simsfl.system.console import Output
from simsfl.system.messages import visible
from simsfl.system.progress import watched
from simsfl.system.streams import ended, lost
from tests.streams import stdout_to

pytestmark = pytest.mark.usefixtures("nothing_lost")

HOSTILE = "a\x1b]0;title\x07b\x9b31mc\x7fd\u202ee\u2066f\u2028g\udcffh\ri"
"""A name that sets a terminal's title, and more, by C0 and C1 controls, DEL, marks of direction and a stray byte."""
SHOWN = r"a\x1b]0;title\x07b\x9b31mc\x7fd\u202ee\u2066f\u2028g\udcffh\ri"


def printed(*parts, **options):
    """Return what a console shows of its arguments."""
    output = Output(file=io.StringIO(), width=200, **options)
    output.print(*parts)
    return output.file.getvalue()


def test_characters_that_control_a_terminal_are_written_out():
    assert visible(HOSTILE) == SHOWN
    assert visible("two\nlines\tand a tab") == r"two\nlines\tand a tab"
    assert visible("Übung/日本/ñ [x] 😀") == "Übung/日本/ñ [x] 😀"


@pytest.mark.parametrize(
    ("wrap", "dropped"),
    [
        (str, ""),
        (Text, "\x07\r"),  # which rich itself drops
        (lambda text: Panel(Text(text)), "\x07\r"),
        (lambda text: Panel("x", title=Text(text)), "\x07\r"),
    ],
)
def test_nothing_that_is_printed_controls_the_terminal(wrap, dropped):
    text = printed(wrap(HOSTILE))
    kept = HOSTILE.translate(dict.fromkeys(map(ord, dropped)))
    assert visible(kept) in text
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_tables_show_names_as_they_are():
    table = Table(title="[bold]t[/] :smile:", caption="[/]")
    table.add_column("time [ms]")
    table.add_row(f"[red]{HOSTILE[:12]}")
    table.add_row("[/]")
    lines = printed(table).splitlines()
    for words in ("[bold]t[/] :smile:", "time [ms]", r"[red]a\x1b]0;title\x07b │", "│ [/] "):
        assert any(words in line for line in lines), words


def test_a_line_is_one_line_and_keeps_its_brackets():
    output = Output(file=io.StringIO(), width=20)
    output.say("wrote ", ("[red]a\nb[/x]", "bold"), " " + "x" * 50)
    assert output.file.getvalue() == f"wrote [red]a\\nb[/x] {'x' * 50}\n"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_breaks_lines_between_words_and_no_command(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    output = Output(file=Terminal(), width=20, color_system=None)
    output.say("after 10 steps, ", ("0:15 of training", "bold"))
    output.say(f"wrote {'x' * 30} and y")
    output.say_command("resume with:", ["simsfl", "run", "--resume", "runs/20260101-120000-laptop"])
    assert [line.rstrip() for line in output.file.getvalue().splitlines()] == [
        "after 10 steps, 0:15",
        "of training",
        f"wrote {'x' * 30} and y",
        "resume with:",
        "simsfl run --resume runs/20260101-120000-laptop",
    ]


@pytest.mark.parametrize(
    ("stream", "term", "dashboard", "live"),
    [
        (Terminal, "xterm-256color", "auto", True),
        (Terminal, "xterm-256color", "off", False),
        (Terminal, "dumb", "auto", False),
        (Terminal, "unknown", "auto", False),
        (Terminal, "dumb", "on", False),
        (io.StringIO, "xterm-256color", "auto", False),
        (io.StringIO, "xterm-256color", "on", True),
    ],
)
@pytest.mark.parametrize("colours", ["", "1"])
def test_a_live_view_needs_a_terminal_that_can(stream, term, dashboard, live, colours, monkeypatch, caplog):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", colours)
    output = Output(dashboard, file=stream())
    assert output.live == live
    assert ("shows no live view" in caplog.text) == (dashboard == "on" and not live)


def test_colours_may_be_forced_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    output = Output(file=io.StringIO())
    output.say(("bold", "bold"))
    with output.status("busy"):
        pass
    assert output.file.getvalue() == "\x1b[1mbold\x1b[0m\n"
    monkeypatch.delenv("FORCE_COLOR")
    assert printed(Text("bold", "bold")) == "bold\n"


def test_progress_is_shown_on_terminals_alone_and_takes_any_label(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    for stream, shown in ((Terminal, True), (io.StringIO, False)):
        monkeypatch.setattr(sys, "stderr", stream())
        assert list(watched([1, 2, 3], "Reading [/x]\x1b]0;")) == [1, 2, 3]
        assert (r"Reading [/x]\x1b]0;" in sys.stderr.getvalue()) == shown
        assert shown or not sys.stderr.getvalue()


def test_without_a_terminal_a_line_now_and_then_tells_how_far_a_loop_is(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("simsfl.system.progress.time.monotonic", lambda: clock[0])
    for _ in watched(range(1000), "Reading"):
        clock[0] += 0.125
    said = [f"Reading: {number} of 1,000 done" for number in (240, 480, 720, 960)]
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in said))


def test_a_program_goes_on_after_its_terminal_is_closed():
    """It was sent SIGHUP; where it goes on nevertheless, it is meant to."""
    terminal, own = pty.openpty()
    with stdout_to(own):
        output = Output("auto")
        os.close(terminal)
        output.say("nobody sees this")
        assert lost() is None
        assert ended(0) == 0
