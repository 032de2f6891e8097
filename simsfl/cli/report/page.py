"""The part of a page that shows figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from simsfl.ui.markdown import escaped, picture

_CAPTIONS = {
    "curves": "Loss of every step, smoothed over a fortieth of the steps, with the steps themselves faint behind (it "
    "may begin below what is shown, while the queue fills); accuracy of the kNN monitor on the test images. Of several "
    "seeds: mean, with a band of one standard deviation.",
    "divergence": "Distance of the cohort's models to their average. The band is the standard deviation over the "
    "cohort, and over seeds where there are several.",
}
"""What the page says below a figure, by its file name without suffix."""


def figure_lines(figures: Mapping[str, tuple[str, Figure]], formats: Sequence[str]) -> list[str]:
    """Return lines of Markdown with each figure below its title, and its caption if it has one.

    Args:
        figures: titles and figures, by the names of their files below ``figures/`` without suffix.
        formats: the formats of the files; the page shows one that browsers show, or has a link.
    """
    shown, lines = next((kind for kind in ("png", "svg") if kind in formats), "pdf"), []
    for stem, (title, _) in figures.items():
        link = picture(title, f"figures/{stem}.{shown}")
        lines += ["", f"## {escaped(title)}", "", link.removeprefix("!") if shown == "pdf" else link]
        if stem in _CAPTIONS:
            lines += ["", _CAPTIONS[stem]]
    return lines[1:]
