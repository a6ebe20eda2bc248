"""Every block of every page is run, or says what it needs and is parsed."""

import re
import warnings
from functools import cache
from pathlib import Path

import pytest

import scamac_scale.api.model
from scamac_scale.cli.commands import COMMANDS, Command
from scamac_scale.cli.main import main
from scamac_scale.cli.parsing import build_parser
from scamac_scale.errors import choose
from tests.support.command_line import QUICK as QUICK_OPTIONS
from tests.support.settings import QUICK
from tests.support.shelf import MADE, RAW, Shelf
from tests.support.snippets import (
    FENCE,
    Session,
    check_form,
    commands_of,
    pages,
    program_of,
    snippets_of,
    starts_with,
)

QUICK_PAGES = ("many.md",)
"""Pages that are run with the fast tests."""
PAGES = {page.name: page for page in pages()}
PAGES_RUN = [name for name, page in PAGES.items() if any(snippet.is_run for snippet in snippets_of(page))]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@cache
def options_of(name: str) -> frozenset[str]:
    """Options that a command knows."""
    parser = build_parser(name, "", "")
    COMMANDS[name].declare(parser)
    return frozenset(text for action in parser._actions for text in action.option_strings)


def program(words: list[str]) -> int:
    """Run a command in this process; fits are short."""
    name, *rest = words
    if name in COMMANDS and "--train.rounds" in options_of(name):
        rest = [*QUICK_OPTIONS, *rest]
    return main([name, *rest])


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_of_a_known_kind_and_can_be_parsed(name: str) -> None:
    for snippet in snippets_of(PAGES[name]):
        check_form(snippet)
    assert set(starts_with(PAGES[name])) <= set(MADE)


@pytest.mark.parametrize("name", PAGES)
def test_code_stands_in_fences_and_not_in_indented_lines(name: str) -> None:
    text = FENCE.sub("", PAGES[name].read_text())
    assert re.findall(r"\n\n    \S.*", text) == []


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_is_known_with_its_options(name: str) -> None:
    for snippet in snippets_of(PAGES[name]):
        if snippet.kind != "bash":
            continue
        for words in commands_of(snippet):
            arguments = program_of(words)
            if arguments is None or arguments[0].startswith("-"):
                continue
            command: Command = choose(COMMANDS, arguments[0], f"{name}, line {snippet.line}")
            unknown = {word.partition("=")[0] for word in arguments[1:] if word.startswith("--")} - options_of(
                arguments[0]
            )
            assert not unknown, f"{name}, line {snippet.line}: {command.usage}"


@pytest.mark.parametrize(
    "name", [name if name in QUICK_PAGES else pytest.param(name, marks=pytest.mark.slow) for name in PAGES_RUN]
)
def test_the_commands_of_a_page_run_in_their_order(
    name: str, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGES[name]
    shelf.lay((*RAW, *starts_with(page)), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(scamac_scale.api.model, "ScamacConfig", lambda: QUICK)  # the default of a fit: a short one
    environment: dict[str, str] = {}
    session = Session(program, environment)
    for snippet in snippets_of(page):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a reader sees them, and goes on
            session.run(snippet)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
