"""Draw the figure of the algorithm, ``docs/concepts.svg``: ``python docs/diagram.py``.

It is drawn on a card of its own, light or dark as the reader's system is, so that it can be read on any page.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).with_name("concepts.svg")
_WIDTH, _HEIGHT = 1120, 530
_CLIENT, _ROWS, _DEPTH = (48, 150, 400, 120), 4, 14
"""Left and upper edge, width and height of the nearest client, number of clients that are drawn, and how far each lies
to the upper right of the one before, in pixels."""
_CUT = 512
"""Where the cut is, in pixels from the left."""
_SERVER = 830
"""Left edge of what is on the server, in pixels."""
_STYLE = """
  .card { fill: #ffffff } .ink { fill: #1f2328 } .pale { fill: #57606a }
  .box { stroke: #57606a; stroke-width: 1.2 } .client { fill: #eef4fb } .online { fill: #cfe3fa }
  .momentum { fill: #f8e3c5 } .server { fill: #eaf5ec } .queue { fill: #e8ddf6 }
  .line { stroke: #57606a; stroke-width: 1.6; fill: none } .back { stroke-dasharray: 6 4 } .head { fill: #57606a }
  .cut { stroke: #c0392b; stroke-width: 2; stroke-dasharray: 2 5 } .red { fill: #b03024 }
  text { font: 14px system-ui, sans-serif } .small { font-size: 12.5px } .title { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #1c2128 } .ink { fill: #e6edf3 } .pale { fill: #a9b4c0 }
    .box { stroke: #8b96a3 } .client { fill: #22303f } .online { fill: #2b4c70 } .momentum { fill: #5e4727 }
    .server { fill: #22362a } .queue { fill: #45356a } .line { stroke: #a9b4c0 } .head { fill: #a9b4c0 }
    .cut { stroke: #ff7b6b } .red { fill: #ff8f80 }
  }
"""


def svg() -> str:
    """Return the figure as text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        "<title>A step of MocoSFL: stacked clients, the cut, and the server</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path class="head" d="M0 0 10 5 0 10z"/></marker></defs>',
        f'<rect class="card" width="{_WIDTH}" height="{_HEIGHT}" rx="12"/>',
        *_clients(),
        *_server(),
        *_wire(),
        *_averaging(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _clients() -> list[str]:
    """Return the cohort: clients behind each other, of which the nearest shows its two models."""
    left, top, width, height = _CLIENT
    parts = [_text(left, 40, "Cohort: C clients, one stacked program (vmap)", "ink title")]
    parts.append(_text(left, 60, "each holds images of its own, without labels, that never leave it", "pale small"))
    for behind in reversed(range(_ROWS)):
        x, y = left + _DEPTH * behind, top - _DEPTH * behind
        parts.append(_box(x, y, width, 2 * height, "client"))
    middle = top + height
    parts += [
        _text(left + 14, top + 24, "client", "pale small"),
        _text(left + 14, middle - 22, "B images", "ink"),
        _arrow(left + 80, middle - 34, left + 156, top + 72),
        _text(left + 84, top + 72, "view", "pale small"),
        _arrow(left + 80, middle - 18, left + 156, middle + 50),
        _text(left + 84, middle + 52, "view", "pale small"),
        *_model(left + 160, top + 46, 200, "online", "online model", "the layers up to the cut"),
        *_model(left + 160, middle + 24, 200, "momentum", "momentum model", "m ← τ m + (1 - τ) p"),
        _arrow(left + 310, top + 102, left + 310, middle + 20),
        _text(left + 316, middle + 2, "follows", "pale small"),
    ]
    return parts


def _wire() -> list[str]:
    """Return the cut, and what crosses the wire there."""
    left, top, _, height = _CLIENT
    right, middle, x = left + 364, top + height, _CUT + 14
    return [
        f'<line class="cut" x1="{_CUT}" x2="{_CUT}" y1="{top - 78}" y2="{_HEIGHT - 16}"/>',
        _text(x, top - 66, "The cut: what crosses the wire", "red title"),
        _arrow(right, top + 66, _SERVER - 2, top + 66),
        _text(x, top + 58, "smashed data of the query view", "ink small"),
        _arrow(_SERVER - 2, top + 92, right, top + 92, back=True),
        _text(x, top + 110, "gradient of the client's own rows", "ink small"),
        _arrow(right, middle + 50, _SERVER - 2, middle + 50),
        _text(x, middle + 42, "smashed data of the key view", "ink small"),
        _text(x, middle + 68, "no gradient comes back", "pale small"),
    ]


def _server() -> list[str]:
    """Return the server: its two models, the loss and the queue of keys."""
    _, top, _, height = _CLIENT
    middle, x = top + height, _SERVER
    return [
        _box(x - 14, top - 58, 286, 2 * height + 58, "server"),
        _text(x, top - 32, "Server: all rows of all clients", "ink title"),
        _text(x, top - 12, "the rows of C clients with B images each", "pale small"),
        *_model(x, top + 46, 130, "online", "online model", "other layers, head"),
        *_model(x, middle + 24, 130, "momentum", "momentum", "follows the other"),
        _arrow(x + 65, top + 102, x + 65, middle + 20),
        _arrow(x + 130, top + 74, x + 164, top + 74),
        _text(x + 140, top + 62, "q", "ink title"),
        _arrow(x + 130, middle + 52, x + 172, top + 104),
        _text(x + 144, middle + 14, "k", "ink title"),
        _box(x + 166, top + 46, 94, 56, "card"),
        _text(x + 213, top + 70, "InfoNCE", "ink title", middle=True),
        _text(x + 213, top + 90, "q·k, q·queue", "pale small", middle=True),
        *(_box(x + 166 + 12 * place, middle + 30, 10, 44, "queue") for place in range(8)),
        _text(x + 213, middle + 92, "queue of K keys", "ink small", middle=True),
        _arrow(x + 213, middle + 28, x + 213, top + 104),
        _arrow(x + 130, middle + 60, x + 163, middle + 60),
    ]


def _averaging() -> list[str]:
    """Return the averaging of the clients' online models on the server, several times a round."""
    left, top, _, height = _CLIENT
    bottom, x, first, second = top + 2 * height, _CUT + 188, left + 60, left + 100
    return [
        _box(x, bottom + 36, _WIDTH - 18 - x, 60, "online"),
        _text(x + 14, bottom + 61, "average of the cohort's online models", "ink title"),
        _text(x + 14, bottom + 82, "several times a round; the next cohort starts from it", "pale small"),
        _arrow(second, bottom + 2, second, bottom + 54, x - 2, bottom + 54),
        _arrow(x, bottom + 78, first, bottom + 78, first, bottom + 3),
        _text(_CUT + 14, bottom + 46, "weights of online models", "ink small"),
        _text(_CUT + 14, bottom + 96, "their average", "ink small"),
        _text(second + 12, bottom + 28, "Momentum models stay with their clients", "pale small"),
        _text(second + 12, bottom + 45, "(--align-momentum: averaged, too, as in MonAcoSFL)", "pale small"),
    ]


def _model(x: float, y: float, width: float, kind: str, name: str, about: str) -> list[str]:
    """Return a model: a box with its name and a line about it."""
    middle = x + width / 2
    named = _text(middle, y + 24, name, "ink title", middle=True)
    return [_box(x, y, width, 56, kind), named, _text(middle, y + 44, about, "ink small", middle=True)]


def _box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a rectangle with round corners."""
    return f'<rect class="box {kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'


def _arrow(*places: float, back: bool = False) -> str:
    """Return an arrow through places, x and y of each in turn, dashed where a gradient goes back."""
    way = " ".join(f"{place:g}" for place in places)
    return f'<path class="line{" back" * back}" d="M{way}" marker-end="url(#arrow)"/>'


def _text(x: float, y: float, text: str, kind: str, *, middle: bool = False) -> str:
    """Return a line of text."""
    anchor = ' text-anchor="middle"' * middle
    return f'<text class="{kind}" x="{x:g}" y="{y:g}"{anchor}>{escape(text)}</text>'


if __name__ == "__main__":
    FILE.write_text(svg(), encoding="utf-8")
