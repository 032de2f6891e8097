"""What was measured, as figures with their source: the content of ``result.json``, and tables and a report of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from client_work import PHASES
from plots import bars, curve

PAPER = {"memory_mb": {1: 0.8, 2: 3.2}, "watts": 2.26, "mah": 9100}
"""Li et al., ICLR 2023, on a Raspberry Pi 4B: memory by cut layer, mean power, charge of a session at 5 V."""
BATTERY_WH = 37.0
"""A power bank of 10,000 mAh at 3.7 V."""
USB_VOLTS = 5.0
MB = 1e6


def session(about: Mapping[str, Any], step_seconds: float) -> dict[str, float | None]:
    """A whole session at this pace: steps, seconds, what it sends and receives."""
    seconds = about["session"]["steps"] * step_seconds
    return {**about["session"], "seconds": seconds, "wh": None, "mah_at_5v": None, "share_of_10000_mah": None}


def with_charge(session: Mapping[str, float | None], watts: float) -> dict[str, float | None]:
    """The same with its energy at so much power."""
    wh = watts * session["seconds"] / 3600
    return {**session, "wh": wh, "mah_at_5v": 1000 * wh / USB_VOLTS, "share_of_10000_mah": wh / BATTERY_WH}


def operations(about: Mapping[str, Any], batch_size: int, latency: Mapping[str, Any], done: Mapping[str, Any]) -> Any:
    """Floating-point operations of a step and its phases, a second, and as a share of the machine's peak."""
    phases = {phase: batch_size * count for phase, count in about["cost"]["flops"].items() if phase in latency}
    total = sum(phases.values())
    rate = total / latency["step"]["median"]
    return {
        "per_step": total,
        "per_second": rate,
        "phases_per_second": {phase: count / latency[phase]["median"] for phase, count in phases.items()},
        "peak_per_second": done["peak_flops"],
        "peak_source": "measured: the best of several products of matrices of 768x768, in fp32, on as many threads",
        "share_of_peak": rate / done["peak_flops"],
    }


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Latency by phase; everything else, beside the paper."""
    return [latency_table(result), summary_table(result)]


def latency_table(result: Mapping[str, Any]) -> Table:
    """Of each phase and of the step."""
    flops = result["operations"]["phases_per_second"]
    table = Table(title=f"A step of {result['steps']:,}: {what(result)}", box=SIMPLE)
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


def summary_table(result: Mapping[str, Any]) -> Table:
    """One row a figure: here, in the paper, where it is from."""
    energy = result["energy"]
    caption = f"{energy['meter']}: {energy['source']}" if energy else None
    table = Table(title=f"{result['board']['model']}", caption=caption, box=SIMPLE)
    table.add_column("")
    table.add_column("here", justify="right")
    table.add_column("paper", justify="right")
    table.add_column("source")
    for row in summary(result):
        table.add_row(*row)
    return table


def summary(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, figure here, the paper's, source."""
    memory, operations_, energy = result["memory"], result["operations"], result["energy"]
    whole, verified, cut = result["session"], result["verified"], result["trace"]["cut_layer"]
    paper_memory = PAPER["memory_mb"].get(cut) if result["trace"]["paper"] else None
    above = memory["process_above_idle"]
    rows = [
        (
            "agreement",
            f"{max(verified['activations'], verified['weights']):.1e}",
            "",
            f"largest relative difference of activations and weights from the trace; allowed {verified['tolerance']:g}",
        ),
        (
            "speed",
            f"{operations_['per_second'] / 1e9:.2f} GFLOP/s",
            "",
            f"{operations_['share_of_peak']:.1%} of {operations_['peak_per_second'] / 1e9:.1f}: a matrix product here",
        ),
        (
            "memory, tensors",
            f"{memory['tensors'] / MB:.2f} MB",
            "" if paper_memory is None else f"{paper_memory} MB",
            f"{memory['tensors_source']}; reckoned {memory['reckoned'] / MB:.2f} MB",
        ),
        (
            "memory, process",
            "-" if above is None else f"{above / MB:.1f} MB",
            "",
            "private memory above the idle process, runtime and trace loaded",
        ),
    ]
    if energy is None:
        rows.append(("power", "-", f"{PAPER['watts']} W", result["energy_note"]))
    else:
        mark = "estimated, " if energy["estimated"] else ""
        rows += [
            (
                "power",
                f"{energy['mean_watts']:.2f} W",
                f"{PAPER['watts']} W",
                f"{mark}{energy['meter']}, ±{energy['uncertainty']:.0%}",
            ),
            (
                "power above idle",
                f"{energy['above_idle_watts']:.2f} W",
                "",
                f"idle {energy['idle_before']:.2f} W before, {energy['idle_after']:.2f} W after",
            ),
            (
                "energy of a step",
                f"{1000 * energy['joules'] / result['steps']:.2f} mJ",
                "",
                f"{1000 * energy['joules_above_idle'] / result['steps']:.2f} mJ above idle, "
                f"±{1000 * energy['uncertainty_joules_above_idle'] / result['steps']:.2f}",
            ),
        ]
    rows += [
        (
            "session",
            duration(whole["seconds"]),
            "",
            f"{whole['steps']:,} steps at the median; the server and network not counted",
        ),
        (
            "traffic",
            f"{whole['bytes_up'] / MB:,.1f} MB up",
            "",
            f"{whole['bytes_down'] / MB:,.1f} MB down, by the cost model",
        ),
    ]
    if whole["wh"] is not None:
        rows.append(
            (
                "charge of a session",
                f"{whole['mah_at_5v']:,.0f} mAh",
                f"{PAPER['mah']:,} mAh",
                f"at 5 V: {whole['wh']:.2f} Wh, {whole['share_of_10000_mah']:.1%} of a power bank of 10,000 mAh",
            )
        )
    temperature = result["temperature"]
    if temperature is not None:
        rows.append(
            ("temperature", f"{temperature['highest']:.0f} °C", "", f"{temperature['first']:.0f} °C at the start")
        )
    if result["throttling"]:
        rows.append(("throttling", "yes", "", f"{', '.join(result['throttling'])}: figures are not the board's best"))
    return rows


