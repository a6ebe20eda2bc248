"""The same figures as PNGs, by matplotlib: the same data, the same colors."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.ops.tree import drawing
from scamac_scale.report_page.figures import BOUNDS, UNSURE_PARTS, share_top

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.ops.tree import Floats
    from scamac_scale.report_page.curves import Curve
    from scamac_scale.report_page.gather import Memberships
    from scamac_scale.report_page.shown import Shown

DPI = 150
BLUE = "#0072b2"
SIDE_LEGEND = 20
"""Names in one column of a legend."""


@contextmanager
def with_matplotlib() -> Iterator[None]:
    """Let matplotlib in, which the command line keeps out elsewhere, and keep its words on fonts to itself."""
    is_out = "matplotlib" in sys.modules and sys.modules["matplotlib"] is None
    if is_out:
        del sys.modules["matplotlib"]
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class Pictures:
    """PNGs in a folder.

    Parameters
    ----------
    folder
        Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.names: list[str] = []

    @contextmanager
    def axes(self, name: str, title: str, width: float, height: float) -> Iterator[Any]:  # Any: matplotlib's axes
        """Give axes of a picture that is written at the end; names are letters, not mathematics."""
        import warnings

        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        _titled(figure, title)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that its font has not
            figure.savefig(self._folder / f"{name}.png", dpi=DPI)
        self.names.append(f"{name}.png")

    def map(self, name: str, points: FloatArray, levels: Shown, codes: IntArray, title: str) -> None:
        """Cells in two dimensions by the color of their level; (n,) numbers of what is shown. Clusters have their names on them."""
        n_columns = -(-len(levels.names) // SIDE_LEGEND)
        is_named = name == "map_cluster"
        with self.axes(name, title, 6.5 + 1.9 * n_columns, 6) as axes:
            size = max(1.5, min(20, 20_000 / max(len(points), 1)))
            missing = codes >= len(levels.names)
            if missing.any():
                axes.scatter(*points[missing].T, s=size, c="#dddddd", linewidths=0, label="none", rasterized=True)
            for at, level in enumerate(levels.names):
                own = points[codes == at]
                if not len(own):
                    continue
                axes.scatter(*own.T, s=size, c=levels.colors[at], linewidths=0, label=safe(level), alpha=0.8)
                if is_named and at < levels.n_own:
                    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
                    axes.text(*np.median(own, axis=0), safe(level), fontsize=8, ha="center", va="center", bbox=box)
            _bare(axes)
            handles, names = axes.get_legend_handles_labels()
            axes.legend(
                handles,
                names,
                loc="center left",
                bbox_to_anchor=(1, 0.5),
                frameon=False,
                fontsize=7,
                ncols=n_columns,
                markerscale=max(1.0, 3 / np.sqrt(size)),
            )

    def shades(self, name: str, points: FloatArray, values: FloatArray, title: str) -> None:
        """Cells in two dimensions by a value from 0 to 1."""
        with self.axes(name, title, 7.2, 6) as axes:
            order = np.argsort(-values)
            size = max(1.5, min(20, 20_000 / max(len(points), 1)))
            drawn = axes.scatter(
                *points[order].T, s=size, c=values[order], cmap="cividis", vmin=0, vmax=1, linewidths=0
            )
            axes.figure.colorbar(drawn, ax=axes, label="membership of the own cluster", shrink=0.6)
            _bare(axes)

    def sizes(self, clusters: Shown) -> None:
        """Bars of cells, from top to bottom, each with its number."""
        counts, total = clusters.counts, max(int(clusters.counts.sum()), 1)
        with self.axes("sizes", "Cells of each cluster", 6.5, 1.1 + 0.24 * len(counts)) as axes:
            bars = axes.barh(range(len(counts)), counts, color=clusters.colors)
            axes.bar_label(bars, [f"{count:,} ({count / total:.1%})" for count in counts], padding=3, fontsize=8)
            axes.set_xlim(0, 1.18 * counts.max(initial=1))
            axes.xaxis.set_major_locator(_whole_ticks())
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.set_yticks(range(len(counts)), [safe(name) for name in clusters.names], fontsize=8)
            axes.set_ylim(len(counts) - 0.4, -0.6)
            axes.set_ylabel("cluster")
            axes.set_xlabel("cells")

    def confidence(self, clusters: Shown, numbers: Sequence[int], memberships: Memberships) -> None:
        """Bars of the share of unsure cells, by how unsure they are."""
        shares = np.nan_to_num(memberships.shares_below(BOUNDS)[list(numbers)])
        title = "Cells that are not sure of their cluster"
        with self.axes("confidence", title, max(5.5, 1.8 + 0.28 * len(numbers)), 3.4) as axes:
            base = np.zeros(len(shares))
            for (words, color), below in zip(UNSURE_PARTS, shares.T, strict=True):
                axes.bar(range(len(shares)), below - base, bottom=base, color=color, label=words)
                base = below
            axes.set_ylim(0, share_top(shares))
            axes.yaxis.set_major_formatter(
                lambda value, _: f"{value:.0%}" if share_top(shares) > 0.05 else f"{value:.1%}"
            )
            _named(axes, clusters.names[: len(numbers)], "cluster")
            axes.set_ylabel("share of the cells")
            side = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "reverse": True, "frameon": False, "fontsize": 7}
            axes.legend(title="membership", title_fontsize=7, **side)

    def tree(self, linkage: Floats, leaves: Sequence[str]) -> None:
        """Dendrogram, leaves from top to bottom."""
        info = drawing(linkage)
        with self.axes("tree", "The tree of the clusters", 6.5, 1 + 0.22 * len(leaves)) as axes:
            for across, up in zip(info["icoord"], info["dcoord"], strict=True):
                axes.plot(up, (across - 5) / 10, color=BLUE, linewidth=1.5)
            axes.set_ylim(len(leaves) - 0.4, -0.6)
            axes.set_xlim(0, 1.03)
            axes.set_yticks(range(len(leaves)), [safe(leaf) for leaf in leaves], fontsize=8)
            axes.set_xlabel("height: share of clusterings that keep them apart")

    def table(self, title: str, rows: Sequence[str], columns: Sequence[str], shares: FloatArray) -> None:
        """Share of each label in each cluster, as shades."""
        with self.axes("labels", title, max(4.5, 2.6 + 0.26 * len(columns)), 1.4 + 0.22 * len(rows)) as axes:
            drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_yticks(range(len(rows)), [safe(row) for row in rows], fontsize=7)
            _named(axes, columns, "cluster")
            axes.figure.colorbar(drawn, ax=axes, label="share of the label", shrink=0.8)

    def stacks(self, title: str, clusters: Shown, levels: Shown, table: IntArray) -> None:
        """Bars of the share of each batch, the last of all cells."""
        rows = np.vstack([table, table.sum(axis=0)])
        shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
        names = [*clusters.names, "all cells"]
        n_columns = -(-len(levels.names) // SIDE_LEGEND)
        with self.axes("batches", title, max(5.0, 2 + 0.28 * len(names)) + 1.6 * n_columns, 3.6) as axes:
            base = np.zeros(len(names))
            for at, level in enumerate(levels.names):
                axes.bar(range(len(names)), shares[:, at], bottom=base, color=levels.colors[at], label=safe(level))
                base += shares[:, at]
            _named(axes, names, "cluster")
            axes.set_ylabel("share of cells")
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7, ncols=n_columns)

    def dots(self, plot: dict[str, Any], genes: Sequence[str], groups: Sequence[str]) -> None:
        """Dots of markers, as the figure of the page has them."""
        trace = plot["data"][0]
        title = "Marker genes of each cluster\nlarge: in most of its cells; dark: much more than in others"
        with self.axes("markers", title, max(4.5, 2.2 + 0.26 * len(groups)), 1.5 + 0.19 * len(genes)) as axes:
            sizes = np.square(np.array(trace["marker"]["size"])) / 2.6
            axes.scatter(trace["x"], trace["y"], s=sizes, c=trace["marker"]["color"], linewidths=0)
            axes.set_ylim(len(genes) - 0.4, -0.6)
            axes.set_yticks(range(len(genes)), [safe(gene) for gene in genes], fontsize=7)
            _named(axes, groups, "cluster")

    def curves(self, found: Sequence[Curve]) -> None:
        """Draw all curves, one below the other, with what each means."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if not found:
            return
        figure = Figure(figsize=(7.5, 0.5 + 1.6 * len(found)), layout="constrained")
        FigureCanvasAgg(figure)
        _titled(figure, "The fit")
        for axes, curve in zip(np.atleast_1d(figure.subplots(len(found), sharex=True)), found, strict=True):
            for steps, values in curve.stretches:
                axes.plot(steps, values, color=BLUE, linewidth=1.4, marker="." if curve.has_dots else None)
            name = safe(curve.name[:1].upper() + curve.name[1:])
            axes.set_title(f"{name}: {curve.meaning}" if curve.meaning else name, fontsize=8, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
        axes.set_xlabel("step")
        figure.savefig(self._folder / "curves.png", dpi=DPI)
        self.names.append("curves.png")


def _titled(figure: Any, title: str) -> None:  # Any: matplotlib's figure
    """Write the title over the whole width: axes may be narrow."""
    figure.suptitle(safe(title), x=0.01, ha="left", fontsize=10)


def _whole_ticks() -> Any:  # Any: matplotlib's locator
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, integer=True)


def safe(text: str) -> str:
    """Letters as they are: a dollar begins no mathematics, and a name with an underscore in front stays in a legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _named(axes: Any, names: Sequence[str], title: str) -> None:  # Any: matplotlib's axes
    is_long = max(map(len, names), default=0) > 3 or len(names) > 30
    axes.set_xticks(range(len(names)), [safe(name) for name in names], fontsize=8, rotation=90 if is_long else 0)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel(title)


def _bare(axes: Any) -> None:  # Any: matplotlib's axes
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
