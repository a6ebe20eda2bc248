"""The fenced blocks of a page, and how they are run.

A block is ``bash`` or ``python``, and then it is run, unless its title says what it needs (``title="Needs Slurm"``, or above it
``<!-- not run: needs Slurm -->``); or it is text of another kind. A title that is a file name lets the block be written to that file.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
RUN = ("bash", "python")
SHOWN = ("text", "csv", "yaml", "json", "r", "sql")
"""Kinds that are looked at and not run."""
NEEDS = "Needs "
"""A title that begins so says what a block needs and the tests have not."""
INSTALLERS = ("make", "pip")
"""Programs that are not run: what they install is there already."""
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]*?) -->\n)?(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
START = re.compile(r"<!-- starts with: (.*?) -->")


@dataclass(frozen=True)
class Snippet:
    """One fenced block.

    Attributes
    ----------
    line
        Of the page, from 1.
    kind
        First word behind the fence.
    title
        What stands above the block, "" where nothing does.
    text
        Its lines.
    """

    line: int
    kind: str
    title: str
    text: str

    @property
    def is_run(self) -> bool:
        """Whether the block is executed."""
        return self.kind in RUN and not self.title.startswith(NEEDS)

    @property
    def file_name(self) -> str | None:
        """File that the block shows, if any."""
        return self.title if re.fullmatch(r"[\w-]+\.\w+", self.title) else None


def snippets_of(page: Path) -> list[Snippet]:
    """Every fenced block of a page, in order."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        kind, _, rest = match["info"].strip().partition(" ")
        named = re.search(r'title="([^"]*)"', rest)
        title = named[1] if named else f"{NEEDS}{match['why']}" if match["why"] else ""
        indent = len(match["indent"])
        lines = "".join(line[indent:] if line.strip() else line for line in match["text"].splitlines(keepends=True))
        found.append(Snippet(text.count("\n", 0, match.start()) + 1, kind, title, lines))
    return found


def starts_with(page: Path) -> tuple[str, ...]:
    """Names of the files that a page says it starts with."""
    return tuple(name.strip() for match in START.finditer(page.read_text()) for name in match[1].split(","))


def commands_of(snippet: Snippet) -> list[list[str]]:
    """Words of every command of a bash block, without comments; lines that end in a backslash are joined."""
    lines = snippet.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def program_of(words: list[str]) -> list[str] | None:
    """What follows ``scamac-scale`` in a command, also behind variables and launchers; None where there is none."""
    for mark in ("scamac-scale", "scamac_scale"):
        if mark in words[:-1] and re.fullmatch("[a-z]+", words[words.index(mark) + 1]):
            return words[words.index(mark) + 1 :]
    return None


def check_form(snippet: Snippet) -> None:
    """Fail unless the block is of a known kind and can be read as what it says it is."""
    assert snippet.kind in (*RUN, *SHOWN), f"line {snippet.line}: a block of kind {snippet.kind!r}"
    if snippet.kind == "python":
        ast.parse(snippet.text)
    elif snippet.kind == "bash":
        done = subprocess.run(["bash", "-n"], input=snippet.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"line {snippet.line}: {done.stderr}"
    elif snippet.kind == "yaml":
        list(yaml.safe_load_all(snippet.text))
    elif snippet.kind == "json":
        json.loads(snippet.text)
    elif snippet.kind == "r":
        assert snippet.title.startswith(NEEDS), f"line {snippet.line}: R is not run; say so in its title"
    assert snippet.text.strip(), f"line {snippet.line}: an empty block"


class Session:
    """Runs the blocks of one page, in the folder that this process is in.

    Parameters
    ----------
    program
        Runs ``scamac-scale`` with arguments in this process, and gives its exit code.
    environment
        Takes what ``export`` says.
    """

    def __init__(self, program: Any, environment: dict[str, str]) -> None:
        self.program = program
        self.environment = environment
        self.names: dict[str, Any] = {"__name__": "page"}

    def run(self, snippet: Snippet) -> None:
        """Run a block, or write the file that it shows."""
        if snippet.file_name is not None and snippet.kind not in RUN:
            Path(snippet.file_name).write_text(snippet.text)
        elif snippet.is_run and snippet.kind == "python":
            exec(compile(snippet.text, f"line {snippet.line}", "exec"), self.names)  # what a reader would type
        elif snippet.is_run:
            for words in commands_of(snippet):
                self._command(words, snippet.line)

    def _command(self, words: list[str], line: int) -> None:
        if words[0] in INSTALLERS:
            return
        if words[0] == "export":
            self.environment.update(word.split("=", 1) for word in words[1:])
        elif words[0] == "scamac-scale":
            code = self.program(words[1:])
            assert code == 0, f"line {line}: {shlex.join(words)} ended with {code}"
        else:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            # patterns and variables are the shell's
            text = " ".join(word if re.search(r"[*$]", word) else shlex.quote(word) for word in words)
            done = subprocess.run(
                ["bash", "-c", text], capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
            )
            assert done.returncode == 0, f"line {line}: {text}\n{done.stdout}{done.stderr}"


def pages() -> Iterator[Path]:
    """Every page for users: those of docs/, and the README."""
    yield from sorted((ROOT / "docs").glob("*.md"))
    yield ROOT / "README.md"
