"""Figures of a report, as plotly draws them: plain data, in which all text of users is escaped.

Plotly reads a little HTML in text (``<b>``, ``<a>``), and variables in templates: so names are escaped here, and never stand in a template.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.infer.output.table import CLUSTER_KEY
from scamac_scale.ops.tree import drawing
from scamac_scale.report_page.shown import GREY, MOST, Shown, short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.ops.tree import Floats
    from scamac_scale.report_page.curves import Curve
    from scamac_scale.report_page.gather import Memberships
    from scamac_scale.report_page.markers import Markers

Plot = dict[str, Any]
INK, LINE, BLUE = "#24292f", "#d0d7de", "#0072b2"
MOST_GENES = 48
MOST_TICKS = 26
"""Names along an axis that a phone has room for."""
MOST_NUMBERS = 15
"""Bars above which a phone has room for a number."""
LINE_PIXELS = 13
"""Height that a name needs."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes
    ----------
    name
        Its place in the page.
    plot
        ``data`` and ``layout`` of plotly.
    height
        Pixels.
    legend
        Names and colors that are told below it, by the page.
    title, note
        Above it, where several stand in one section.
    """

    name: str
    plot: Plot
    height: int
    legend: list[tuple[str, str]] = field(default_factory=list)
    title: str = ""
    note: str = ""


def escaped(text: str, most: int = 60) -> str:
    """Text as plotly shows it letter by letter."""
    return html.escape(short(text, most), quote=False)


def _axis(title: str = "", **more: Any) -> Plot:  # Any: what plotly takes
    base = {
        "title": {"text": title, "standoff": 8},
        "gridcolor": "#eaeef2",
        "zeroline": False,
        "linecolor": LINE,
        "automargin": True,
    }
    return {**base, **more}


def _layout(**more: Any) -> Plot:  # Any: what plotly takes
    base = {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "showlegend": False,
        "hoverlabel": {"bgcolor": "white", "font": {"color": INK}, "align": "left"},
        "dragmode": False,
    }
    return {**base, **more}


def _names_on(axis_title: str, names: Sequence[str], **more: Any) -> Plot:  # Any: what plotly takes
    """Make an axis with a name at each whole number; of more than `MOST_TICKS` at every second, or fewer, and at the last."""
    step = -(-len(names) // MOST_TICKS)
    told = [at for at in range(0, len(names), step) if step == 1 or len(names) - 1 - at >= step]
    told += [len(names) - 1] if step > 1 else []
    ticks = {
        "tickmode": "array",
        "tickvals": told,
        "ticktext": [escaped(names[at], 24) for at in told],
    }
    return _axis(axis_title, **ticks, range=[-0.6, len(names) - 0.4], showgrid=False, **more)


def _every(names: Sequence[str]) -> Plot:
    """Ticks with every name: from top to bottom there is room."""
    return {"tickvals": list(range(len(names))), "ticktext": [escaped(name, 24) for name in names]}


# ------------------------------------------------------------------ clusters


def sizes(clusters: Shown, means: FloatArray | None) -> Figure:
    """Bars of the cells of each cluster, and below its mean confidence."""
    at = list(range(len(clusters.names)))
    total = max(int(clusters.counts.sum()), 1)
    data = [
        {
            "type": "bar",
            "x": at,
            "y": clusters.counts.tolist(),
            "marker": {"color": clusters.colors},
            "customdata": [
                [escaped(name), f"{count / total:.1%}"]
                for name, count in zip(clusters.names, clusters.counts, strict=True)
            ],
            "hovertemplate": "cluster %{customdata[0]}<br>%{y:,} cells (%{customdata[1]})<extra></extra>",
        }
    ]
    if len(at) <= MOST_NUMBERS:
        data[0] |= {"text": [f"{count:,}" for count in clusters.counts], "textposition": "outside", "cliponaxis": False}
    layout = _layout(
        xaxis=_names_on("cluster", clusters.names),
        yaxis=_axis("cells", rangemode="tozero", tickformat=",d", nticks=6),
        margin={"l": 8, "r": 12, "t": 24, "b": 8},
    )
    if means is not None:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": at,
                "y": _plain(means),
                "yaxis": "y2",
                "marker": {"color": clusters.colors, "size": 9, "line": {"width": 1, "color": "white"}},
                "customdata": [[escaped(name)] for name in clusters.names],
                "hovertemplate": "cluster %{customdata[0]}<br>mean confidence %{y:.3f}<extra></extra>",
            }
        )
        layout["yaxis"]["domain"] = [0.42, 1]
        layout["yaxis2"] = _axis("confidence", domain=[0, 0.32], range=[-0.05, 1.08], tickvals=[0, 0.5, 1])
        layout["xaxis"]["anchor"] = "y2"
    return Figure("sizes", {"data": data, "layout": layout}, 420 if means is not None else 320)


def _plain(values: FloatArray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in np.asarray(values, dtype=np.float64)]


def confidence(clusters: Shown, numbers: Sequence[int], memberships: Memberships) -> Figure:
    """Bars of the share of unsure cells in each cluster that is shown, by how unsure they are."""
    shares = memberships.shares_below(BOUNDS)[list(numbers)]
    parts = np.diff(np.nan_to_num(shares), axis=1, prepend=0.0)
    names = clusters.names[: len(numbers)]
    data = [
        {
            "type": "bar",
            "x": list(range(len(names))),
            "y": _plain(part),
            "marker": {"color": color},
            "customdata": [[escaped(name), f"{share:.1%}"] for name, share in zip(names, below, strict=True)],
            "hovertemplate": f"cluster %{{customdata[0]}}<br>{words}: %{{y:.1%}}<br>below {bound:g}: %{{customdata[1]}}<extra></extra>",
        }
        for (words, color), bound, part, below in zip(
            UNSURE_PARTS, BOUNDS, parts.T, np.nan_to_num(shares).T, strict=True
        )
    ]
    top = share_top(shares)
    layout = _layout(
        barmode="stack",
        xaxis=_names_on("cluster", names),
        yaxis=_axis("share of the cells", range=[0, top], tickformat=".0%" if top >= 0.05 else ".1%", nticks=6),
        bargap=0.25,
    )
    return Figure("confidence", {"data": data, "layout": layout}, 340, list(UNSURE_PARTS))


BOUNDS = (0.5, 0.7, 0.9)
"""Memberships of the own cluster below which a cell is less and less sure of it."""
UNSURE_PARTS = (("below .5", "#a50f15"), (".5 to .7", "#fb6a4a"), (".7 to .9", "#fcbba1"))


def share_top(shares: FloatArray) -> float:
    """End of an axis of (K, 3) shares of unsure cells: never so near that a few cells look like many."""
    return min(1.0, max(0.05, 1.1 * float(np.nan_to_num(shares).max(initial=0.0))))


def tree(linkage: Floats, leaves: Sequence[str]) -> Figure:
    """Dendrogram over (L,) leaves, from left to right."""
    info = drawing(linkage)
    x: list[float | None] = []
    y: list[float | None] = []
    for across, up in zip(info["icoord"], info["dcoord"], strict=True):
        x += [*map(float, up), None]
        y += [*((across - 5.0) / 10.0), None]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "y": [None if value is None else float(value) for value in y],
            "line": {"color": BLUE, "width": 2},
            "hovertemplate": "joined at %{x:.3f}<extra></extra>",
        }
    ]
    yaxis = _names_on("", leaves)
    yaxis["range"] = [len(leaves) - 0.4, -0.6]
    yaxis |= _every(leaves)
    layout = _layout(xaxis=_axis("height", range=[0, 1.03]), yaxis=yaxis)
    return Figure("tree", {"data": data, "layout": layout}, 90 + 22 * len(leaves))


# ------------------------------------------------------------------ labels and batches


def sankey(clusters: Shown, labels: Shown, table: IntArray) -> tuple[Figure, float]:
    """Labels on the left flow into clusters on the right; and the share of cells whose thin flows are left out."""
    total = max(int(table.sum()), 1)
    n_labels = len(labels.names)
    source, target, value, colors, told, left_out = [], [], [], [], [], 0
    for cluster, label in zip(*np.nonzero(table), strict=True):
        count = int(table[cluster, label])
        if count < 0.002 * total and count < 0.05 * min(table[cluster].sum(), table[:, label].sum()):
            left_out += count
            continue
        source.append(int(label))
        target.append(n_labels + int(cluster))
        value.append(count)
        colors.append(_faint(labels.colors[label]))
        told.append(f"{escaped(labels.names[label])} → cluster {escaped(clusters.names[cluster])}<br>{count:,} cells")
    names = [escaped(name, 26) for name in labels.names] + [escaped(name, 26) for name in clusters.names]
    n_most = max(n_labels, len(clusters.names))
    height, pad = max(340, 80 + 24 * n_most), 12 if n_most <= 20 else 5
    pixels = (height - 24 - pad * n_most) / total
    counts = [*table.sum(axis=0).tolist(), *table.sum(axis=1).tolist()]
    seen = [name if count * pixels + pad >= LINE_PIXELS else "" for name, count in zip(names, counts, strict=True)]
    data = [
        {
            "type": "sankey",
            "arrangement": "snap",
            "node": {
                "label": seen,
                "customdata": names,
                "color": labels.colors + clusters.colors,
                "pad": pad,
                "thickness": 14,
                "line": {"width": 0},
                "hovertemplate": "%{customdata}<br>%{value:,} cells<extra></extra>",
            },
            "link": {
                "source": source,
                "target": target,
                "value": value,
                "color": colors,
                "customdata": told,
                "hovertemplate": "%{customdata}<extra></extra>",
            },
        }
    ]
    layout = _layout(margin={"l": 4, "r": 4, "t": 12, "b": 12})
    return Figure("sankey", {"data": data, "layout": layout}, height), left_out / total


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.4)"


def batches(clusters: Shown, levels: Shown, table: IntArray) -> Figure:
    """Bars of the share of each batch in each cluster, (S, B) cells; the last bar is of all cells."""
    rows = np.vstack([table, table.sum(axis=0)])
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    names = [*clusters.names, "all cells"]
    data = [
        {
            "type": "bar",
            "x": list(range(len(names))),
            "y": shares[:, at].tolist(),
            "marker": {"color": levels.colors[at]},
            "customdata": [
                [escaped(name), f"{count:,}", escaped(level)] for name, count in zip(names, rows[:, at], strict=True)
            ],
            "hovertemplate": "%{customdata[2]}<br>%{customdata[0]}: %{y:.1%} (%{customdata[1]} cells)<extra></extra>",
        }
        for at, level in enumerate(levels.names)
    ]
    layout = _layout(
        barmode="stack",
        xaxis=_names_on("cluster", names),
        yaxis=_axis("share of cells", range=[0, 1], tickformat=".0%"),
        bargap=0.12,
    )
    return Figure("batches", {"data": data, "layout": layout}, 360, list(zip(levels.names, levels.colors, strict=True)))


# ------------------------------------------------------------------ genes


def markers(found: Markers) -> Figure:
    """Dots of the best genes of the first groups: size for the share of cells, color for the fold change where it is known."""
    n_groups = min(len(found.groups), MOST)
    genes = found.top(MOST_GENES)
    x, y, size, fold, told = [], [], [], [], []
    for row, gene in enumerate(genes):
        for at in range(n_groups):
            share = float(found.shares[gene][at]) if gene in found.shares else (1.0 if gene in found.folds[at] else 0.0)
            x.append(at)
            y.append(row)
            size.append(3 + 13 * np.sqrt(max(share, 0)))
            fold.append(found.folds[at].get(gene))
            known = fold[-1] is not None and np.isfinite(fold[-1])
            fold[-1] = fold[-1] if known else None
            told.append(
                f"{escaped(gene)} in {escaped(found.groups[at])}<br>{share:.0%} of cells"
                + (f"<br>log2 fold change {fold[-1]:.2f}" if known else "")
            )
    known_folds = np.array([value for value in fold if value is not None])
    high = float(np.quantile(known_folds, 0.95)) if len(known_folds) else 1.0
    colors = [GREY if value is None else _scaled(value / max(high, 1e-9)) for value in fold]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": x,
            "y": y,
            "marker": {"size": [round(float(value), 2) for value in size], "color": colors, "line": {"width": 0}},
            "text": told,
            "hovertemplate": "%{text}<extra></extra>",
        }
    ]
    yaxis = _names_on("", genes)
    yaxis["range"] = [len(genes) - 0.4, -0.6]
    yaxis |= _every(genes)
    yaxis["tickfont"] = {"size": 11}
    layout = _layout(
        xaxis=_names_on(
            "cluster" if found.groupby in ("", CLUSTER_KEY) else escaped(found.groupby),
            found.groups[:n_groups],
            side="top",
        ),
        yaxis=yaxis,
    )
    return Figure("markers", {"data": data, "layout": layout}, 90 + 19 * len(genes))


_LOW, _HIGH = (0x9E, 0xC9, 0xE2), (0x08, 0x30, 0x6B)


def _scaled(share: float) -> str:
    """Blue from light to dark, 0 to 1."""
    share = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in zip(_LOW, _HIGH, strict=True))


# ------------------------------------------------------------------ the fit


def curves(found: Sequence[Curve], phases: list[tuple[str, float, float]]) -> list[Figure]:
    """One small figure for each curve; shades for phases, with their begin and end."""
    shades = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": start,
            "x1": stop,
            "y0": 0,
            "y1": 1,
            "fillcolor": "#eaeef2" if at % 2 else "#f6f8fa",
            "line": {"width": 0},
            "layer": "below",
        }
        for at, (_, start, stop) in enumerate(phases)
    ]
    made: list[Figure] = []
    for curve in found:
        steps: list[float | None] = []
        values: list[float | None] = []
        for at, held in curve.stretches:
            steps += [*at.tolist(), None]
            values += [*_plain(held), None]
        data = [
            {
                "type": "scatter",
                "mode": "lines+markers" if curve.has_dots else "lines",
                "x": steps[:-1],
                "y": values[:-1],
                "line": {"color": BLUE, "width": 2},
                "hovertemplate": "step %{x}<br>%{y:.4g}<extra></extra>",
            }
        ]
        layout = _layout(xaxis=_axis("step", showgrid=False), yaxis=_axis(nticks=5), shapes=shades)
        made.append(
            Figure(f"curve-{len(made)}", {"data": data, "layout": layout}, 210, title=curve.name, note=curve.meaning)
        )
    return made


def counts_tried(tried: dict[str, list[float]], chosen: int) -> Figure:
    """Curves by which the number of clusters was estimated."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": tried["n_clusters"],
            "y": tried[name],
            "name": name,
            "line": {"color": color},
            "hovertemplate": f"%{{x}} clusters<br>{name} %{{y:.3f}}<extra></extra>",
        }
        for name, color in (("score", BLUE), ("agreement", "#e69f00"), ("separation", "#009e73"))
        if name in tried
    ]
    mark = {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": chosen,
        "x1": chosen,
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dot", "color": INK},
    }
    layout = _layout(xaxis=_axis("number of clusters"), yaxis=_axis("score"), shapes=[mark])
    legend = [("score (the highest is taken)", BLUE), ("agreement", "#e69f00"), ("separation", "#009e73")]
    title, note = (
        "estimate of the number of clusters",
        "How good each number of clusters looks; the dotted line is the one that was taken.",
    )
    return Figure("tried", {"data": data, "layout": layout}, 280, legend, title, note)
