"""What looks wrong in a run or its result, in sentences: what was looked at, what was found, what to do.

Each check is a function of `Facts` that yields findings; `CHECKS` lists them. None draws, or reads more than `gather` has, but for
one sample of latents by which batches are judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.evaluation import OWN_EXCESS, draw_sample
from scamac_scale.infer.output.table import UNSURE
from scamac_scale.metrics.mixing import GRAPH_NEIGHBORS, MIN_CELLS, own_batch
from scamac_scale.metrics.neighbors import find_neighbors
from scamac_scale.report_page.finding import Finding, Severity, recut_command
from scamac_scale.report_page.gather import Facts, gather
from scamac_scale.report_page.sample import read_latent
from scamac_scale.report_page.shown import counted, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scamac_scale.cells.genes import InputRecord
    from scamac_scale.ops.tree import Floats, Tree
    from scamac_scale.report_page.gather import ResultFacts

ORDER: dict[Severity, int] = {"bad": 0, "look": 1, "note": 2}
TINY_SHARE, TINY_CELLS = 1e-3, 10
"""A cluster with less than this share of all cells, or fewer cells, is tiny."""
ONE_BATCH, MANY_TIMES = 0.9, 4.0
"""A cluster is nearly one batch from this share on, where the odds of its cells to be of it are so many times those of all cells."""
MANY_UNSURE, MOST_UNSURE = 0.1, 0.3
"""Shares of such cells that are worth a look, and that are bad."""
JOINED_LOW = 0.5
"""Two clusters that the tree joins below are told apart by less than half of the clusterings."""
MANY_JOINS = 1 / 3
"""Share of such joins from which on the number of clusters is surely too large."""
FREE_HEIGHT = 0.45
"""Groups of the tree that are joined above are parted by all clusterings that choose their number themselves, or by most others."""
PART_SHARE = 0.01
"""Groups with a smaller share of all cells are not counted."""
MANY_PARTS, MOST_PARTS = 2.0, 3.0
"""So many groups for each cluster are worth a look, or bad."""
PURE = 0.5
"""A cluster whose commonest label has less than this share of its cells is of no one label."""
FEW_GENES = 500
MOST_OUT = 0.5
"""Filters of quality that leave out a larger share of the cells that were asked for are worth a look."""
SAMPLE_CELLS = 5_000
"""Cells whose neighbours tell how batches mix: some seconds."""
SHOWN = 5
"""Names of clusters or batches in a sentence."""
MAX_NAME = 80
"""Letters of each."""
N_MEASURED = "n_batches_measured"
"""Key of what a check has drawn: batches of which neighbours tell how they mix."""


def findings(
    run: str | Path, result: str | Path | None = None, *, label: str | None = None, batch_key: str | None = None
) -> list[Finding]:
    """Check a run and its result, without drawing anything.

    Parameters
    ----------
    run, result, label, batch_key
        As of `gather`.

    Returns
    -------
    list of Finding
        The most serious first; empty where nothing was found.
    """
    return check(gather(run, result, label=label, batch_key=batch_key))


def check(facts: Facts) -> list[Finding]:
    """Run all checks on what was gathered; the most serious first."""
    found = [finding for look in CHECKS for finding in look(facts)]
    return sorted(found, key=lambda finding: ORDER[finding["severity"]])


def _finding(severity: Severity, check: str, found: str, advice: str, command: str = "") -> Finding:
    return Finding(severity=severity, check=check, found=found, advice=advice, command=command)


def named(names: list[str]) -> str:
    """Write some names for a sentence."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(short(name, MAX_NAME) for name in names[:SHOWN]) + more


def _clusters(names: list[str]) -> str:
    return f"{'Cluster' if len(names) == 1 else 'Clusters'} {named(names)}"


# ------------------------------------------------------------------ what went in


