"""What was measured, as figures with their sources: the content of ``result.json``, tables and a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from simsfl.hw_profile.bench.plots import bars, curve
from simsfl.hw_profile.runtimes.client_work import PHASES
from simsfl.system.messages import count_text, fixed

_PAPER = {"memory_mb": {1: 0.8, 2: 3.2}, "watts": 2.26, "mah": 9100}
"""Figures of Li et al. (ICLR 2023) on a Raspberry Pi 4B.

They are megabytes of memory by cut layer, mean power in watts, and the charge of a session in mAh at 5 V."""
_BATTERY_WH = 37.0
"""Energy of a power bank of 10,000 mAh at 3.7 V, in watt-hours."""
_USB_VOLTS = 5.0
_MB = 1e6


def session(about: Mapping[str, Any], step_seconds: float) -> dict[str, Any]:
    """Return the figures of a whole session at this pace: steps, seconds, bytes sent and received; no energy yet.

    Args:
        about: the content of a trace's ``trace.json``.
        step_seconds: mean seconds per step.
    """
    seconds = about["session"]["steps"] * step_seconds
    return {**about["session"], "seconds": seconds, "wh": None, "mah_at_5v": None, "share_of_10000_mah": None}


def with_charge(session: Mapping[str, Any], watts: float | None, source: str) -> dict[str, Any]:
    """Return the session with its energy at a constant power.

    Args:
        session: figures that `session` returns.
        watts: mean power; None where it is not known, so that there is no energy.
        source: where the power comes from, for people.
    """
    wh = None if watts is None else watts * session["seconds"] / 3600
    return {
        **session,
        "wh": wh,
        "mah_at_5v": None if wh is None else 1000 * wh / _USB_VOLTS,
        "share_of_10000_mah": None if wh is None else wh / _BATTERY_WH,
        "charge_source": source,
    }


def operations(about: Mapping[str, Any], batch_size: int, latency: Mapping[str, Any], done: Mapping[str, Any]) -> Any:
    """Return floating-point operations per step, per second by phase and in all, and as a share of the machine's peak.

    Args:
        about: the content of a trace's ``trace.json``.
        batch_size: images per step.
        latency: times of the step and of each phase (`Times.spread`).
        done: the report of the worker at its end, with its ``peak_flops``.
    """
    phases = {phase: batch_size * count for phase, count in about["cost"]["flops"].items() if phase in latency}
    total = sum(phases.values())
    rate = total / latency["step"]["mean"]
    return {
        "per_step": total,
        "per_second": rate,
        "phases_per_second": {phase: count / latency[phase]["mean"] for phase, count in phases.items()},
        "peak_per_second": done["peak_flops"],
        "peak_source": "measured: the best of several products of large matrices, in fp32, with as many threads",
        "share_of_peak": rate / done["peak_flops"],
    }


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Return two tables: the times of each phase, and all other figures beside the paper's."""
    return [_latency_table(result), _summary_table(result)]


def _latency_table(result: Mapping[str, Any]) -> Table:
    """Return the table of the times of each phase and of the step."""
    flops = result["operations"]["phases_per_second"]
    table = Table(title=f"A step of {result['steps']:,}: {_what(result)}", box=SIMPLE)
    for column in ("", "median [ms]", "p95 [ms]", "share", "GFLOP/s"):
        table.add_column(column, justify="right" if column else "left")
    latency = result["latency"]
    for phase in (*PHASES, "step"):
        if phase not in latency:
            continue
        own = latency[phase]
        share = (
            "" if phase == "step" else f"{own['mean'] * own['count'] / latency['step']['mean'] / result['steps']:.0%}"
        )
        rate = flops[phase] / 1e9 if phase in flops else None
        if phase == "step":
            rate = result["operations"]["per_second"] / 1e9
        table.add_row(
            phase,
            f"{1000 * own['median']:.3f}",
            f"{1000 * own['p95']:.3f}",
            share,
            "" if rate is None else f"{rate:.2f}",
            style="bold" if phase == "step" else "",
        )
    return table


def _summary_table(result: Mapping[str, Any]) -> Table:
    """Return a table with a row for each figure: here, in the paper, and its source."""
    energy = result["energy"]
    caption = f"{energy['meter']}: {energy['source']}" if energy else None
    table = Table(title=result["board"]["model"], caption=caption, box=SIMPLE)
    table.add_column("")
    table.add_column("here", justify="right")
    table.add_column("paper", justify="right")
    table.add_column("source")
    for row in _summary(result):
        table.add_row(*row)
    return table


