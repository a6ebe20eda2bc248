"""A report: gathers, checks, draws, and writes a folder with the page and its pictures, all or nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.durable.atomic import atomic_folder, check_output, writing
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import ConfigError, OutputError, choose
from scamac_scale.host.memory import explained
from scamac_scale.remote.place import is_url
from scamac_scale.report_page import figures, words
from scamac_scale.report_page.checks import check
from scamac_scale.report_page.curves import curves_of
from scamac_scale.report_page.gather import gather
from scamac_scale.report_page.leaves import leaves_of
from scamac_scale.report_page.page import Page, Part, packed, render
from scamac_scale.report_page.pictures import Pictures, with_matplotlib
from scamac_scale.report_page.sample import LAYOUTS, draw_by_root, lay_out, read_latent
from scamac_scale.report_page.shown import MOST, Shown, counted, short, shown

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.config import Layout
    from scamac_scale.report_page.finding import Finding
    from scamac_scale.report_page.gather import Facts, ResultFacts

logger = logging.getLogger(__name__)

PAGE_FILE = "report.html"
LAYOUT_NAMES = {"umap": "UMAP", "tsne": "t-SNE"}
LEAST_CELLS = 100


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Cells of the map: their rows, where they lie, and levels as they are shown."""

    rows: IntArray
    points: FloatArray
    layout: str


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How a report is made.

    Attributes
    ----------
    layout
        Of the cells in two dimensions.
    max_cells
        Cells that are drawn, at most.
    """

    layout: Layout = "umap"
    max_cells: int = 20_000

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        choose(LAYOUTS, self.layout, "layout")
        if self.max_cells < LEAST_CELLS:
            raise ConfigError(f"max_cells={self.max_cells}; at least {LEAST_CELLS} cells are drawn.")


def default_place(run: str | Path) -> Path:
    """Name the folder of a report where none is named: beside the run, or here where the run is in a bucket."""
    name = str(run).rstrip("/")
    return Path(name.rpartition("/")[2] + ".report") if is_url(run) else at_home(f"{name}.report")


@explained("report")
def write_report(
    run: str | Path,
    result: str | Path | None,
    options: ReportOptions,
    *,
    label: str | None = None,
    batch_key: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a report; see `scamac_scale.api.report`."""
    if out is not None and is_url(out):
        raise OutputError(f"{out}: a report is written on a disk; name a folder there with --out, and copy it.")
    folder = default_place(run) if out is None else at_home(out)
    check_output(folder, overwrite=overwrite, marker=PAGE_FILE)
    facts = gather(run, result, label=label, batch_key=batch_key)
    found = check(facts)
    place = atomic_folder(folder, overwrite=overwrite, marker=PAGE_FILE, rename_point="report.rename")
    with place as new, with_matplotlib(), writing(folder):
        pictures = Pictures(new)
        page = _compose(facts, found, options, pictures)
        (new / PAGE_FILE).write_text(render(page), encoding="utf-8")
        n_bytes = (new / PAGE_FILE).stat().st_size
    return {
        "report": str(folder / PAGE_FILE),
        "pictures": [str(folder / name) for name in pictures.names],
        "page_bytes": n_bytes,
        "n_cells": None if facts.result is None else facts.result.n_cells,
        "n_clusters": facts.run.model.n_clusters if facts.result is None else len(facts.result.clusters.names),
        "findings": [dict(finding) for finding in found],
    }


def _compose(facts: Facts, found: list[Finding], options: ReportOptions, pictures: Pictures) -> Page:
    parts: list[Part] = []
    cells = None
    if facts.result is not None and facts.result.n_cells:
        clusters = shown(facts.result.clusters)
        parts.append(_sizes(facts.result, clusters, pictures))
        drawn = _draw_cells(facts, facts.result, options)
        cells, part = _map(facts.result, clusters, drawn, pictures)
        parts.append(part)
        parts += _labels(facts.result, clusters, pictures)
    parts += _tree(facts, pictures)
    if facts.result is not None and facts.result.n_cells:
        parts += _confidence(facts.result, clusters, pictures)
        parts.append(_markers(facts.result, pictures))
        parts += _batches(facts.result, clusters, pictures)
    parts.append(_curves(facts, pictures))
    n_cells = facts.run.report.get("n_cells") if facts.result is None else facts.result.n_cells
    n_clusters = facts.run.model.n_clusters if facts.result is None else len(facts.result.clusters.names)
    of_cells = f"{counted(n_cells, 'cell')} in " if isinstance(n_cells, int) else ""
    return Page(
        title=words.title(facts),
        headline=f"{of_cells}{counted(n_clusters, 'cluster')}, by scAMAC",
        about=words.about(facts),
        lines=words.lines(facts, found),
        findings=found,
        parts=parts,
        settings=words.settings(facts),
        cells=cells,
        words=words.SEVERITIES,
        version=_version(),
    )


