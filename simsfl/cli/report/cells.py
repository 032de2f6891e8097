"""The table of runs: what each is, in what their configs differ, and its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simsfl.attacks import SIMILARITIES
from simsfl.cli.report.runs import Run
from simsfl.config import RunConfig
from simsfl.config.plugins import Plugin
from simsfl.runs.fleet_totals import fared, times_known, watt_hours
from simsfl.runs.history import History
from simsfl.runs.records import Summary
from simsfl.system.messages import count_text
from simsfl.ui.fleet import energy_text
from simsfl.ui.spread import collapse
from simsfl.ui.text import bytes_text, number, time_text

_SHOWN = (
    *("preset", "method", "dataset", "data_dir", "partition", "arch", "cut_layer", "clients", "cohort", "batch_size"),
    *("rounds", "precision", "engine", "seed", "device", "epochs", "track"),
)
"""Fields of the config that the table always has, or that say nothing of the results."""
_CHOICES = (
    *("objective", "supervised", "aggregation", "sampler", "dropout", "straggler", "optimizer", "proximal", "defence"),
    *("loss_threshold", "ressfl_lambda", "unequal", "fleet", "deadline", "over_select", "callback", "options"),
)
"""Fields of the config that the table has where they are not as usual."""

_UNRECORDED = "no round is recorded: the run has just begun, or was trained in Python without `simsfl.run`"
"""What is said of a run without records of rounds."""


def notes(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return what readers have to know of runs, with their names: a network has collapsed, or nothing is there."""
    found = [(run.name, warned[1]) for run in runs if (warned := collapse(run.spreads))]
    return found + [(run.name, _UNRECORDED) for run in runs if not run.history.rounds]


def table_of_runs(runs: Sequence[Run]) -> list[list[str]]:
    """Return the rows of the table, with a column for each run: the names of the runs, then its titles and texts."""
    differing = _differing(runs)
    columns = [_cells(run, differing) for run in runs]
    titles = max(columns, key=len) | {title: "" for column in columns for title in column}
    rows = [[title, *(column.get(title, "-") for column in columns)] for title in titles]
    return [["", *(run.name for run in runs)], *rows]


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """Return the rows of a table of all fields, and options, in which the configs of runs differ; empty if in none."""
    configs = [{**run.config, **run.config["options"]} for run in runs]
    names = [name for name in dict.fromkeys(name for config in configs for name in config) if name != "options"]
    rows = []
    for name in names:
        values = [config.get(name) for config in configs]
        if any(value != values[0] for value in values):
            by_rule = [" (by rule)" if name in run.by_rule else "" for run in runs]
            rows.append([name, *(f"{_value(value)}{rule}" for value, rule in zip(values, by_rule, strict=True))])
    return [["field", *(run.name for run in runs)], *rows] if rows else []


def _ends(accuracies: list[float | None] | None) -> str:
    """Return the lowest and the highest of some accuracies as text; those that are None are left out."""
    known = [accuracy for accuracy in accuracies or () if accuracy is not None]
    return f"{number(min(known))} to {number(max(known))}" if known else "-"


def _differing(runs: Sequence[Run]) -> list[str]:
    """Return the fields in which configs differ, and those of `_CHOICES` that are not as usual.

    Fields that the table has anyway are left out, as are those that follow from others by rule in all runs.
    """
    usual, configs = RunConfig().to_dict(), [run.config for run in runs]
    return [
        name
        for name, value in usual.items()
        if name not in _SHOWN
        and not all(name in run.by_rule for run in runs)
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
        plugins = (str(Plugin(**own)) for own in record["plugins"])
        texts.append(f"{', '.join([*plugins, *files])} after round {record['round']}{step}")
    return "; ".join(texts)


def _fleet_cells(history: History, clients: int) -> dict[str, str]:
    """Return what a run took its fleet, as texts by the title of their row.

    Args:
        history: the records, with those of the fleet.
        clients: number of clients of the run.
    """
    wh, server = watt_hours(history.fleet), watt_hours(history.fleet, "server_wh")
    known, least = times_known(history.fleet)
    missing = [
        f"{name} {100 * own[what] / own['drawn']:.1f} % {what}"
        for name, own in fared(history.fleet).items()
        for what in ("late", "away")
        if own[what]
    ]
    return {
        "time of the fleet": time_text(history.value("fleet", "clock")),
        "times of its devices": least if set(known.values()) == {least} else ", ".join(map(" ".join, known.items())),
        "energy per client, of the server": f"{energy_text(wh and wh / clients)}, {energy_text(server)}",
        "of those drawn of each group": ", ".join(missing) or "all came",
    }


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
        **(_fleet_cells(history, config["clients"]) if history.fleet else {}),
        **({"absent clients": absences} if (absences := _absences(summary)) else {}),
        "client steps per second": number(rate, ",.0f"),
        "training time": "-" if seconds is None else time_text(seconds),
    }
