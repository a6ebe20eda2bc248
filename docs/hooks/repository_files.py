"""Pages link to files of the repository, such as a JSON of figures; here these files come into the site.

A page writes the link as it works in the repository: `../benchmarks/results/atlas.json`. The site has no such folder, so the
file is copied into `files/` of the site, and the link is written anew. A link to a folder, or to nothing, stops the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

LINK = re.compile(r"\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")
PLACE = "files"
"""Folder of the site that holds the copies."""


def copy_of(name: str) -> str:
    """Where a file lies on the site; Markdown as text, for its own links would lead nowhere there."""
    return f"{PLACE}/{name}.txt" if name.endswith(".md") else f"{PLACE}/{name}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file of the repository that a page links to."""
    root = Path(config.docs_dir).parent
    named = {match[1] for page in files.documentation_pages() for match in LINK.finditer(page.content_string)}
    for name in sorted(named):
        path = (root / name).resolve()
        if not path.is_file() or root.resolve() not in path.parents:
            raise PluginError(f"a page links to ../{name}, which is no file of this repository.")
        files.append(File.generated(config, copy_of(name), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let such links lead to the copies."""
    return LINK.sub(lambda match: f"]({copy_of(match[1])})", markdown)