def _version() -> str:
    try:
        return version("scamac-scale")
    except PackageNotFoundError:
        return ""


def _others(what: str, levels: Shown) -> list[str]:
    if not levels.n_others:
        return []
    return [f"The {levels.n_own} largest {what} are shown by themselves, {levels.n_others:,} others as one."]


def _left_out(result: ResultFacts) -> list[str]:
    """Say which batches are in no figure and no check."""
    if result.batches is None or not result.n_more_batches:
        return []
    n_own, n_cells = len(result.batches.names), int((result.batches.codes < 0).sum())
    return [
        f"There are {n_own + result.n_more_batches:,} batches of {short(result.batch_key or '')}. The {n_own:,} with the most cells are counted; "
        f"the others, with {counted(n_cells, 'cell')} ({n_cells / result.n_cells:.1%}), are left out here and in the checks, and grey in the map."
    ]


def _sizes(result: ResultFacts, clusters: Shown, pictures: Pictures) -> Part:
    means = None
    if result.memberships is not None:
        sums = clusters.summed(np.nan_to_num(result.memberships.mean) * result.sizes)
        means = np.where(clusters.counts > 0, sums / np.maximum(clusters.counts, 1), np.nan)
    pictures.sizes(clusters)
    notes = _others("clusters", clusters)
    if means is not None:
        notes.append("Above: cells of each cluster. Below: how much they belong to it, in the mean, from 0 to 1.")
    return Part("sizes", "Cluster sizes", [figures.sizes(clusters, means)], notes)


def _draw_cells(facts: Facts, result: ResultFacts, options: ReportOptions) -> _Drawn:
    seed = facts.run.config.get("seed", 0)
    rows = draw_by_root(result.clusters.codes, options.max_cells, seed)
    logger.info("laying out %s cells by %s", f"{len(rows):,}", LAYOUT_NAMES[options.layout])
    return _Drawn(rows, lay_out(read_latent(result, rows), options.layout, seed), options.layout)


def _map(result: ResultFacts, clusters: Shown, drawn: _Drawn, pictures: Pictures) -> tuple[dict[str, Any], Part]:
    columns, notes = [], []
    asked = [
        ("cluster", result.clusters),
        (result.label or "label", result.labels),
        (result.batch_key or "batch", result.batches),
    ]
    for at, (title, levels) in enumerate(asked):
        if levels is None:
            continue
        told = clusters if at == 0 else shown(levels)
        codes = told.of(levels.codes[drawn.rows])
        kind = ("cluster", "label", "batch")[at]
        columns.append(
            {
                "title": short(title),
                "names": told.names,
                "colors": told.colors,
                "codes": packed(codes, "u2"),
                "is_named": at == 0,
                "has_others": bool(told.n_others),
            }
        )
        pictures.map(f"map_{kind}", drawn.points, told, codes, f"Cells by {short(title)}, {LAYOUT_NAMES[drawn.layout]}")
        notes += _others({"batch": "batches"}.get(kind, f"{kind}s"), told)
    confidence = None if result.memberships is None else result.memberships.confidence[drawn.rows]
    if confidence is not None:
        title = f"How sure the cells are of their cluster, {LAYOUT_NAMES[drawn.layout]}"
        pictures.shades("map_confidence", drawn.points, confidence, title)
    name = LAYOUT_NAMES[drawn.layout]
    if len(drawn.rows) < result.n_cells:
        notes.insert(
            0,
            f"{name} of {len(drawn.rows):,} of the {result.n_cells:,} cells. Each cluster has 50 cells if it has so many, and more by the square root of its size, "
            "so that small ones are seen; how many points a cluster has does not tell how large it is.",
        )
    else:
        notes.insert(0, f"{name} of all {result.n_cells:,} cells.")
    notes.insert(1, "Distances between far clusters, and their areas, mean little in such a picture.")
    cells = {
        "x": packed(drawn.points[:, 0], "f4"),
        "y": packed(drawn.points[:, 1], "f4"),
        "row": packed(drawn.rows, "i4"),
        "confidence": None if confidence is None else packed(confidence, "f4"),
        "columns": columns,
    }
    return cells, Part("map", f"The cells ({name})", notes=notes, map=True)


