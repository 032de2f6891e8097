"""Make what the pages show about several ranks anew, ``python docs/scaling.py``: a model of eight devices, a picture.

The model joins what was measured: the parts of a step on one H200 (`benchmarks/h200-parts.json`), and the bytes that
ranks send (`MEASURED`). What it assumes about links is in `LINKS`. Its table stands in ``docs/performance.md`` between
``<!-- eight devices -->`` and ``<!-- end -->``; the picture is ``docs/ranks.svg``.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

MEASURED = Path(__file__).parent.parent / "benchmarks" / "cpu-2-cores-ranks-paper.json"
"""What ``bench.py --ranks`` wrote for the paper's setting."""
FIXED_SECONDS = 0.66e-3
"""Seconds of a step on one H200 that do not depend on the cohort: the server's weights standardised (0.14 ms), its
descent and moving average (0.10 ms), small kernels and gaps (0.42 ms)."""
CLIENT_SECONDS = 3.84e-5
"""Seconds of a step on one H200 for each client of the cohort, with one image: the rest of 4.50 ms for 100 clients."""
CLIENT_BYTES = 8192
"""Bytes of the keys of a client, with one image in both directions of the loss: 2 x 1,024 numbers."""
PLACE = re.compile(r"(<!-- eight devices -->\n).*?(<!-- end -->)", re.DOTALL)
COHORTS = (100, 200, 400, 800, 1_600, 3_200, 6_400)
DEVICES = 8


def main() -> int:
    """Rewrite the table and the picture; return the exit code."""
    docs = Path(__file__).parent
    page = docs / "performance.md"
    page.write_text(PLACE.sub(lambda place: place[1] + model() + place[2], page.read_text("utf-8")), "utf-8")
    picture(docs / "ranks.svg")
    return 0


@dataclass(frozen=True)
class Link:
    """What carries bytes from one device to another.

    Attributes:
        name: what it is.
        bytes_per_second: what a device sends at most, and receives at the same time.
        latency: seconds that a collective takes at least.
    """

    name: str
    bytes_per_second: float
    latency: float


LINKS = (
    Link("NVLink", 0.8 * 450e9, 30e-6),
    Link("InfiniBand", 0.8 * 50e9, 60e-6),
)
"""Eight devices of one machine, and eight machines with a device and a link of 400 Gbit/s each; 80 % of what the makers
name. Neither that share nor the latencies were measured."""


def gradient_bytes() -> float:
    """Return the bytes of the server's gradient, loss and accuracy: what each of two ranks sent, without its keys."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))["ranks"]["2"]["sent_bytes"]
    return measured - 50 * CLIENT_BYTES  # each has half the cohort of 100


def step_seconds(cohort: int, devices: int = 1, link: Link | None = None) -> float:
    """Return the seconds that the model gives a step of the paper's setting in bfloat16.

    A ring sums N bytes over k devices while each sends ``2 (k - 1) / k N``, and passes on the parts of the others,
    ``(k - 1) / k`` of the whole.

    Args:
        cohort: clients, which are divided among the devices.
        devices: number of devices.
        link: what joins the devices, if there are several.
    """
    most = -(-cohort // devices)
    seconds = FIXED_SECONDS + most * CLIENT_SECONDS
    if link is None:
        return seconds
    sent = (devices - 1) / devices * (2 * gradient_bytes() + cohort * CLIENT_BYTES)
    return seconds + 3 * link.latency + sent / link.bytes_per_second  # one sum, and keys of two directions


def model() -> str:
    """Return the model's table in Markdown."""
    names = [f"{DEVICES} devices, {link.name} [ms]" for link in LINKS]
    lines = [
        "| cohort | one device [ms] | " + " | ".join(f"{name} | times as fast" for name in names) + " |",
        "| ---: | ---: |" + " ---: | ---: |" * len(LINKS),
    ]
    for cohort in COHORTS:
        alone = step_seconds(cohort)
        cells = [f"{cohort:,}", f"{1000 * alone:.1f}"]
        for link in LINKS:
            seconds = step_seconds(cohort, DEVICES, link)
            cells += [f"{1000 * seconds:.1f}", f"{alone / seconds:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_COLOURS = {"client": "#4477aa", "server": "#aa3377", "kept": "#777777"}
"""Colours of what differs between ranks, of what is the same on all, and of what stays from round to round."""


def picture(path: Path) -> None:
    """Draw what lies on which of two ranks, and what travels between them, as an SVG file with a white background."""
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    axes.set(xlim=(0, 100), ylim=(0, 58), aspect="equal")
    axes.axis("off")
    for rank, left in enumerate((2, 62)):
        axes.add_patch(FancyBboxPatch((left, 2), 36, 54, boxstyle="round,rounding_size=1.5", fc="none", ec="#999999"))
        axes.text(left + 18, 53.2, f"rank {rank}", ha="center", va="center", weight="bold")
        rows = (
            (43, "client", f"cohort's clients {'1 ... C/2' if not rank else 'C/2+1 ... C'}\nmodels, momentum models"),
            (32.5, "client", "smashed data and their gradients\nof these clients alone"),
            (18, "server", "server's model, momentum model,\nvelocity, shared key queue\n(the same on all ranks)"),
            (4.5, "kept", f"what clients {'1 ... M/2' if not rank else 'M/2+1 ... M'} keep\nfrom round to round"),
        )
        for bottom, kind, text in rows:
            height = 11.5 if kind == "server" else 8
            box = FancyBboxPatch((left + 2, bottom), 32, height, boxstyle="round,rounding_size=1", lw=1.5)
            box.set(fc=f"{_COLOURS[kind]}22", ec=_COLOURS[kind])
            axes.add_patch(box)
            axes.text(left + 18, bottom + height / 2, text, ha="center", va="center", fontsize=9)
        for top, low in ((43, 40.5), (32.5, 29.5)):
            axes.add_patch(FancyArrowPatch((left + 18, top), (left + 18, low), arrowstyle="<->", mutation_scale=9))
    travels = (
        (47, "client", "each averaging:\nsums of client models"),
        (26, "server", "each step:\nsum of gradients"),
        (20.5, "server", "each step: keys"),
        (8.5, "kept", "each round:\nthe cohort's rows"),
    )
    for height, kind, text in travels:
        arrow = FancyArrowPatch((36.5, height), (63.5, height), arrowstyle="<->", mutation_scale=12, lw=1.5)
        arrow.set_color(_COLOURS[kind])
        axes.add_patch(arrow)
        axes.text(50, height + 0.8, text, ha="center", va="bottom", fontsize=9, color=_COLOURS[kind])
    with plt.rc_context({"svg.hashsalt": "ranks"}):  # names inside are the same each time
        figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
