"""Convert weights from the published program's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simsfl.cli.flags import add_config_flags, asked_config
from simsfl.setup.defaults import resolve
from simsfl.setup.published import load_published
from simsfl.system.console import Output
from simsfl.system.outputs import Outputs
from simsfl.ui.arguments import Parser, fail, path


def main(argv: Sequence[str] | None = None) -> int:
    """Read state dicts, match them with the network and write them; return the exit code."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "files", type=path, nargs="+", metavar="CLIENT.tar SERVER.tar", help="state dicts; either may be left out"
    )
    parser.add_argument("--out", type=path, metavar="FILE", help="file to write (default: the first, as .safetensors)")
    add_config_flags(parser, preset="paper")
    parser.dotted = ("arch",)  # other options make no other network
    try:
        arguments = parser.parse(argv)
        out = arguments.out or arguments.files[0].with_suffix(".safetensors")
        outputs = Outputs.of(out, "out")
        config = resolve(asked_config(arguments))
        weights = load_published(arguments.files, replace(config, image_size=config.image_size or 32), "files")
        with outputs.replacing(out.name) as file:
            replace(weights, config=config).save(file)
    except (ValueError, OSError) as error:
        return fail(error)
    start = f"start from it with --init-client {out}" + " --init-server" * bool(weights.server)
    Output().say(f"wrote {out}: {start if weights.client else 'a server alone; import both halves to start from them'}")
    return 0
