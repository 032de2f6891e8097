"""What ``run.py`` prints before and after training: the settings of a run, its results, and where its files are."""

from __future__ import annotations

import torch
from rich.panel import Panel

from simsfl.cli.session import Session
from simsfl.config import PRECISIONS, plugins
from simsfl.config.catalogue import TRACKERS
from simsfl.runs.directory import RunDirectory
from simsfl.runs.records import Summary
from simsfl.simulation import Simulation
from simsfl.system.console import Output
from simsfl.system.messages import count_text
from simsfl.system.programs import command
from simsfl.ui.text import number, time_text

_ENGINE_NOTES = {
    "fused": "the cohort stacked into one batched program, with simsfl's operators",
    "vmap": "the cohort stacked into one batched program, with PyTorch's operators",
    "loop": "one client after another, the slow reference",
}
"""Explanation that is printed with each engine."""


def announce(session: Session, why: dict[str, str]) -> None:
    """Print the run's settings.

    Args:
        session: the run.
        why: reasons for preset, dataset, device, precision, engine and batch size, by name; the last may be empty.
    """
    console, simulation, config = session.console, session.simulation, session.simulation.config
    data, sizes = simulation.dataset, simulation.parts.partition.sizes
    device = (
        count_text(torch.get_num_threads(), "thread")
        if simulation.parts.device.type == "cpu"
        else torch.cuda.get_device_name(simulation.parts.device)
    )
    if not simulation.parts.world.alone:
        device = f"{count_text(simulation.parts.world.size, 'rank')}, {device} each"
    held = ("" if sizes.min() == sizes.max() else f"{sizes.min():,} to ") + count_text(sizes.max(), "image")
    batches = " or ".join(count_text(group.batch_size, "image") for group in simulation.parts.groups)
    limited = f" ({why['batch_size']})" if why["batch_size"] else ""
    unused = len(data.held) - sizes.sum()
    train = f"{data.unlabelled:,} unlabelled and " if data.unlabelled else ""
    train += f"{len(data.train_labels):,} {'labelled ' if data.unlabelled else ''}train"
    model = simulation.model
    if why["dataset"] == "auto" and data.name == "shapes":
        banner = "CIFAR-10 is not available: this run uses the built-in shapes instead."
        console.print(Panel(banner, style="bold yellow"))
    for name, value, note in (
        ("preset", config.preset, why["preset"]),
        (
            "dataset",
            data.name,
            f"{why['dataset']}: {data.origin}; {train}, {len(data.test):,} test images of "
            f"{data.image_size}x{data.image_size}",
        ),
        ("device", config.device, f"{why['device']}; {device}"),
        ("precision", config.precision, f"{why['precision']}; {PRECISIONS[config.precision].note}"),
        ("engine", config.engine, f"{why['engine']}; {_ENGINE_NOTES[config.engine.partition(':')[0]]}"),
        (
            "clients",
            f"{config.clients:,}",
            f"cohort {config.cohort:,}; {config.partition}, {held} each"
            + (f", {count_text(unused, 'image')} unused" if unused else "")
            + _auxiliary_text(simulation),
        ),
        (
            "model",
            config.arch,
            f"width {config.width}, cut layer {config.cut_layer}; {model.client.size:,} parameters on a client, "
            f"{model.server.size:,} on the server",
        ),
        (
            "schedule",
            count_text(config.rounds, "round"),
            f"{count_text(simulation.parts.steps, 'step')} each, {batches} per client and step{limited}, "
            f"{count_text(min(config.syncs_per_round, simulation.parts.steps), 'averaging')}",
        ),
        ("output", session.directory.path, ""),
    ):
        console.say(f"{name:<9} ", (str(value), "bold"), "  ", (note, "dim"))


def _auxiliary_text(simulation: Simulation) -> str:
    """Return a text on each client's images of the auxiliary data set; empty for a run without such a data set."""
    if simulation.parts.auxiliary is None:
        return ""
    held = int(simulation.parts.auxiliary.sizes.min())
    return f"; {count_text(held, 'image')} of {simulation.config.aux_dataset} each"


def conclude(console: Output, directory: RunDirectory, summary: Summary) -> None:
    """Print the results of a finished run, and where its files are."""
    probes = "".join(f", {kind} probe {probe.top1:.2f} %" for kind, probe in summary.probes.items())
    measured = (summary.knn_top1, summary.knn_top1_untrained, summary.knn_top1_pixels)
    knn, untrained, pixels = (number(accuracy, ".2f", " %") for accuracy in measured)
    trained = f"after {summary.steps:,} steps, {time_text(summary.seconds)} of training"
    console.print()
    console.say("kNN ", (knn, "bold green"), f"{probes}  (untrained {untrained}, raw pixels {pixels}) ", trained)
    path = directory.path
    for name, text in (
        ("config.json", "the settings of the run"),
        ("metrics.jsonl", "every step, round and evaluation"),
        ("summary.json", "the figures above and more"),
        ("checkpoints", "final state"),
        ("trace.json", "profile, for chrome://tracing or ui.perfetto.dev"),
        *((name, f"the records, for {name}") for name in TRACKERS),
    ):
        if (path / name).exists():
            console.say(f"  {path / name}  ", (text, "dim"))
    console.say_command("draw figures with:", [*command("report"), *plugins.flags(), str(path)])