def duration(seconds: float) -> str:
    """In the largest unit of which there is one."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def what(result: Mapping[str, Any]) -> str:
    """What was run, in a few words."""
    trace = result["trace"]
    narrowed = f" {trace['bottleneck']}" if trace["bottleneck"] else ""
    return (
        f"{trace['arch']}, cut layer {trace['cut_layer']}{narrowed}, batch {trace['batch_size']}, {result['runtime']}, "
        f"{result['dtype']}, threads {result['threads']}"
    )


def report(result: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The Markdown report, and its plots as SVG by file name."""
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
            "Memory of the client's training, reckoned by category, and measured",
            {name: size / 1000 for name, size in result["memory"]["by_category"].items()}
            | {
                "all, reckoned": result["memory"]["reckoned"] / 1000,
                "all, measured": result["memory"]["tensors"] / 1000,
            },
            "kB",
        ),
    }
    if result["readings"]:
        spans = {name: tuple(span) for name, span in result["spans"].items()}
        source = "estimated" if result["energy"]["estimated"] else result["energy"]["meter"]
        plots["power.svg"] = curve(f"Power ({source})", result["readings"], "watts", spans)
    lines = [f"# {board['model']}: {what(result)}", ""]
    lines += [f"{name}: {value}  " for name, value in facts(result).items()]
    lines += ["", "| | here | paper | source |", "|---|--:|--:|---|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in summary(result)]
    if result["energy"]:
        lines += ["", f"Power by {result['energy']['meter']}: {result['energy']['source']}."]
    lines += ["", "| phase | median [ms] | p95 [ms] |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {1000 * latency[name]['median']:.3f} | {1000 * latency[name]['p95']:.3f} |"
        for name in [*phases, "step"]
    ]
    lines += [""] + [f"![{name.removesuffix('.svg')}]({name})" for name in plots]
    return "\n".join(lines) + "\n", plots


def facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of the machine and what ran on it."""
    known = {name: value for name, value in result["board"].items() if value is not None and name != "model"}
    return known | result["versions"]
