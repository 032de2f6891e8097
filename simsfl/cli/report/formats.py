"""The flag that says in which formats figures are written."""

from __future__ import annotations

import argparse

from simsfl.ui.arguments import one_of

FORMATS = ("png", "pdf", "svg")
"""Formats that figures can be written in."""


def add_format_flag(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flag ``--format``."""
    parser.add_argument(
        "--format",
        type=_formats,
        default=["png"],
        metavar="{" + ",".join(FORMATS) + "}",
        help="format of the figures; several are separated by commas (default: png)",
    )


def _formats(text: str) -> list[str]:
    """Return the formats in a text, separated by commas, each once; raise an ArgumentTypeError for an unknown one."""
    return list(dict.fromkeys(map(one_of(FORMATS), text.split(","))))
