"""Between clients and server."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DeviceStatus:
    """How a real device fares that is one of the clients (hw_profile/)."""

    client: int
    presence: str
    """"away", "here", or "at work" in the round under way."""
    steps: int
    """That it has done, as is all else, over all its connections."""
    bytes_up: int
    """Of whole frames."""
    bytes_down: int
    step_seconds: float | None
    """From one of its steps to the next, of the latest steps, as are the others; None before there are any."""
    compute_seconds: float | None
    """Of a step, on the device."""
    network_seconds: float | None
    """Of a step: from the server's message to the device's answer, but for what the device computed."""


class Wire:
    """Carries everything as it is; real devices put in what they sent (hw_profile/).

    Attributes:
        absent: positions in the cohort of clients of whom nothing arrives: the server learns without them, and the
            average is of the others. Never all of them.
    """

    absent: frozenset[int] = frozenset()

    def up(self, smashed_2Nchw: Tensor) -> Tensor:
        """What arrives of what the cohort sent; `absent` is then known. Rows of the absent are not looked at."""
        return smashed_2Nchw

    def down(self, gradient_Nchw: Tensor) -> None:
        """Bring the cohort the gradients of what it sent."""

    def devices(self) -> list[DeviceStatus]:
        """How each real device fares, by client."""
        return []
