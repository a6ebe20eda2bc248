"""What the pages must tell: every command, every exit code, messages that the code has, and whom to cite."""

import re

import pytest
import yaml

from scamac_scale import __version__
from scamac_scale.cli import main
from scamac_scale.cli.commands import COMMANDS
from scamac_scale.errors import ScamacError
from tests.support.snippets import ROOT, commands_of, pages, program_of, snippets_of

DOCS = {page.name: page.read_text() for page in pages() if page.parent.name == "docs"}
OF_THE_SYSTEM = ("No space left on device",)
"""Messages that are not ours."""


def test_every_command_is_shown_on_a_page() -> None:
    shown = {
        arguments[0]
        for page in pages()
        for snippet in snippets_of(page)
        if snippet.kind == "bash"
        for words in commands_of(snippet)
        if (arguments := program_of(words))
    }
    told = {name for name in COMMANDS if any(f"scamac-scale {name}" in text for text in DOCS.values())}
    assert set(COMMANDS) - shown - told == set()


def kinds(base: type[ScamacError]) -> set[type[ScamacError]]:
    return {base}.union(*(kinds(kind) for kind in base.__subclasses__()))


def test_the_page_of_errors_has_every_exit_code() -> None:
    codes = {kind.exit_code for kind in kinds(ScamacError)}
    codes |= {0, main.EXIT_BUG, main.EXIT_NOT_WRITABLE, main.EXIT_RESUMABLE, main.EXIT_INTERRUPTED}
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCS["errors.md"], re.MULTILINE)}
    assert told == codes


def test_every_message_of_the_page_of_errors_is_one_of_the_code() -> None:
    table = DOCS["errors.md"].partition("## The file cannot be used")[2].partition("## It runs, and looks wrong")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    code = "\n".join(path.read_text() for path in (ROOT / "scamac_scale").rglob("*.py"))
    assert len(messages) > 20
    assert [text for text in messages if text not in code and text not in OF_THE_SYSTEM] == []


@pytest.mark.parametrize("name", DOCS)
def test_a_page_has_one_title_and_is_in_the_navigation(name: str) -> None:
    text = re.sub(r"```.*?```", "", DOCS[name], flags=re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert f": {name}\n" in (ROOT / "mkdocs.yml").read_text()


def test_every_file_that_messages_and_help_send_readers_to_is_there() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "scamac_scale").rglob("*.py"))
    assert [name for name in re.findall(r"docs/(\w+\.md)", code) if name not in DOCS] == []


def test_the_citation_names_the_paper_and_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["preferred-citation"]["doi"] == "10.1093/bib/bbae068"
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Tan"
