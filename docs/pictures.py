"""Make the README's pictures anew: ``python docs/pictures.py``, which takes as long as the run that they show.

It trains the README's first line, on CIFAR-10 if that is in the cache, else on the built-in shapes. ``live.png`` is the
live view in its last quarter, drawn character by character, and ``report.png`` are figures of its report. Either
carries the version of simsfl, and a checksum of what it shows of an example: texts, colours of texts and labels of
axes, which differ once the live view or the figures look otherwise. A test compares these with the present code's.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from rich.color import blend_rgb
from rich.color_triplet import ColorTriplet
from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.terminal_theme import SVG_EXPORT_THEME as THEME

import simsfl
from simsfl import RunConfig, Simulation
from simsfl.cli.report.figures import draw
from simsfl.cli.report.runs import Run
from simsfl.runs.directory import RunDirectory
from simsfl.runs.history import History
from simsfl.runs.metrics import ENDINGS, Status
from simsfl.runs.metrics_log import read_records
from simsfl.system.clock import PHASES
from simsfl.system.console import Output
from simsfl.ui.dashboard import render

DOCS = Path(__file__).parent
COMMAND = ("run", "--clients", "1000")
"""Arguments of ``simsfl`` for the run that is shown."""
SHOWN = {
    "curves": (0, 0, 600),
    "features": (620, 0, 580),
    "views": (0, 560, 780),
    "partition": (800, 500, 400),
}
"""Figures of the report that are on its picture: left and upper edge, and width, in pixels."""
_COLUMNS, _SIZE = 100, 18
"""Columns of the live view, and size of its font in pixels."""
_COLOURS = 256
"""Most colours of a picture, so that it is small."""
_SUM = "shows"
"""Key of a picture's text that holds the checksum of what it shows."""


def main() -> int:
    """Train the run, and write both pictures; return the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        words = [sys.executable, "-m", "simsfl", *COMMAND, "--out", str(out), "--dashboard", "off"]
        with subprocess.Popen(words) as process:
            view = _seen(RunDirectory(out), process)
            if process.wait():
                return process.returncode
        if process := subprocess.run([sys.executable, "-m", "simsfl", "report", str(out)], check=False).returncode:
            return process
        _write("live", terminal(view, f"simsfl {' '.join(COMMAND)}"))
        _write("report", _page(out / "figures"))
    return 0


def _seen(directory: RunDirectory, process: subprocess.Popen) -> RenderableType:
    """Return the live view of a run that a process trains, in its last quarter."""
    while True:
        over = process.poll() is not None
        status = Status.load(directory.live) if directory.live.exists() else None
        late = status and 4 * status.round >= 3 * status.rounds and 0 < status.step < status.steps
        if late or over or (status and status.activity in ENDINGS):
            history = History()
            for record, _ in read_records(directory.metrics):
                history.feed(record)
            return render(directory.read_config().config.to_dict(), history, status)
        time.sleep(0.2)


def terminal(shown: RenderableType, title: str) -> Image.Image:
    """Draw what a terminal of `_COLUMNS` columns shows, below a title; each character is a cell of one size."""
    lines = [[Segment(title.center(_COLUMNS))], [Segment("")], *_lines(shown)]
    fonts = {bold: ImageFont.truetype(_font(bold=bold), _SIZE) for bold in (False, True)}
    width, height, edge = fonts[False].getlength("─"), sum(fonts[False].getmetrics()), _SIZE // 2
    size = round(_COLUMNS * width) + 2 * edge, len(lines) * height + 2 * edge
    image = Image.new("RGB", size, tuple(THEME.background_color))
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        column = 0
        for segment in line:
            font = fonts[bool(segment.style and segment.style.bold)]
            for character in segment.text:
                at = edge + round(column * width), edge + row * height
                pen.text(at, character, font=font, fill=tuple(_colour(segment)))
                column += 1
    return image


def _lines(shown: RenderableType) -> list[list[Segment]]:
    """Return the lines of what is shown on a terminal of `_COLUMNS` columns."""
    colours = {"color_system": "truecolor", "legacy_windows": False}
    console: Console = Output("on", file=io.StringIO(), width=_COLUMNS, height=40, _environ={}, **colours)
    return console.render_lines(shown, pad=False)


def _colour(segment: Segment) -> ColorTriplet:
    """Return the colour of a segment's text, paler where that is dim."""
    style = segment.style
    colour = style.color.get_truecolor(THEME) if style and style.color else THEME.foreground_color
    return blend_rgb(colour, THEME.background_color, 0.5) if style and style.dim else colour


def _font(*, bold: bool) -> str:
    """Return the path of a font of fixed width that matplotlib brings along."""
    return str(Path(mpl.get_data_path(), "fonts", "ttf", f"DejaVuSansMono{'-Bold' * bold}.ttf"))


