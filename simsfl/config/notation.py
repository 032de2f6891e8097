"""Settings that are written as a short string, in the notation of the published program."""

from __future__ import annotations

import re
from dataclasses import dataclass

from simsfl.system.messages import shortened

__all__ = ["Bottleneck", "Decoder", "Unequal"]


@dataclass(frozen=True)
class Bottleneck:
    """Layers at the cut that narrow the smashed data on the client, and widen them again on the server."""

    channels: int
    """Channels of the narrowed smashed data."""
    stride: int = 1
    """Factor by which height and width are divided, a power of two: 4 takes two convolutions of stride 2."""
    kernel: int = 3
    """Height and width of the kernels, an odd number."""
    relu: bool = True
    """Whether a ReLU follows each convolution."""

    @classmethod
    def parse(cls, text: str) -> Bottleneck:
        """Return the bottleneck that a text such as ``K3C4S2noReLU`` means: kernel, channels, stride, and no ReLUs.

        All but the channels may be left out.

        Raises:
            ValueError: `text` does not have this form.

        >>> Bottleneck.parse("C4S2")
        Bottleneck(channels=4, stride=2, kernel=3, relu=True)
        >>> Bottleneck.parse("K5C8noReLU")
        Bottleneck(channels=8, stride=1, kernel=5, relu=False)
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
        return cls(channels, stride, kernel, match is not None and match[4] is None)


@dataclass(frozen=True)
class Unequal:
    """Two kinds of clients: rich ones with larger batches and more data, and poor ones."""

    rich_clients: float
    """Share of the clients that are rich, between 0 and 1."""
    batch_factor: int
    """Ratio of a rich client's batch size to that of a poor client."""
    rich_data: float
    """Share of the data that the rich clients hold together, between 0 and 1."""

    @classmethod
    def parse(cls, text: str) -> Unequal:
        """Return what a text such as ``0.2_0.8|16|0.8_0.2`` means.

        Its parts are the shares of the clients, the batch factor, and the shares of the data; rich clients come first.

        Raises:
            ValueError: `text` does not have this form, or shares do not add up to 1.
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
        """Return how many of `clients` clients are rich: at least one, but not all of them."""
        return min(max(round(self.rich_clients * clients), 1), clients - 1)

    def weights(self, clients: int) -> list[float]:
        """Return the share of the data that each of `clients` clients holds, the rich first."""
        rich = self.rich(clients)
        return [self.rich_data / rich] * rich + [(1 - self.rich_data) / (clients - rich)] * (clients - rich)


@dataclass(frozen=True)
class Decoder:
    """The network with which an attacker turns smashed data back into images."""

    kind: str
    """"custom", "conv_norm" or "res_norm"."""
    depth: int = 0
    """Number of layers or blocks that keep the size of the maps, besides those that every decoder has."""
    channels: int = 0
    """Channels of the inner layers; unused if `kind` is "custom"."""

    @classmethod
    def parse(cls, text: str, field: str = "decoder") -> Decoder:
        """Return the decoder that a text such as ``custom``, ``conv_normN4C64`` or ``res_normN4C64`` means.

        N is followed by the depth, C by the channels.

        Args:
            text: the text.
            field: name of the setting, for the error.

        Raises:
            ValueError: `text` does not have this form.
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
