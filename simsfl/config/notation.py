"""Settings that are written as a short string, in the published program's notation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from simsfl.system.messages import shortened


@dataclass(frozen=True)
class Bottleneck:
    """Layers at the cut that narrow the smashed data, on the client, and widen it again, on the server."""

    channels: int
    stride: int = 1
    """A power of two; above 1 as many convolutions of stride 2 as it takes."""
    kernel: int = 3
    """Odd."""
    relu: bool = True
    """Behind each convolution."""

    @classmethod
    def parse(cls, text: str) -> Bottleneck:
        """From ``K3C4S2noReLU``: kernel, channels, stride; all but the channels may be left out.

        Raises:
            ValueError: it is not of that form.
        """
        match = re.fullmatch(r"(?:K(\d+))?C(\d+)(?:S(\d+))?(no_?relu)?", text, re.IGNORECASE)
        kernel, channels, stride = (
            (int(part) if part else default for part, default in zip(match.groups(), (3, 0, 1), strict=False))
            if match
            else (0, 0, 0)
        )
        if not (
            kernel % 2 and channels and stride and stride & (stride - 1) == 0 and max(kernel, channels, stride) < 10_000
        ):
            raise ValueError(
                f"bottleneck: {shortened(text)!r} is none; allowed: such as C4S2, K3C4S2 or C8noReLU "
                "(odd kernel, channels, stride 1, 2, 4, 8, ...)"
            )
        return cls(channels, stride, kernel, match[4] is None)


@dataclass(frozen=True)
class Unequal:
    """Two kinds of clients: rich ones with larger batches and more data, and poor ones."""

    rich_clients: float
    """Their share of the clients."""
    batch_factor: int
    """Their batches are so many times as large."""
    rich_data: float
    """The share of the data that they hold together."""

    @classmethod
    def parse(cls, text: str) -> Unequal:
        """From ``0.2_0.8|16|0.8_0.2``: shares of the clients, factor, shares of the data; rich before poor.

        Raises:
            ValueError: it is not of that form, or shares do not add up to 1.
        """
        try:
            clients, factor, data = text.split("|")
            (rich, poor), (much, little) = (tuple(map(float, part.split("_"))) for part in (clients, data))
            shares = [rich, poor, much, little]
            right = factor.isdecimal() and 1 <= int(factor) < 10_000 and all(0 < share < 1 for share in shares)
            right = right and abs(rich + poor - 1) < 1e-6 and abs(much + little - 1) < 1e-6
        except ValueError:
            right = False
        if not right:
            raise ValueError(
                f"unequal: {shortened(text)!r} is not right; allowed: such as 0.2_0.8|16|0.8_0.2 (shares of rich and "
                "poor clients, batch factor of the rich, shares of the data; shares add up to 1)"
            )
        return cls(rich, int(factor), much)

    def rich(self, clients: int) -> int:
        """How many of so many clients are rich: one at least, and not all."""
        return min(max(round(self.rich_clients * clients), 1), clients - 1)

    def weights(self, clients: int) -> list[float]:
        """Relative amount of data of each client, the rich first."""
        rich = self.rich(clients)
        return [self.rich_data / rich] * rich + [(1 - self.rich_data) / (clients - rich)] * (clients - rich)


@dataclass(frozen=True)
class Decoder:
    """The network with which an attacker turns smashed data back into images."""

    kind: str
    """custom, conv_norm or res_norm."""
    depth: int = 0
    """Layers or blocks that leave the size of the maps as it is, besides those there always are."""
    channels: int = 0
    """Inside, where it is not custom."""

    @classmethod
    def parse(cls, text: str, field: str = "decoder") -> Decoder:
        """From ``custom``, ``conv_normN4C64`` or ``res_normN4C64``: depth and channels.

        Raises:
            ValueError: it is not of that form.
        """
        if text == "custom":
            return cls(text)
        match = re.fullmatch(r"(conv_norm|res_norm)N(\d{1,2})C(\d{1,4})", text)
        if not match or match[3].strip("0") == "":
            raise ValueError(
                f"{field}: {shortened(text)!r} is none; allowed: custom, or such as conv_normN4C64 or res_normN4C64 "
                "(N blocks, C channels)"
            )
        return cls(match[1], int(match[2]), int(match[3]))
