"""Write weights in the published program's layout."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import torch

from simsfl.cli.flags import add_plugin_flag
from simsfl.setup import assembly
from simsfl.setup.defaults import resolve
from simsfl.setup.weights import HALVES, load_weights, to_published
from simsfl.system.console import Output
from simsfl.system.messages import blaming
from simsfl.system.outputs import Outputs
from simsfl.ui.arguments import Parser, fail, path, source

_WEIGHTS = "weights.safetensors"
"""Name of the file for ``--init-client``."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument(
        "source", type=source, metavar="SOURCE", help="run directory, weights file, or name of an expert"
    )
    result.add_argument("--out", type=path, required=True, metavar="DIR", help="directory to write into")
    result.add_argument("--client-only", action="store_true", help="leave out the server, as in experts")
    add_plugin_flag(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Read weights; write a file for each half, and one for --init-client; return the exit code."""
    try:
        arguments = parser().parse(argv)
        with blaming("source", for_="init_client"):
            weights = load_weights(arguments.source)
        if arguments.client_only:
            weights = replace(weights, server={})
        config = resolve(replace(weights.config, device="cpu"))
        model = assembly.network(replace(config, image_size=config.image_size or 32), weights=False)
        out = Outputs(arguments.out)
        halves = {f"{half}.tar": half for half in HALVES if getattr(weights, half)}
        out.check(_WEIGHTS, *halves)
        with out.replacing(_WEIGHTS) as file:
            weights.save(file)
        for name, half in halves.items():
            content = io.BytesIO()  # since torch.save has errors of its own if a disk is full
            torch.save(to_published(getattr(model, half), getattr(weights, half)), content)
            with out.replacing(name) as file:
                file.write_bytes(content.getbuffer())
    except (ValueError, OSError) as error:
        return fail(error)
    Output().say(f"wrote {', '.join(str(out.path / name) for name in (_WEIGHTS, *halves))}")
    return 0
