"""Results for a person to read: one small table each. JSON is for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import OutputError
from scamac_scale.host.outlet import drawing
from scamac_scale.host.printable import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ROWS = 25
"""Rows of a table on the screen; JSON has them all."""
LINES = ("warnings", "next")
"""Keys whose items are a line each."""
NAMES = {
    **{
        "ari": "ARI",
        "nmi": "NMI",
        "ilisi": "iLISI",
        "ilisi_scaled": "iLISI scaled",
        "ilisi_if_mixed": "iLISI if mixed",
        "clisi": "cLISI",
    },
    **{"clisi_scaled": "cLISI scaled", "kbet_acceptance": "kBET acceptance", "mean_lisi": "mean LISI"},
}
"""Keys that people write otherwise."""


def print_json(result: dict[str, Any], target: str) -> None:
    """Print a result as JSON, or write it to a file.

    Parameters
    ----------
    result
        Plain data.
    target
        ``-`` for standard output, or a path.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    text = json.dumps(result, indent=2, default=str).replace("\x7f", "\\u007f")  # the one that JSON leaves as it is
    if target == "-":
        print(text)
        return
    try:
        at_home(target).write_text(text + "\n")
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}.") from error


def print_lines(lines: Sequence[str]) -> None:
    """Print a few lines, each as one: a terminal folds what is too long."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=drawing(sys.stdout), highlight=False)
    for line in lines:
        head, colon, rest = one_line(line).partition(": ")
        console.print(Text.assemble((head + colon, "bold"), rest), soft_wrap=True)


def print_result(title: str, result: dict[str, Any]) -> None:
    """Print a result as a table of two columns; a list of dicts becomes a table of its own.

    Of ``warnings`` and ``next``, lines to type, each is a line at the end.
    """
    from rich.console import Console

    console = Console(file=drawing(sys.stdout), highlight=False)
    tables = {key: value for key, value in result.items() if isinstance(value, list) and value and _is_table(value)}
    lines = {key: value for key, value in result.items() if key not in tables and key not in LINES}
    console.print(_pairs(title, lines))
    for name, rows in tables.items():
        console.print(_rows(_words(name), rows[:MAX_ROWS]))
        if len(rows) > MAX_ROWS:
            console.print(f" and {len(rows) - MAX_ROWS} more, which --json lists")
    warnings = result.get("warnings", [])
    for line in warnings[:MAX_ROWS]:
        console.print(f"warning: {one_line(line)}", markup=False, soft_wrap=True)
    if len(warnings) > MAX_ROWS:
        console.print(f" and {len(warnings) - MAX_ROWS} more warnings, which --json lists")
    if "next" in result:
        console.print("What to type next", style="bold")
        for line in result["next"]:
            console.print(f" {one_line(line)}", markup=False, soft_wrap=True)


def _is_table(value: list[Any]) -> bool:
    return all(isinstance(item, dict) for item in value)


def _pairs(title: str, values: dict[str, Any]) -> Any:  # Any: rich's table is imported inside
    from rich.table import Table

    table = Table(title=_shown(title), title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        table.add_row(_shown(_words(key)), _shown(_text(key, value)))
    return table


def _rows(title: str, rows: list[dict[str, Any]]) -> Any:  # Any: rich's table is imported inside
    from rich.table import Table

    table = Table(title=_shown(title), title_justify="left", title_style="bold", box=None, header_style="dim")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        is_number = all(isinstance(row.get(name, 0), int | float) for row in rows)
        table.add_column(_shown(_words(name)), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(_text(name, row.get(name, ""))) for name in names))
    return table


def _shown(text: str) -> str:
    """Write text for a cell of a table: one line, which commands neither the terminal nor rich."""
    from rich.markup import escape

    return escape(one_line(text))


def _words(key: str) -> str:
    """Name a key as a person would: ``n_cells`` is cells, ``is_finished`` finished, ``disk_bytes`` disk."""
    if key in NAMES:
        return NAMES[key]
    name = key.removeprefix("n_").removeprefix("is_").removesuffix("_bytes").replace("_per_s", "/s")
    return name.replace("_", " ")


def _text(key: str, value: Any) -> str:  # Any: what JSON holds
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key.endswith("_bytes"):
        return size_text(value)
    if isinstance(value, int):
        return str(value) if key == "seed" else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(key, item) for item in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{_words(name)} {_text(name, item)}" for name, item in value.items()) or "-"
    return str(value)


def size_text(n_bytes: float) -> str:
    """Write bytes as a person reads them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.0f} TB"
