"""Names in figures are shown as they are: a picture's text is read back from its SVG."""

import io
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from simsfl.ui.plot_text import literal

NAMES = ["$x$", "$a_1$ and $b$", "5 $", "_name", "__init__", "_$x$", "a|b", "back\\slash", "\\$", "äöß Жλ", "a <b> & c"]


def texts(figure):
    """Return what a figure says, as a reader sees it."""
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg")
    return [
        element.text for element in ElementTree.fromstring(file.getvalue()).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_literally(name):
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([1, 2], label=literal(name))
    axes.legend()
    axes.set_xticks([1], [literal(name)])
    figure.suptitle(literal(name))
    assert [text.strip() for text in texts(figure)].count(name) == 3


def test_what_the_font_lacks_is_told_apart_and_makes_no_warning():
    names = [literal(name) for name in ("实验一", "实验二", "a\x1bb", "a\udcffb")]
    assert len(set(names)) == 4
    figure = Figure()
    figure.suptitle(" ".join(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts(figure)


def test_long_names_are_broken_but_whole():
    name = "a-long-name-of-a-run" * 12 + "-1"
    lines = literal(name).split("\n")
    assert max(map(len, lines)) <= 60
    assert "".join(lines) == name
