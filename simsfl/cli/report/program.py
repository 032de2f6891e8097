"""Write a page and figures about runs."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from simsfl.attacks import SIMILARITIES
from simsfl.cli.flags import add_plugin_flag
from simsfl.cli.report.figures import FEW, draw, save
from simsfl.cli.report.formats import add_format_flag
from simsfl.cli.report.page import figure_lines
from simsfl.cli.report.runs import Run, read_run
from simsfl.cli.report.settings import grouped, repeated, summary_table
from simsfl.config import RunConfig
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics import History
from simsfl.runs.records import Summary
from simsfl.system.console import Output
from simsfl.system.messages import count_text
from simsfl.ui.arguments import Parser, fail, path
from simsfl.ui.dashboard import bytes_text, number, time_text
from simsfl.ui.markdown import escaped, lines_of, markdown, picture
from simsfl.ui.spread import collapse

_SHOWN = (
    *("preset", "method", "dataset", "data_dir", "partition", "arch", "cut_layer", "clients", "cohort", "batch_size"),
    *("rounds", "precision", "engine", "seed", "device", "epochs", "track"),
)
"""Fields of the config that the table always has, or that say nothing of the results."""
_CHOICES = (
    *("objective", "supervised", "aggregation", "sampler", "dropout", "straggler", "optimizer", "proximal", "defence"),
    *("loss_threshold", "ressfl_lambda", "unequal", "callback", "options"),
)
"""Fields of the config that the table has where they are not as usual."""
_UNRECORDED = "no round is recorded: the run has just begun, or was trained in Python without `simsfl.run`"
"""What the page says of a run without records of rounds."""

_SEEDS = "Mean ± standard deviation over the seeds of each setting."
"""What the page says of the table of settings."""
_LEFT_OUT = f"Partitions, views, features and reconstructions are shown in reports of {FEW} runs at most."
"""What the page says of figures that it lacks."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument("runs", type=path, nargs="+", metavar="RUN_DIR", help="run directories")
    where = "directory to write into (default: the run's own; of several runs a new one, reports/<time>)"
    result.add_argument("--out", type=path, metavar="DIR", help=where)
    add_format_flag(result)
    add_plugin_flag(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; return the exit code."""
    try:
        arguments = parser().parse(argv)
        runs = [read_run(path, name) for path, name in zip(arguments.runs, _unique_names(arguments.runs), strict=True)]
        own = arguments.out or (arguments.runs[0] if len(runs) == 1 else None)
        if own:
            RunDirectory(own).outputs.check("report.md")
        Output().say(f"drawing figures of {count_text(len(runs), 'run')}")
        figures = draw(runs)
        out = RunDirectory(own) if own else RunDirectory.claim(Path("reports") / time.strftime("%Y%m%d-%H%M%S"))
        save(figures, out.outputs, arguments.format)
        out.outputs.write_text(out.report.name, _page(runs, figures, out.path, arguments.format))
    except (ValueError, OSError) as error:
        return fail(error)
    Output().say(f"wrote {out.report} and {count_text(len(figures), 'figure')} in {out.figures}")
    return 0


def _unique_names(paths: list[Path]) -> list[str]:
    """Return the last part of each path, numbered where it is not unique: ``run-1``, ``run-2``.

    Parts that differ only in how Unicode composes their letters look the same, so they count as equal.

    >>> _unique_names([Path("a/run"), Path("b/run"), Path("c/run-1")])
    ['run-2', 'run-3', 'run-1']
    """
    last = [unicodedata.normalize("NFC", path.resolve().name) for path in paths]
    names = [name if last.count(name) == 1 else "" for name in last]
    for position, name in enumerate(last):
        if not names[position]:
            names[position] = next(numbered for i in count(1) if (numbered := f"{name}-{i}") not in names)
    return names


def _page(runs: list[Run], figures: dict[str, tuple[str, Figure]], out: Path, formats: Sequence[str]) -> str:
    """Return the report as Markdown: a table of settings and results, then the figures.

    If a setting was run with several seeds, the table has a row for each setting, and that of runs comes last.

    Args:
        runs: the runs, a column of the table each.
        figures: titles and figures by file name, as of `draw`.
        out: the directory that the page is written into; links are relative to it.
        formats: the formats of the figures' files.
    """
    settings = grouped(runs)
    seeds = repeated(settings)
    differing = _differing([run.config for run in runs])
    columns = [_cells(run, differing) for run in runs]
    titles = max(columns, key=len) | {title: "" for column in columns for title in column}
    table = [["", *(run.name for run in runs)]]
    table += [[title, *(column.get(title, "-") for column in columns)] for title in titles]
    lines = ["# simsfl report", ""]
    if seeds:
        lines += [*markdown(summary_table(settings)).strip().split("\n"), "", _SEEDS]
    else:
        lines += lines_of(table)
    for run in runs:
        if found := collapse(run.spreads):
            lines += ["", f"**{escaped(run.name)}:** {found[1]}"]
        if not run.history.rounds:
            lines += ["", f"**{escaped(run.name)}:** {_UNRECORDED}"]
    lines += ["", *figure_lines(figures, formats)]
    if len(runs) > FEW:
        lines += ["", _LEFT_OUT]
    for run in runs if len(runs) <= FEW else ():
        for decoder in run.attacks:
            sheet = os.path.relpath(RunDirectory(run.path).attacks / f"{decoder}.png", out)
            title = f"Reconstructions by {decoder} of {run.name}"
            lines += ["", f"## {escaped(title)}", "", picture("originals, reconstructions", sheet)]
    if seeds:
        lines += ["", "## Runs", "", *lines_of(table)]
    return "\n".join([*lines, ""])


def _ends(accuracies: list[float | None] | None) -> str:
    """Return the lowest and the highest of some accuracies as text; those that are None are left out."""
    known = [accuracy for accuracy in accuracies or () if accuracy is not None]
    return f"{number(min(known))} to {number(max(known))}" if known else "-"


def _differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the fields in which configs differ, and those of `_CHOICES` that are not as usual; none that is shown."""
    usual = RunConfig().to_dict()
    return [
        name
        for name, value in usual.items()
        if name not in _SHOWN
        and (
            any(config[name] != configs[0][name] for config in configs)
            or (name in _CHOICES and any(config[name] != value for config in configs))
        )
    ]


def _value(value: Any) -> str:
    """Return the value of a field of the config as text; "-" for none."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {own}" for name, own in value.items()) or "-"
    return "-" if value is None else str(value)


def _absences(summary: Summary | None) -> str:
    """Return how often clients of a run were absent, as text; empty where none was, or it is not known."""
    found = summary and summary.absences
    if not found or not found.steps_missed:
        return ""
    slow = f", slow in {found.rounds_slow:,}" if found.rounds_slow else ""
    of_all = f"{found.steps_missed:,} of {summary.steps * summary.cohort:,}"
    return f"missed {count_text(found.rounds_missed, 'round')}{slow}; {of_all} client steps missed"


def _changes(history: History) -> str:
    """Return which plugins and files a run went on with from when on, as text; empty where they stayed the same."""
    texts = []
    for record in history.changes:
        step = f", step {record['step']}" if record["step"] else ""
        files = (f"{name} ({sha256[:8]})" for name, sha256 in record["files"].items())
        texts.append(f"{', '.join([*map(str, record['plugins']), *files])} after round {record['round']}{step}")
    return "; ".join(texts)


def _cells(run: Run, differing: Sequence[str]) -> dict[str, str]:
    """Return a run's column of the table: texts by the title of their row.

    Args:
        run: the run.
        differing: fields of the config in which runs differ.
    """
    config, history, summary = run.config, run.history, run.summary
    knn = history.trained("knn_top1")
    limited = run.reasons.get("batch_size")
    rate, seconds = (summary.client_steps_per_second, summary.seconds) if summary else (None, None)
    return {
        "preset, method": f"{config['preset']}, {config['method']}",
        "data set": Path(config["dataset"]).name,
        "partition": config["partition"],
        "architecture, cut layer": f"{config['arch']}, {config['cut_layer']}",
        "clients, cohort": f"{config['clients']:,}, {config['cohort']:,}",
        "images per client and step": f"{config['batch_size']:,}" + (f" ({limited})" if limited else ""),
        "rounds": f"{len(history.rounds):,} of {config['rounds']:,}",
        "precision, engine": f"{config['precision']}, {config['engine']}",
        "seed": str(config["seed"]),
        **{name.replace("_", " "): _value(config[name]) for name in differing},
        **({"plugins": ", ".join(map(str, run.plugins))} if run.plugins else {}),
        **({"went on with": changes} if (changes := _changes(history)) else {}),
        "loss": number(history.value("round", "loss"), ".3f"),
        "kNN of raw pixels [%]": number(history.untrained("pixel_knn_top1")),
        "kNN untrained [%]": number(history.untrained("knn_top1")),
        "kNN [%]": number(knn[-1] if knn else None),
        "kNN, best [%]": number(history.best_knn),
        "kNN of classes, lowest to highest [%]": _ends(history.value("evaluation", "class_top1")),
        "kNN of clients, mean, worst tenth, deviation [%]": ", ".join(
            map(number, history.value("evaluation", "clients_top1") or [None])
        ),
        "standard deviation of outputs": f"{run.spreads[-1]} at most" if run.spreads else "-",
        **{f"{kind} probe [%]": number(record["top1"]) for kind, record in history.probes.items()},
        **{
            f"{name} of {decoder}": number(scores.mean, ".3f") + ("" if scores.std is None else f" ± {scores.std:.3f}")
            for decoder, found in run.attacks.items()
            for name, scores in ((SIMILARITIES[found.ssim_borders], found.ssim), ("MSE", found.mse))
        },
        "up, down per client": ", ".join(
            "-" if (sent := history.value("round", f"bytes_{way}_per_client")) is None else bytes_text(sent)
            for way in ("up", "down")
        ),
        **({"absent clients": absences} if (absences := _absences(summary)) else {}),
        "client steps per second": number(rate, ",.0f"),
        "training time": "-" if seconds is None else time_text(seconds),
    }
