"""The page: one HTML file that holds plotly, all data and all words, and asks no network for anything."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.report_page.figures import Figure
    from scamac_scale.report_page.finding import Finding


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes
    ----------
    name, title
        Of the section.
    figures
        In order.
    notes
        Sentences below.
    map
        Whether it holds the cells in two dimensions.
    small
        Whether the figures stand side by side.
    """

    name: str
    title: str
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    map: bool = False
    small: bool = False


@dataclass(frozen=True)
class Page:
    """What the page says.

    Attributes
    ----------
    title, headline
        On top.
    about
        Names and values: what was run on what.
    lines
        How good, and what: what came out.
    findings
        Of the checks.
    parts
        Sections.
    settings
        Names and values.
    cells
        Data of the map, `Cells.to_plain`; None without one.
    words
        For each severity.
    version
        Of this program.
    """

    title: str
    headline: str
    about: list[tuple[str, str]]
    lines: list[tuple[str, str]]
    findings: list[Finding]
    parts: list[Part]
    settings: list[tuple[str, str]]
    cells: dict[str, Any] | None
    words: dict[str, str] = field(default_factory=dict)
    version: str = ""

    @property
    def findings_title(self) -> str:
        """Above the findings: what all of them are, if they are alike."""
        severities = {finding["severity"] for finding in self.findings}
        return self.words.get("note", "") if severities == {"note"} else "What the checks found"


def packed(values: Any, dtype: str) -> str:  # Any: an array of numbers
    """Numbers as base64 of little-endian values."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def safe_json(values: Any) -> str:  # Any: plain data
    """JSON that may stand inside a script of a page: no letter of it can end the script, or begin a comment."""
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(page: Page) -> str:
    """Write the page; all that is not ours is escaped by the template, or by `safe_json`."""
    from jinja2 import Environment, StrictUndefined

    own = resources.files("scamac_scale.report_page")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((own / "page.html").read_text(encoding="utf-8"))
    figures = [figure for part in page.parts for figure in part.figures]
    layout = {
        "margin": {"l": 0, "r": 0, "t": 4, "b": 4},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "modebar": {"bgcolor": "rgba(255,255,255,0.7)", "color": "#8c959f", "activecolor": "#24292f"},
        "font": {"family": "system-ui, sans-serif", "color": "#24292f"},
        "hoverlabel": {"bgcolor": "white", "font": {"color": "#24292f"}, "align": "left"},
    }
    held = {
        "figures": [{"name": figure.name, "plot": figure.plot} for figure in figures],
        "cells": page.cells,
        "map_layout": layout,
    }
    return template.render(
        **vars(page),
        findings_title=page.findings_title,
        css=(own / "page.css").read_text(encoding="utf-8"),
        script=(own / "page.js").read_text(encoding="utf-8"),
        plotly=plotly_script(),
        data=safe_json(held),
    )


def plotly_script() -> str:
    """Give the script of plotly, as its package has it."""
    script = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return script.replace("</script", "<\\/script")
