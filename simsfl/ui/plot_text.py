"""Text in figures that is shown as it is, whatever it consists of."""

from __future__ import annotations

import textwrap
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font


def literal(text: str, width: int = 60) -> str:
    r"""Return text that matplotlib shows literally, as a label or a title.

    It would take what is between two ``$`` for a formula, leave labels that begin with ``_`` out of legends, and show
    all characters that its font lacks alike.

    Args:
        text: the text.
        width: most characters on a line.

    >>> literal("$x$"), literal("_name"), literal("实验")
    ('\\$x\\$', ' _name', '\\u5b9e\\u9a8c')
    """
    known = _characters()
    shown = "".join(c if ord(c) in known and c.isprintable() else ascii(c)[1:-1] for c in text)
    wrapped = "\n".join(textwrap.wrap(shown, width)).replace("$", r"\$")
    return f" {wrapped}" if wrapped.startswith("_") else wrapped


@cache
def _characters() -> frozenset[int]:
    """Return the code points that the font of figures has a shape for."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