def _summary(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return a row for each figure: name, value here, value in the paper, source."""
    return [*_work_rows(result), *_power_rows(result), *_session_rows(result), *_board_rows(result)]


def _work_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of the summary as `_summary` does: agreement, speed and memory."""
    memory, speed, verified = result["memory"], result["operations"], result["verified"]
    above, paper = memory["process_above_idle"], result["trace"]["paper"]
    published = _PAPER["memory_mb"].get(result["trace"]["cut_layer"]) if paper else None
    return [
        (
            "agreement",
            f"{max(verified['activations'], verified['weights']):.1e}",
            "",
            f"largest relative difference of activations and weights from the trace; allowed {verified['tolerance']:g}",
        ),
        (
            "speed",
            f"{speed['per_second'] / 1e9:.2f} GFLOP/s",
            "",
            f"{speed['share_of_peak']:.1%} of the {speed['peak_per_second'] / 1e9:.1f} GFLOP/s of matrix products",
        ),
        (
            "memory, tensors",
            f"{memory['tensors'] / _MB:.2f} MB",
            f"{published} MB" if published else "",
            f"{memory['tensors_source']}; estimated {memory['estimated'] / _MB:.2f} MB",
        ),
        (
            "memory, process",
            "-" if above is None else f"{fixed(above / _MB, 1)} MB",
            "",
            "the system does not report it"
            if above is None
            else "private memory above the idle process, runtime and trace loaded",
        ),
    ]


def _power_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of the summary as `_summary` does: power and energy."""
    energy, published = result["energy"], f"{_PAPER['watts']} W" if result["trace"]["paper"] else ""
    if energy is None:
        return [("power", "-", published, result["energy_note"])]
    source, step = energy["label"], result["latency"]["step"]["mean"]
    above = energy["above_idle_watts"]
    spread = energy["uncertainty_joules_above_idle"] / energy["seconds"]
    remarks = [source]
    if energy["failed_readings"]:
        remarks.append(f"{count_text(energy['failed_readings'], 'reading')} failed")
    if energy["warning"]:
        remarks.append(energy["warning"])
    power = ("power", f"{fixed(energy['mean_watts'], 2)} W", published, "; ".join(remarks))
    if energy["below_zero"]:  # nothing can be computed from a power with the wrong sign
        return [power]
    return [
        power,
        (
            "power above idle",
            f"{fixed(above, 2)} W",
            "",
            f"±{spread:.2f} W, {source}; idle {fixed(energy['idle_before'], 2)} W before, "
            f"{fixed(energy['idle_after'], 2)} W after",
        ),
        (
            "energy of a step",
            f"{fixed(1000 * energy['mean_watts'] * step, 2)} mJ",
            "",
            f"{source}; above idle {fixed(1000 * above * step, 2)} mJ ±{1000 * spread * step:.2f} mJ",
        ),
    ]


def _session_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of the summary as `_summary` does: a whole session."""
    whole, paper = result["session"], result["trace"]["paper"]
    rows = [
        (
            "session",
            duration(whole["seconds"]),
            "",
            f"{count_text(whole['steps'], 'step')} of a client in a whole run, at the mean pace; without server and "
            "network",
        ),
        (
            "traffic",
            f"{whole['bytes_up'] / _MB:,.1f} / {whole['bytes_down'] / _MB:,.1f} MB",
            "",
            "sent / received in a session, by the cost model",
        ),
    ]
    if whole["wh"] is not None:
        rows.append(
            (
                "charge of a session",
                f"{whole['mah_at_5v']:,.0f} mAh",
                f"{_PAPER['mah']:,} mAh" if paper else "",
                f"{whole['charge_source']}; at 5 V: {whole['wh']:.2f} Wh, {whole['share_of_10000_mah']:.1%} of a power "
                "bank of 10,000 mAh",
            )
        )
    return rows


def _board_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of the summary as `_summary` does: temperature and throttling of the board."""
    rows, temperature, flags = [], result["temperature"], result["throttling"]
    if temperature is not None:
        first = f"{temperature['first']:.0f} °C at the start; the system's thermal zone of the processor"
        rows.append(("temperature", f"{temperature['highest']:.0f} °C", "", first))
    if flags is None:
        rows.append(("throttling", "-", "", "the board does not report it"))
    else:
        words = f"{', '.join(flags)}: figures are not the board's best" if flags else "in this run, by vcgencmd"
        rows.append(("throttling", "yes" if flags else "none", "", words))
    return rows


def duration(seconds: float) -> str:
    """Return a time in hours, minutes, seconds or milliseconds as text, in the largest unit that gives 1 or more."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _what(result: Mapping[str, Any]) -> str:
    """Return a short description of what was run."""
    trace = result["trace"]
    narrowed = f" {trace['bottleneck']}" if trace["bottleneck"] else ""
    return (
        f"{trace['arch']}, cut layer {trace['cut_layer']}{narrowed}, batch {trace['batch_size']}, {result['runtime']}, "
        f"{result['dtype']}, {count_text(result['threads'], 'thread')}"
    )


def report(result: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the report as Markdown, and its plots as SVG by file name."""
    board, latency = result["board"], result["latency"]
    phases = [phase for phase in PHASES if phase in latency]
    plots = {
        "latency.svg": bars(
            "Milliseconds by phase: median, line to p95",
            {phase: 1000 * latency[phase]["median"] for phase in phases},
            "ms",
            {phase: 1000 * latency[phase]["p95"] for phase in phases},
        ),
        "memory.svg": bars(
            "Memory of the client's training, estimated by category, and measured",
            {name: size / 1000 for name, size in result["memory"]["by_category"].items()}
            | {
                "all, estimated": result["memory"]["estimated"] / 1000,
                "all, measured": result["memory"]["tensors"] / 1000,
            },
            "kB",
        ),
    }
    if result["readings"]:
        spans = {name: tuple(span) for name, span in result["spans"].items()}
        source = "estimated" if result["energy"]["estimated"] else result["energy"]["meter"]
        plots["power.svg"] = curve(f"Power ({source})", result["readings"], "watts", spans)
    lines = [f"# {board['model']}: {_what(result)}", ""]
    lines += [f"{name}: {value}  " for name, value in _facts(result).items()]
    lines += ["", "| | here | paper | source |", "|---|--:|--:|---|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in _summary(result)]
    if result["energy"]:
        lines += ["", f"Power by {result['energy']['meter']}: {result['energy']['source']}."]
    lines += ["", "| phase | median [ms] | p95 [ms] |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {1000 * latency[name]['median']:.3f} | {1000 * latency[name]['p95']:.3f} |"
        for name in [*phases, "step"]
    ]
    lines += [""] + [f"![{name.removesuffix('.svg')}]({name})" for name in plots]
    return "\n".join(lines) + "\n", plots


def _facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of the machine, and the versions of what ran on it."""
    known = {name: value for name, value in result["board"].items() if value is not None and name != "model"}
    return known | result["versions"]
