"""Runs of one setting: those that differ in their seed alone, called by what tells them from the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rich.table import Table

from simsfl.attacks import SIMILARITIES
from simsfl.cli.report.runs import Run
from simsfl.config import RunConfig
from simsfl.config.catalogue import METHODS
from simsfl.runs.fleet_totals import watt_hours
from simsfl.system.messages import count_text
from simsfl.ui.text import mean_text

_INCIDENTAL = ("preset", "seed", "device", "data_dir", "eval_every", "checkpoint_every", "callback", "epochs", "track")
"""Fields of the config in which repetitions of one setting may differ."""
_SMALL = ("loss", "SSIM", "MSE", "fleet", "client")
"""First words of measures that are shown with three decimals."""

_FILES = ("dataset", "aux_dataset", "init_client", "init_backbone", "fleet")
"""Fields of the config that may be paths, of which the name is shown."""


def accuracy(run: Run) -> float | None:
    """Return the accuracy of a run's linear probe, or that of kNN without one, in percent; None if it has neither."""
    probe = run.history.probes.get("linear")
    return probe["top1"] if probe else run.history.value("evaluation", "knn_top1")


def measures(run: Run) -> dict[str, float]:
    """Return the results of a run that are averaged over seeds, by name; those that it does not have are left out."""
    history = run.history
    knn = history.trained("knn_top1")
    found = {
        "loss": history.value("round", "loss"),
        "kNN [%]": knn[-1] if knn else None,
        "kNN, best [%]": history.best_knn,
        **{f"{kind} probe [%]": record["top1"] for kind, record in history.probes.items()},
        "fleet [h]": None if (clock := history.value("fleet", "clock")) is None else clock / 3600,
        "client [Wh]": None if (wh := watt_hours(history.fleet)) is None else wh / run.config["clients"],
        **{
            f"{name} of {title}": scores.mean
            for title, attack in run.attacks.items()
            for name, scores in ((SIMILARITIES[attack.ssim_borders], attack.ssim), ("MSE", attack.mse))
        },
    }
    return {name: value for name, value in found.items() if value is not None}


def measure_text(values: Sequence[float], measure: str) -> str:
    """Return the mean of a measure, and its standard deviation if there are several values; "-" if there are none."""
    return mean_text(values, ".3f" if measure.split(" ", maxsplit=1)[0] in _SMALL else ".2f")


def repeated(settings: Mapping[str, Sequence[Run]]) -> bool:
    """Return whether some setting was run with several seeds."""
    return any(len(runs) > 1 for runs in settings.values())


def summary_table(settings: Mapping[str, Sequence[Run]]) -> Table:
    """Return a table with a row for each setting: its seeds, and mean and standard deviation of each measure."""
    found = {label: [measures(run) for run in runs] for label, runs in settings.items()}
    names = list(dict.fromkeys(name for own in found.values() for one in own for name in one))
    table = Table()
    for column in ("setting", "seeds", "steps", *names):
        left = column == "setting"
        table.add_column(column, justify="left" if left else "right", no_wrap=not left)
    for label, runs in settings.items():
        cells = [measure_text([one[name] for one in found[label] if name in one], name) for name in names]
        table.add_row(label, seeds_text(runs), steps_text(runs), *cells)
    return table


def steps_text(runs: Sequence[Run]) -> str:
    """Return how many steps runs have done, as text; where they differ, the fewest and the most."""
    done = [run.steps[-1] for run in runs]
    if not done:
        return "-"
    return f"{min(done):,}" + (f" to {max(done):,}" if max(done) > min(done) else "")


def seeds_text(runs: Sequence[Run]) -> str:
    """Return the seeds of runs, and how many of the runs have not ended."""
    open_ = sum(run.summary is None for run in runs)
    return ", ".join(str(run.config["seed"]) for run in runs) + (f" ({open_} unfinished)" if open_ else "")


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each setting, by a text that says in what it differs from the others.

    Where a setting has one seed twice, its runs are no repetitions, and each stands for itself under its own name.
    """
    keys = [setting(run.config) for run in runs]
    names = [name for name in dict.fromkeys(name for key in keys for name in key) if _differs(keys, name)]
    together: dict[tuple, list[Run]] = {}
    for run, key in zip(runs, keys, strict=True):
        together.setdefault(tuple(str(key.get(name)) for name in names), []).append(run)
    if len(together) == 1 and (len(runs) == 1 or len({run.config["seed"] for run in runs}) == len(runs)):
        return {runs[0].name if len(runs) == 1 else f"{len(runs)} seeds": list(runs)}
    found: dict[str, list[Run]] = {}
    for label, own in zip(_labels(list(together.values()), names), together.values(), strict=True):
        if len({run.config["seed"] for run in own}) < len(own):
            found |= {", ".join(filter(None, [label, run.name])): [run] for run in own}
        else:
            found[label] = own
    return found


def _labels(settings: Sequence[Sequence[Run]], names: Sequence[str]) -> list[str]:
    """Return what tells settings apart as texts, all different.

    A text leaves out what a setting has by rule, such as the rate of clients that follows from the server's, unless
    nothing would be left, or another setting's text would be the same.

    Args:
        settings: the runs of each setting.
        names: the fields in which settings differ.
    """
    keys = [setting(own[0].config) for own in settings]
    asked = [[name for name in names if not all(name in run.by_rule for run in own)] for own in settings]
    short = list(map(_label, keys, asked))
    whole = [_label(key, names) for key in keys]
    none = "none of these" if len(names) > 1 else f"no {_words(names[0])}" if names else ""
    labels: list[str] = []
    for brief, full in zip(short, whole, strict=True):
        label = (brief if short.count(brief) == 1 else full) or full or none
        # what differs has the same text, such as two files of one name
        others = (f"{label} ({number})" for number in count(2))
        labels.append(label if label not in labels else next(other for other in others if other not in labels))
    return labels


def _label(key: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return some fields of a setting as a text; those that it does not have, or that are off, are left out."""
    return ", ".join(filter(None, (_text(name, key[name]) for name in names if name in key)))


def counted(settings: Mapping[str, Sequence[Run]]) -> dict[str, Sequence[Run]]:
    """Return the runs of each setting, by a label that says how many they are, where their numbers differ."""
    if len({len(own) for own in settings.values()}) == 1:
        return dict(settings)
    return {f"{label} ({count_text(len(own), 'seed')})": own for label, own in settings.items()}


def setting(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that a setting consists of, with its options among them."""
    usual = RunConfig().to_dict()
    fields = {name: value for name, value in config.items() if name in usual and name not in _INCIDENTAL}
    by_rule = "supervised" if config["supervised"] else METHODS[config["method"]].objective
    fields["objective"] = config["objective"] or by_rule
    return fields | fields.pop("options", {})


def _differs(settings: Iterable[Mapping[str, Any]], name: str) -> bool:
    """Return whether settings differ in a field, which some may not have."""
    return len({str(setting.get(name)) for setting in settings}) > 1


def _text(name: str, value: Any) -> str:
    """Return what a field is as text: names stand for themselves, and what is turned off for nothing."""
    if value is None or value is False or (value == 0 and getattr(RunConfig(), name, 0) == 0):
        return ""
    if isinstance(value, str):
        return Path(value).stem if name in _FILES else value
    words = _words(name)
    return words if value is True else f"{words} {value:g}"


def _words(name: str) -> str:
    """Return the name of a field as text."""
    return name.rpartition(".")[2].replace("_", " ")
