"""Estimate what taking part costs a client, from a config alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from simsfl.cli.flags import add_config_flags, asked_config, config_values
from simsfl.config import RunConfig
from simsfl.system.console import Output
from simsfl.system.outputs import Outputs
from simsfl.system.progress import watched
from simsfl.ui.arguments import Parser, fail, one_of, path, whole_number

_DTYPES = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of a number that is sent, by format."""
_ACCOUNTINGS = ("own", "paper")
_SPLIT = {"method": "mocosfl"}
_FROZEN = {"bottleneck": "C4S2", "client_lr": 0.0}
_FEDERATED = {"cut_layer": 1, "bottleneck": None, "client_lr": None, "batch_size": None, "syncs_per_round": None}
_VARIANTS: dict[str, dict[str, Any]] = {
    "MocoSFL-1": {**_SPLIT, "cut_layer": 1},
    "MocoSFL-1, C4S2": {**_SPLIT, "cut_layer": 1, "bottleneck": "C4S2"},
    "MocoSFL-1, TAResSFL": {**_SPLIT, "cut_layer": 1, **_FROZEN},
    "MocoSFL-3": {**_SPLIT, "cut_layer": 2},
    "MocoSFL-3, C4S2": {**_SPLIT, "cut_layer": 2, "bottleneck": "C4S2"},
    "MocoSFL-3, TAResSFL": {**_SPLIT, "cut_layer": 2, **_FROZEN},
    "FL-MoCo": {"method": "fl-moco", **_FEDERATED},
    "FL-BYOL": {"method": "fl-byol", **_FEDERATED},
}
"""Rows of the table below that of the user's config, each with the config fields that it changes."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument("--images", type=whole_number, metavar="N", help="number of training images in your data set")
    result.add_argument(
        "--dtype",
        type=one_of(list(_DTYPES)),
        metavar="{" + ",".join(_DTYPES) + "}",
        help="format of everything sent (default: fp32 for weights, that of --precision for activations and gradients)",
    )
    result.add_argument(
        "--accounting",
        type=one_of(_ACCOUNTINGS),
        default="own",
        metavar="{" + ",".join(_ACCOUNTINGS) + "}",
        help="paper: count as the paper does, beside its figures (default: own)",
    )
    result.add_argument(
        "--measured",
        action="store_true",
        help="do a client's step for each row and measure the memory of its tensors",
    )
    result.add_argument("--json", type=path, metavar="FILE", help="write the figures into this file too")
    add_config_flags(result, preset="paper")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Estimate, print tables and write them as JSON if asked; return the exit code."""
    try:
        arguments = parser().parse(argv)
        values = config_values(arguments)
        if arguments.accounting == "paper" and (values or arguments.dtype or arguments.images or arguments.measured):
            raise ValueError("accounting: paper has the paper's settings; allowed: without flags that change them")
        asked = asked_config(arguments)
        out = Outputs.of(arguments.json, "json") if arguments.json else None

        from simsfl.cli.cost.tables import estimate, own_tables, paper_tables  # noqa: PLC0415  (imports torch)
        from simsfl.setup.defaults import with_precision  # noqa: PLC0415

        if arguments.accounting == "paper":
            (tables, figures), left_out = paper_tables(), {}
        else:
            asked, _ = with_precision(asked)
            configs, left_out = _compared(asked)
            how = {"number_bytes": arguments.dtype and _DTYPES[arguments.dtype], "measured": arguments.measured}
            rows = watched(list(configs.items()), "measuring") if arguments.measured else configs.items()
            figures = {}
            for name, config in rows:
                try:
                    figures[name] = estimate(config, arguments.images, **how)
                except ValueError as error:  # such as a network that has no maps for the bottleneck of a row
                    if config is asked:
                        raise
                    left_out.setdefault(_reason(error), []).append(name)
            tables = own_tables(figures, asked, arguments.dtype or f"the formats of a run ({asked.precision})")
        for table in tables:
            Output().print(table)
        for reason, names in left_out.items():
            Output().say(f"left out: {', '.join(names)} ({reason})")
        if out:
            out.write_json(arguments.json.name, figures)
    except (ValueError, OSError) as error:
        return fail(error)
    return 0


def _compared(asked: RunConfig) -> tuple[dict[str, RunConfig], dict[str, list[str]]]:
    """Return the configs of the rows by name, and the names of the rows that are not possible by the reason."""
    configs, left_out = {"as asked": asked}, {}
    for name, changed in _VARIANTS.items():
        try:
            configs[name] = replace(asked, **changed)
        except ValueError as error:
            left_out.setdefault(_reason(error), []).append(name)
    return configs, left_out


def _reason(error: ValueError) -> str:
    """Return what is wrong, without what would be allowed."""
    return str(error).partition("; allowed")[0]
