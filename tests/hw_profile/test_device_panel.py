"""A device's panel fits a small terminal, and shows connection, round, traffic and times."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from simsfl.hw_profile.devices.panel import LiveView, PlainView
from simsfl.hw_profile.meters.stopwatch import Stopwatch
from simsfl.system.console import Output

METER = SimpleNamespace(name="pmic", uncertainty=0.05, estimated=False)


def device(**changes):
    """Return the attributes of a device that a panel shows, with some changed."""
    usual = {
        "server": "pc.local:5555",
        "run": "0123456789abcdef",
        "client": 26,
        "connected": True,
        "round": 2,
        "step": 4,
        "steps": 50,
        "done": 1234,
        "up": 1_640_000,
        "down": 920_000,
        "seconds": {"compute": 0.0014, "network": 0.0026, "server": 0.016},
    }
    return SimpleNamespace(**{**usual, **changes})


def drawn(width, height, own, watts=()):
    """Return the lines that a panel draws of a device on a terminal of the given size."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    view, watch = LiveView(console), Stopwatch()
    if own.done:
        for phase in ("views", "query", "momentum", "key", "backward", "sgd", "sync"):
            with watch(phase):
                pass
    view.tell("the connection is lost; trying again")
    view.follow(own, watch, SimpleNamespace(latest=watts, meter=METER))
    console.print(view._render())
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_it_fits_the_terminal(width, height):
    lines = drawn(width, height, device(), [2.0, 2.26])
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in (
        "client 26 of run 0123456789abcdef at pc.local:5555",
        "at work",
        "3, step 5 of 50",
        "1,234  (50.0 a second in a round)",
        "1.64 MB sent, 0.92 MB received",
        "compute 1.40 ms, network 2.60 ms, server 16.00 ms",
        "2.26 W",
        "pmic ±5%",
        "backward",
    ):
        assert words in text, words
    assert "lost" not in text


def test_what_is_not_so_is_not_shown():
    waiting = "\n".join(drawn(80, 24, device(round=None, step=None, steps=None)))
    assert "waiting for a round that this client is in" in waiting
    assert "step 5" not in waiting
    lost = "\n".join(drawn(80, 24, device(connected=False, round=None, step=None, steps=None)))
    assert "the connection is lost; trying again" in lost
    begun = "\n".join(
        drawn(80, 24, device(run="", connected=False, round=None, step=None, steps=None, done=0, seconds={}))
    )
    assert "pc.local:5555" in begun
    assert "views" not in begun


def test_lines_where_there_is_no_terminal():
    console = Output(file=io.StringIO(), width=80)
    with PlainView(console) as view:
        view.follow(device(steps=5), Stopwatch(), None)
        view.tell("client 26 of run [0123]")
        for step in range(5):
            view.step_done(2, step)
    assert console.file.getvalue().splitlines() == [
        "client 26 of run [0123]",
        "round 3: 1,234 steps so far; a step: compute 1.40 ms, network 2.60 ms, server 16.00 ms",
    ]