def _labels(result: ResultFacts, clusters: Shown, pictures: Pictures) -> list[Part]:
    if result.labels is None or not result.labels.names:
        return []
    labels = shown(result.labels)
    table = clusters.summed(labels.summed(result.crossed(result.labels).T).T)
    figure, left_out = figures.sankey(clusters, labels, table)
    shares = table.T / np.maximum(table.sum(axis=0)[:, None], 1)
    pictures.table(f"Cells of {short(result.label or '')} in each cluster", labels.names, clusters.names, shares)
    notes = [f"Labels in {short(result.label or '')} on the left, clusters on the right."]
    if result.scores:
        n_none = result.n_cells - result.scores["n_cells"]
        notes.append(
            f"ARI {result.scores['ari']:.3f}, NMI {result.scores['nmi']:.3f} (1 is the same partition, 0 what chance gives)"
            + (f"; {n_none:,} cells have no label." if n_none else ".")
        )
    if left_out > 0:
        notes.append(f"Flows of few cells are left out of the figure: {left_out:.1%} of the cells.")
    return [Part("labels", "Labels and clusters", [figure], notes + _others("labels", labels))]


def _tree(facts: Facts, pictures: Pictures) -> list[Part]:
    found = leaves_of(facts)
    if found is None:
        return []
    linkage, leaves = found
    pictures.tree(linkage, leaves)
    notes = [
        "The height of a join is the share of clusterings that keep its two sides apart: clusters that are joined far left are alike. "
        "predict --n-clusters K cuts this tree anew, without training."
    ]
    if any("clusters)" in leaf for leaf in leaves):
        notes.append(f"The top {MOST} branches are shown; a branch may hold several clusters.")
    return [Part("tree", "The tree of the clusters", [figures.tree(linkage, leaves)], notes)]


def _confidence(result: ResultFacts, clusters: Shown, pictures: Pictures) -> list[Part]:
    if result.memberships is None:
        return []
    numbers = [at for at in range(len(clusters.number)) if clusters.number[at] < clusters.n_own]
    pictures.confidence(clusters, numbers, result.memberships)
    figure = figures.confidence(clusters, numbers, result.memberships)
    notes = [
        "The share of the cells of each cluster that belong to it by less than .9, .7 and .5, where 1 is wholly. All other cells belong to it by "
        ".9 or more. Many cells below .5 mean that clusters overlap."
    ]
    if clusters.n_others:
        notes.append(f"The {clusters.n_own} largest clusters.")
    return [Part("confidence", "How sure the cells are", [figure], notes)]


def _markers(result: ResultFacts, pictures: Pictures) -> Part:
    if result.markers is None or not result.markers.groups:
        line = f"No markers yet. Add them: scamac-scale markers {short(result.path, 120)} --input YOUR_RAW_FILE, then report again."
        return Part("markers", "Marker genes", notes=[line])
    figure = figures.markers(result.markers)
    genes = result.markers.top(figures.MOST_GENES)
    pictures.dots(figure.plot, genes, result.markers.groups[:MOST])
    notes = [
        "The best genes of each cluster. Size: share of its cells in which the gene is seen. Dark: much more than in other cells; "
        "grey: not among the best genes of this cluster."
    ]
    if len(result.markers.groups) > MOST:
        notes.append(f"The first {MOST} of {len(result.markers.groups):,} groups.")
    return Part("markers", "Marker genes", [figure], notes + words.numbers_for_names(genes))


def _batches(result: ResultFacts, clusters: Shown, pictures: Pictures) -> list[Part]:
    if result.batches is None:
        return []
    levels = shown(result.batches)
    table = clusters.summed(levels.summed(result.crossed(result.batches).T).T)
    pictures.stacks(f"Batches ({short(result.batch_key or '')}) in each cluster", clusters, levels, table)
    notes = [
        f"Shares of the batches ({short(result.batch_key or '')}) in each cluster; the last bar is of all cells. A bar unlike it is worth a look."
    ]
    return [
        Part(
            "batches",
            "Batches in the clusters",
            [figures.batches(clusters, levels, table)],
            notes + _left_out(result) + _others("batches", levels),
        )
    ]


def _curves(facts: Facts, pictures: Pictures) -> Part:
    metrics = facts.run.metrics
    if not metrics:
        return Part("curves", "The fit", notes=["The run has no metrics.csv."])
    found = words.phases(facts)
    drawn = curves_of(metrics, found)
    pictures.curves(drawn)
    made = figures.curves(drawn, found)
    tried = facts.run.report.get("n_clusters_tried")
    notes = []
    if found:
        notes.append(
            "Shades: " + ", ".join(f"{name} (steps {start:,.0f} to {stop:,.0f})" for name, start, stop in found) + "."
        )
    if isinstance(tried, dict) and tried.get("n_clusters"):
        figure = figures.counts_tried(tried, facts.run.model.n_clusters)
        made.append(figure)
    return Part("curves", "The fit", made, notes, small=True)