def _values(facts: Facts) -> Iterator[Finding]:
    genes = facts.run.genes
    record = genes.values
    if record is None:
        return
    if record.seen == "mixed":
        yield _finding(
            "bad",
            "values",
            f"The cells hold values of two kinds, and all were taken as {genes.kind}.",
            "Give a matrix of one kind (ingest.matrix), and ingest again.",
        )
    elif record.seen != genes.kind and "log" in (record.seen, genes.kind):
        yield _finding(
            "bad" if record.is_sure else "look",
            "values",
            f"The values were taken as {genes.kind}, as was said, but look like {record.seen}"
            + (" values." if record.seen != "counts" else "."),
            "Ingest again without --ingest.kind, or with the kind that they are; clusters of wrong values mean little.",
        )
    elif record.seen != genes.kind:
        yield _finding(
            "look",
            "values",
            f"The values were taken as {genes.kind}, but look like {record.seen} values.",
            "Ingest the raw counts if there are any; else say --ingest.kind " + record.seen + ".",
        )
    elif not record.is_sure:
        yield _finding(
            "look",
            "values",
            f"The values were taken as {genes.kind}, but the evidence is weak.",
            "If they are of another kind, ingest again with --ingest.kind counts, linear or log.",
        )


def _genes(facts: Facts) -> Iterator[Finding]:
    genes = facts.run.genes
    if len(genes.chosen) < FEW_GENES:
        yield _finding(
            "look",
            "genes",
            f"The model has only {len(genes.chosen):,} genes, of {len(genes.filtered):,} that passed the filter"
            + ("." if genes.input is None else f" and {genes.input.n_genes:,} in the input."),
            "Give all genes of the raw file, or raise ingest.n_genes; look at ingest.min_cells if few passed.",
        )


def left_out(record: InputRecord) -> str:
    """Name the filters that left out cells, with how many each did."""
    return ", ".join(f"ingest.{name} {number:,}" for name, number in record.left_out.items() if number)


def _filters(facts: Facts) -> Iterator[Finding]:
    """Tell of filters of quality that took away most of the cells that were asked for."""
    record = facts.run.genes.input
    if record is None:
        return
    n_asked = record.n_cells - sum(record.left_out.get(name, 0) for name in ("where", "cells"))
    n_poor = n_asked - record.n_taken
    if n_poor <= MOST_OUT * n_asked:
        return
    yield _finding(
        "look",
        "cells",
        f"The filters of quality left out {n_poor:,} of the {n_asked:,} cells that were asked for: {left_out(record)}.",
        "If that was not meant, ingest again with other values of these.",
    )


def _cells(facts: Facts) -> Iterator[Finding]:
    n_fit = facts.run.report.get("n_cells")
    if facts.result is not None and isinstance(n_fit, int) and n_fit != facts.result.n_cells:
        yield _finding(
            "note",
            "cells",
            f"The model was fitted to {n_fit:,} cells, the result has {facts.result.n_cells:,}.",
            "That is as it should be if the result is of other cells, or some were left out by a filter.",
        )


# ------------------------------------------------------------------ the fit


