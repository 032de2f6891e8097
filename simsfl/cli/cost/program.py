"""What taking part costs a client, from a config alone: ``python experiments/cost.py --cut-layer 1``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from simsfl.cli.flags import add_config_flags, config_values
from simsfl.cli.presets import named
from simsfl.cli.progress import watched
from simsfl.system.files import write_json
from simsfl.ui.arguments import Parser, fail, one_of, path, whole_number

DTYPES = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of a number that is sent."""
ACCOUNTINGS = ("own", "paper")
SPLIT = {"method": "mocosfl"}
FROZEN = {"bottleneck": "C4S2", "client_lr": 0.0}
FEDERATED = {"cut_layer": 1, "bottleneck": None, "client_lr": None, "batch_size": None, "syncs_per_round": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "MocoSFL-1": {**SPLIT, "cut_layer": 1},
    "MocoSFL-1, C4S2": {**SPLIT, "cut_layer": 1, "bottleneck": "C4S2"},
    "MocoSFL-1, TAResSFL": {**SPLIT, "cut_layer": 1, **FROZEN},
    "MocoSFL-3": {**SPLIT, "cut_layer": 2},
    "MocoSFL-3, C4S2": {**SPLIT, "cut_layer": 2, "bottleneck": "C4S2"},
    "MocoSFL-3, TAResSFL": {**SPLIT, "cut_layer": 2, **FROZEN},
    "FL-MoCo": {"method": "fl-moco", **FEDERATED},
    "FL-BYOL": {"method": "fl-byol", **FEDERATED},
}
"""Beside what is asked for; by the number of convolutions on the client."""


def parser() -> Parser:
    """All flags of this program."""
    result = Parser(prog="cost.py", description=__doc__)
    result.add_argument("--preset", default="paper", help="what the flags change (default: paper)")
    result.add_argument("--images", type=whole_number, metavar="N", help="of training, in a data set of your own")
    result.add_argument(
        "--dtype",
        type=one_of(list(DTYPES)),
        metavar="{" + ",".join(DTYPES) + "}",
        help="of activations, gradients and weights that are sent (default: weights in fp32, the rest by --precision)",
    )
    result.add_argument(
        "--accounting",
        type=one_of(ACCOUNTINGS),
        default="own",
        metavar="{" + ",".join(ACCOUNTINGS) + "}",
        help="paper: the paper's own way, beside its figures (default: own)",
    )
    result.add_argument(
        "--measured", action="store_true", help="do a client's step for each row, and measure what its tensors take"
    )
    result.add_argument("--json", type=path, metavar="FILE", help="write the figures too")
    add_config_flags(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Reckon, and show; the exit code."""
    try:
        arguments = parser().parse(argv)
        values = config_values(arguments)
        if arguments.accounting == "paper" and (values or arguments.dtype or arguments.images or arguments.measured):
            raise ValueError("accounting: paper is of the paper's settings; allowed: without flags that change them")
        asked = replace(named(arguments.preset)[0], **values)
        asked.check_effect(values)

        from simsfl.cli.cost.tables import own_tables, paper_tables, reckoned  # noqa: PLC0415  (imports torch)
        from simsfl.setup.defaults import with_precision  # noqa: PLC0415

        if arguments.accounting == "paper":
            tables, figures = paper_tables()
        else:
            asked, _ = with_precision(asked)
            configs = {"as asked": asked} | {name: replace(asked, **changed) for name, changed in VARIANTS.items()}
            how = {"number_bytes": arguments.dtype and DTYPES[arguments.dtype], "measured": arguments.measured}
            rows = watched(list(configs.items()), "measuring") if arguments.measured else configs.items()
            figures = {name: reckoned(config, arguments.images, **how) for name, config in rows}
            tables = own_tables(figures, asked, arguments.dtype or f"as a run does ({asked.precision})")
        for table in tables:
            Console().print(table)
        if arguments.json:
            write_json(arguments.json, figures)
    except (ValueError, OSError) as error:
        return fail(error)
    return 0