def _page(figures: Path) -> Image.Image:
    """Return the figures of `SHOWN` from a directory on one picture."""
    placed = []
    for stem, (x, y, width) in SHOWN.items():
        with Image.open(figures / f"{stem}.png") as figure:
            height = round(width * figure.height / figure.width)
            placed.append((x, y, figure.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)))
    size = (max(x + figure.width for x, _, figure in placed), max(y + figure.height for _, y, figure in placed))
    page = Image.new("RGB", size, "white")
    for x, y, figure in placed:
        page.paste(figure, (x, y))
    return page


def _write(name: str, image: Image.Image) -> None:
    """Write a picture with few colours, the version, and the checksum of what it shows."""
    about = PngInfo()
    about.add_text("simsfl", simsfl.__version__)
    about.add_text(_SUM, CHECKSUMS[name]())
    small = image.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    small.save(DOCS / f"{name}.png", optimize=True, pnginfo=about)
    print(f"wrote docs/{name}.png")


def outdated() -> list[str]:
    """Return a sentence on each picture that shows something else than the present code would."""
    return [
        f"docs/{name}.png is not of this version: run python docs/pictures.py"
        for name, checksum in CHECKSUMS.items()
        if _text(name).get(_SUM) != checksum()
    ]


def _text(name: str) -> dict[str, str]:
    """Return the texts that a picture carries."""
    with Image.open(DOCS / f"{name}.png") as picture:
        return picture.text


def _checksum(shown: Iterable[object]) -> str:
    """Return a checksum of texts and the like, without numbers, which machines may round differently."""
    texts = [re.sub(r"\d+", "0", str(one)) for one in shown]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def checksum_of_live() -> str:
    """Return a checksum of the words of the live view of an example, with their colours."""
    lines = _lines(render(RunConfig(**_EXAMPLE).to_dict(), _history(), _STATUS))
    return _checksum(
        (word, *_colour(segment), bool(segment.style and segment.style.bold))
        for line in lines
        for segment in line
        for word in re.findall(r"[\x21-\x7e]+", segment.text)
    )


def checksum_of_report() -> str:
    """Return a checksum of the titles, labels and sizes of the figures of an example, and of where they are shown."""
    rng, labels = np.random.default_rng(0), np.arange(20) % 2
    images = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        file, path = Path(scratch) / "example.npz", Path(scratch) / "run"
        np.savez(file, train_x=images, train_y=labels, test_x=images, test_y=labels)
        simulation = Simulation(RunConfig(**_EXAMPLE | {"dataset": str(file)}))
        simulation.save(path)
        config = simulation.config.to_dict()
        run = Run("run", path, config, {}, _history(), [0, 1], None, {}, (), [12.0])
        figures = {stem: found for stem, found in draw([run]).items() if stem in SHOWN}
    shown: list[object] = [json.dumps(SHOWN)]
    for stem, (title, figure) in figures.items():
        shown += [stem, title, *map(round, figure.get_size_inches())]
        for axis in figure.axes:
            shown += [axis.get_title(), axis.get_xlabel(), axis.get_ylabel(), len(axis.lines), len(axis.images)]
        legends = [*figure.legends, *(legend for axis in figure.axes if (legend := axis.get_legend()))]
        shown += [text.get_text() for legend in legends for text in legend.get_texts()]
    return _checksum(shown)


CHECKSUMS = {"live": checksum_of_live, "report": checksum_of_report}
"""Functions that return the checksum of what the present code shows, by the name of the picture."""
_EXAMPLE = {
    **{"clients": 4, "cohort": 2, "batch_size": 1, "rounds": 2, "partition": "iid", "arch": "resnet8", "width": 4},
    **{"key_dim": 16, "queue_length": 100, "device": "cpu", "precision": "fp32", "engine": "fused:grouped"},
}
"""Fields of the config of an example."""
_STATUS = Status("training", 0.0, 1, 1, 2, 5, 1.0, 0.1, 2.0, 2.0, dict.fromkeys(PHASES, 1.0), 1, [2, 2], 0.5)
"""Status of the example, whose queue is filling."""


def _history() -> History:
    """Return the records of the example."""
    history = History()
    sent = dict.fromkeys(("bytes_up_per_client", "bytes_down_per_client", "bytes_saved_per_client"), 0)
    none = {"attackers_ssim": None, "attackers_ssim_before": None, "communication": "A"}
    learnt = {"loss": 12.0, "contrast_top1": 1.0}
    for record in (
        {"event": "evaluation", "round": 0, "knn_top1": 20.0, "pixel_knn_top1": 35.0, "output_std": 0.1},
        {"event": "step", "round": 1, "step": 1, **learnt},
        {"event": "evaluation", "round": 1, "knn_top1": 30.0, "output_std": 0.1},
        {"event": "round", "round": 1, **learnt, **sent, **none},
    ):
        history.feed(record)
    return history


if __name__ == "__main__":
    sys.exit(main())