def _losses(facts: Facts) -> Iterator[Finding]:
    metrics = facts.run.metrics
    broken = [name for name, (_, values) in metrics.items() if not np.isfinite(values).all()]
    if broken:
        yield _finding(
            "bad",
            "losses",
            f"The losses {named(sorted(broken))} hold values that are not finite.",
            "Lower train.phases[].learning_rate, and look for broken values in the input (inspect).",
        )
    if "reconstruction" in metrics and "reconstruction" not in broken:
        values = metrics["reconstruction"][1]
        tail = float(np.median(values[-max(1, len(values) // 5) :]))
        if len(values) >= 5 and tail > 1.02 * float(values[0]):
            yield _finding(
                "bad",
                "losses",
                f"The reconstruction loss did not fall: from {values[0]:.3g} to {tail:.3g}.",
                "Train with a lower learning rate or more steps; look at the values of the input.",
            )


# ------------------------------------------------------------------ the number of clusters


def _count(facts: Facts) -> Iterator[Finding]:
    n_clusters = facts.run.model.n_clusters
    is_other = facts.result is not None and len(facts.result.clusters.names) != n_clusters  # it was said to predict
    if facts.run.report.get("is_count_estimated") and not is_other:
        other = n_clusters - 1 if n_clusters > 2 else n_clusters + 1
        command = recut_command(facts, other)
        yield _finding(
            "note",
            "number of clusters",
            f"The number of clusters, {n_clusters}, is an estimate: right within one about two times in five.",
            "If you know it, say --n-clusters."
            + (
                f" This cuts the same tree into {other}, or the number that you write there, without training."
                if command
                else ""
            ),
            command,
        )


def _tree(facts: Facts) -> Iterator[Finding]:
    """Clusters that belong together, and fewer clusters than clusterings find that choose their number themselves."""
    result, tree = facts.result, facts.run.model.tree
    n_clusters = facts.run.model.n_clusters if result is None else len(result.clusters.names)
    top = None if result is None else result.tree
    if top is None and tree is not None and 2 <= n_clusters <= len(tree):
        top = tree.top(n_clusters)
    if top is not None:
        yield from _joined(top, facts)
    if tree is not None and n_clusters < len(tree):
        yield from _parted(tree, n_clusters, facts)


def _joined(top: Floats, facts: Facts) -> Iterator[Finding]:
    n_clusters, result = len(top) + 1, facts.result
    names = [str(number) for number in range(n_clusters)] if result is None else result.clusters.names
    low = top[top[:, 2] < JOINED_LOW]
    if not len(low):
        return
    pairs = [f"{names[int(one)]} and {names[int(other)]}" for one, other in low[:, :2] if max(one, other) < n_clusters]
    fewer = max(2, n_clusters - len(low))
    yield _finding(
        "bad" if len(low) >= max(2, MANY_JOINS * len(top)) else "look",
        "number of clusters",
        f"{len(low)} of the {counted(len(top), 'join')} of the tree {'is' if len(low) == 1 else 'are'} low: more than half of the clusterings do not tell clusters "
        f"{named(pairs)} apart.",
        f"There may be too many clusters. Compare predict --n-clusters {fewer}, which cuts the same tree.",
        recut_command(facts, fewer),
    )


def _parted(tree: Tree, n_clusters: int, facts: Facts) -> Iterator[Finding]:
    """Leiden chooses its number of clusters itself, and has half of the weight: what it alone parts is joined at one half."""
    finer = tree.count_at(FREE_HEIGHT)
    shares = np.bincount(tree.labels(finer), tree.weights) / tree.weights.sum()
    n_parts = int((shares >= PART_SHARE).sum())
    if n_parts >= MANY_PARTS * n_clusters:
        yield _finding(
            "bad" if n_parts >= MOST_PARTS * n_clusters else "look",
            "number of clusters",
            f"There {'is' if n_clusters == 1 else 'are'} {counted(n_clusters, 'cluster')}, but clusterings that choose their number themselves find {n_parts} groups.",
            f"There may be too few clusters. Compare predict --n-clusters {n_parts}, or train with --n-clusters auto.",
            recut_command(facts, n_parts),
        )


def _confidence(facts: Facts) -> Iterator[Finding]:
    result = facts.result
    if result is None or result.memberships is None or not result.n_cells:
        return
    share = float((result.memberships.confidence < UNSURE).mean())
    if share >= MANY_UNSURE:
        yield _finding(
            "bad" if share >= MOST_UNSURE else "look",
            "membership",
            f"{share:.0%} of the cells belong to their cluster by less than one half.",
            "Clusters overlap: try fewer of them (predict --n-clusters), and look at the values of the input.",
        )


# ------------------------------------------------------------------ clusters


def _empty(facts: Facts) -> Iterator[Finding]:
    result = facts.result
    if result is None:
        numbers = facts.run.report.get("empty_clusters") or []
        empty, whole = [str(number) for number in numbers], "of the fit"
    else:
        empty = [name for name, size in zip(result.clusters.names, result.sizes, strict=True) if not size]
        whole = "of the result"
    if empty:
        yield _finding(
            "look",
            "empty clusters",
            f"{_clusters(empty)} {whole} {'has' if len(empty) == 1 else 'have'} no cells.",
            "Ask for fewer clusters, unless the result is of new cells that lack these types.",
        )


def _tiny(facts: Facts) -> Iterator[Finding]:
    result = facts.result
    if result is None:
        return
    most = max(TINY_CELLS, TINY_SHARE * result.n_cells)
    tiny = [
        f"{name} ({size:,})" for name, size in zip(result.clusters.names, result.sizes, strict=True) if 0 < size < most
    ]
    if tiny:
        yield _finding(
            "look",
            "tiny clusters",
            f"{_clusters(tiny)} {'has' if len(tiny) == 1 else 'have'} few cells.",
            "They may be a rare type, or doublets and damaged cells: look at their markers and counts.",
        )


def _labels(facts: Facts) -> Iterator[Finding]:
    """Labels that share a cluster so that none owns it."""
    result = facts.result
    if result is None or result.labels is None or len(result.labels.names) < 2:
        return
    table = result.crossed(result.labels)
    totals = table.sum(axis=1)
    of_all = table.sum(axis=0) / max(table.sum(), 1)
    mixed = [
        name
        for name, row, total in zip(result.clusters.names, table, totals, strict=True)
        if total >= TINY_CELLS and row.max() < PURE * total and row.max() < (1 + of_all.max()) / 2 * total
    ]
    owned = set(table.argmax(axis=1)[totals > 0].tolist())
    lost = [name for at, name in enumerate(result.labels.names) if at not in owned and of_all[at] >= 0.01]
    if mixed:
        yield _finding(
            "look",
            "labels",
            f"{_clusters(mixed)} {'holds' if len(mixed) == 1 else 'hold'} several labels, none with half of the cells.",
            "Ask for more clusters (predict --n-clusters), or cut these further with refine.",
        )
    if lost:
        many = len(lost) >= 0.4 * len(result.labels.names)
        yield _finding(
            "bad" if many else "look",
            "labels",
            f"{len(lost)} of {len(result.labels.names)} labels {'is' if len(lost) == 1 else 'are'} the commonest in no cluster: {named(lost)}.",
            "They share clusters with others. Ask for more clusters, or cut these further with refine.",
        )


# ------------------------------------------------------------------ technical batches


def _one_batch(facts: Facts) -> Iterator[Finding]:
    result = facts.result
    if result is None or result.batches is None:
        return
    table = result.crossed(result.batches)
    totals, overall = table.sum(axis=1), table.sum(axis=0) / max(table.sum(), 1)
    first = table.argmax(axis=1)
    rows = np.arange(len(table))
    own, of_all = table[rows, first] / np.maximum(totals, 1), overall[first]
    is_clear = own * (1 - of_all) >= MANY_TIMES * of_all * (1 - own)
    alone = (totals >= TINY_CELLS) & (own >= ONE_BATCH) & is_clear
    if not alone.any():
        return
    held = float(totals[alone].sum() / max(totals.sum(), 1))
    told = [f"{result.clusters.names[at]} ({result.batches.names[first[at]]})" for at in np.flatnonzero(alone)]
    yield _finding(
        "bad" if held >= 0.3 else "look",
        "batches",
        f"{_clusters(told)} {'is' if len(told) == 1 else 'are'} nearly one batch, with {held:.0%} of all cells.",
        _batch_advice(facts, result),
    )


def _mixing(facts: Facts) -> Iterator[Finding]:
    """Batches whose cells have few neighbours of others."""
    result = facts.result
    if result is None or result.batches is None or result.n_cells < MIN_CELLS:
        return
    kept = np.flatnonzero(result.batches.codes >= 0)
    rows = kept[draw_sample(result.batches.codes[kept], SAMPLE_CELLS)]
    neighbors = find_neighbors(read_latent(result, rows), GRAPH_NEIGHBORS - 1)
    groups = np.zeros(len(rows), dtype=np.int64) if result.labels is None else result.labels.of(rows)
    own = own_batch(neighbors.indices, result.batches.codes[rows], groups)
    excess = own.excess
    facts.own[N_MEASURED] = int(np.isfinite(excess).sum())
    apart = [
        f"{result.batches.names[at]} ({own.found[at]:.0%} of neighbours are its own, {own.expected[at]:.0%} if mixed)"
        for at in np.flatnonzero(np.nan_to_num(excess, nan=-1.0) >= OWN_EXCESS)
    ]
    if apart:
        yield _finding(
            "bad" if len(apart) * 2 >= len(result.batches.names) else "look",
            "batches",
            f"{len(apart)} of {len(result.batches.names)} batches hardly {'mixes' if len(apart) == 1 else 'mix'} with others: {named(apart)}.",
            _batch_advice(facts, result),
        )


def _batch_advice(facts: Facts, result: ResultFacts) -> str:
    if facts.run.batch_key is None:
        return f"Train again with --batch-key {result.batch_key}, unless the batches hold other kinds of cells."
    return "If they hold the same kinds of cells, raise --correction.theta; if not, that is as it should be."


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _values,
    _genes,
    _filters,
    _cells,
    _losses,
    _count,
    _tree,
    _confidence,
    _empty,
    _tiny,
    _labels,
    _one_batch,
    _mixing,
)
"""All checks, in the order of their parts; `check` sorts what they find."""
