"""Progress of a device that takes part in a simulation: a live panel on a terminal, lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from simsfl.hw_profile.bench.panel import BAR, phase_bars, power_text
from simsfl.hw_profile.devices.device import Device
from simsfl.hw_profile.meters import Sampler, label
from simsfl.hw_profile.meters.stopwatch import Stopwatch
from simsfl.system.console import Output
from simsfl.system.messages import visible

_LATENCY = ("compute", "network", "server")
"""Parts of a step, as in `Device.seconds`."""


class PlainView:
    """Prints a line for each event and for each round."""

    def __init__(self, console: Output):
        self._console = console

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing, since nothing has to be undone."""

    def follow(self, device: Device, watch: Stopwatch, sampler: Sampler) -> None:
        """Set the device to report on."""
        self._device = device

    def tell(self, text: str) -> None:
        """Print an event."""
        self._console.say(text)

    def step_done(self, round_index: int, step: int) -> None:
        """Print a line after the last step of a round."""
        device = self._device
        if step + 1 == device.steps:
            self.tell(f"round {round_index + 1}: {device.done:,} steps so far; a step: {latency_text(device)}")


class LiveView:
    """A panel that is redrawn four times a second."""

    def __init__(self, console: Output):
        self._said, self._device = "", None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, screen=True)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, error, at)

    def follow(self, device: Device, watch: Stopwatch, sampler: Sampler) -> None:
        """Set what to show."""
        self._watch, self._sampler, self._device = watch, sampler, device

    def tell(self, text: str) -> None:
        """Show an event in place of the connection's state."""
        self._said = text

    def step_done(self, round_index: int, step: int) -> None:
        """Do nothing, since the panel reads the device's state whenever it is redrawn."""

    def _render(self) -> Panel:
        device = self._device
        if device is None:
            return Panel(Text(self._said))
        rows = Table.grid(padding=(0, 2))
        rows.add_column(min_width=12, style="bold")
        rows.add_column()
        for name, shown in self._rows(device).items():
            rows.add_row(name, shown)
        parts: list[Any] = [rows]
        latest = self._watch.latest()
        if latest:
            parts += [Text(""), Text("the latest step", style="dim"), phase_bars(latest)]
        who = f"client {device.client} of run {device.run} at {device.server}" if device.run else device.server
        return Panel(Group(*parts), title=Text(visible(who)), padding=(1, 2))

    def _rows(self, device: Device) -> dict[str, Any]:
        """Return the content of the panel's rows by their names; the device goes on working meanwhile."""
        round_index, step, steps = device.round, device.step, device.steps
        at_work = None not in (round_index, step, steps)
        if not device.connected:
            state = Text(self._said or "trying to reach the server", style="yellow")
        else:
            state = Text("at work" if at_work else "waiting for a round that this client is in", style="green")
        rows: dict[str, Any] = {"connection": state}
        if at_work:
            rows["round"] = f"{round_index + 1}, step {step + 1} of {steps}"
            rows[""] = ProgressBar(total=steps, completed=step, width=BAR)
        spent = sum(dict(device.seconds).values())
        rows["steps"] = f"{device.done:,}" + (f"  ({1 / spent:,.1f} a second in a round)" if spent else "")
        rows["bytes"] = f"{device.up / 1e6:,.2f} MB sent, {device.down / 1e6:,.2f} MB received"
        if device.seconds:
            rows["a step"] = latency_text(device)
        if self._sampler.latest:
            rows["power"] = power_text(self._sampler.latest, label(self._sampler.meter))
        return rows


def latency_text(device: Device) -> str:
    """Return the parts of a step in milliseconds, as text."""
    return ", ".join(f"{part} {1000 * device.seconds[part]:.2f} ms" for part in _LATENCY if part in device.seconds)
