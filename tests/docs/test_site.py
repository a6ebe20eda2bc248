"""The site that `make docs` builds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.snippets import ROOT

pytest.importorskip("mkdocs")
LOADED = re.compile(
    r"<(?:script|img|iframe)[^>]* src=\"https?:|<link[^>]* href=\"https?:(?!//squidfunk)|@import url\(.?https?:"
)
"""What a browser would fetch from elsewhere."""


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert [path.name for path in tmp_path.rglob("*.html") if LOADED.search(path.read_text())] == []
    assert (tmp_path / "files/benchmarks/results/atlas.json").read_bytes() == (
        ROOT / "benchmarks/results/atlas.json"
    ).read_bytes()


def test_a_link_to_no_file_of_the_repository_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Title\n\n[a folder](../docs)\n")
    hook = ROOT / "docs/hooks/repository_files.py"
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nplugins: []\nhooks: [{hook}]\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "a page links to ../docs, which is no file of this repository" in done.stdout + done.stderr
