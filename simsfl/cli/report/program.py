"""Write pages and figures about runs: ``report.md``, and ``report.html``, whose curves can be hovered and zoomed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from simsfl.cli.flags import add_plugin_flag
from simsfl.cli.report.figures import draw, save
from simsfl.cli.report.formats import add_format_flag
from simsfl.cli.report.interactive import interactive_page, pictures_of
from simsfl.cli.report.page import report_page
from simsfl.cli.report.runs import read_run, unique_names
from simsfl.runs.directory import RunDirectory
from simsfl.system.console import Output
from simsfl.system.messages import count_text
from simsfl.ui.arguments import Parser, fail, path


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument("runs", type=path, nargs="+", metavar="RUN_DIR", help="run directories")
    where = "directory to write into (default: the run's own; of several runs a new one, reports/<time>)"
    result.add_argument("--out", type=path, metavar="DIR", help=where)
    add_format_flag(result)
    add_plugin_flag(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; return the exit code."""
    try:
        arguments = parser().parse(argv)
        names = unique_names(arguments.runs)
        runs = [read_run(path, name) for path, name in zip(arguments.runs, names, strict=True)]
        own = arguments.out or (arguments.runs[0] if len(runs) == 1 else None)
        if own:
            RunDirectory(own).outputs.check("report.md", "report.html")
        Output().say(f"drawing figures of {count_text(len(runs), 'run')}")
        figures = draw(runs)
        out = RunDirectory(own) if own else RunDirectory.claim(Path("reports") / time.strftime("%Y%m%d-%H%M%S"))
        save(figures, out.outputs, arguments.format)
        out.outputs.write_text(out.report.name, report_page(runs, figures, out.path, arguments.format))
        out.outputs.write_text(out.page.name, interactive_page(runs, pictures_of(runs, figures)))
    except (ValueError, OSError) as error:
        return fail(error)
    Output().say(f"wrote {out.page}, {out.report} and {count_text(len(figures), 'figure')} in {out.figures}")
    return 0
