"""The hooks of ``mkdocs.yml``: the site has pages that lie elsewhere in the repository, and notebooks as pages.

Nothing is copied: `ELSEWHERE` says where these pages are, and links to them lead to files as on a code host, from which
`on_page_markdown` makes links of the site. A notebook ``NAME.ipynb`` is the page ``NAME.md``, with the outputs that it
is stored with.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "DECISIONS.md": "decisions.md",
    "benchmarks/README.md": "guides/benchmarks.md",
    "hw_profile/README.md": "guides/devices.md",
    "simsfl/fleet/devices/README.md": "guides/profiles.md",
    "simsfl/setup/experts/README.md": "guides/experts.md",
}
"""Pages outside ``docs/``, by their path in the repository, and where they are on the site."""
_SOURCES = {page: path for path, page in ELSEWHERE.items()}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
"""The path in a Markdown link to a file."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere, and put pages and pictures in the place of notebooks."""
    root = posixpath.dirname(config.config_file_path)
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=posixpath.join(root, path)))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        name, _ = posixpath.splitext(file.src_uri)
        stem = posixpath.basename(name)
        places = {"unique_key": stem, "output_files_dir": stem}
        text, made = MarkdownExporter().from_filename(file.abs_src_path, resources=places)
        text = text.replace("![png](", "![what the cell above draws](")
        files.append(File.generated(config, f"{name}.md", content=text))
        for picture, content in made["outputs"].items():
            where = posixpath.join(posixpath.dirname(name), picture)
            files.append(File.generated(config, where, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page whose links lead to pages of the site, where they lead to files of the repository."""
    here = page.file.src_uri
    folder = posixpath.dirname(_SOURCES.get(here, f"docs/{here}"))

    def led(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        target = ELSEWHERE.get(path, path.removeprefix("docs/")).replace(".ipynb", ".md")
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return _LINK.sub(led, markdown)
