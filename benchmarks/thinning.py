"""Molecular cross-validation: the honest protocol of benchmarks/imputation.py.

Each molecule comes into the held-out part with a chance of one in ten. Genes are chosen on what is left, without labels, and
every method gets the same counts of these genes. Scored are all entries of the held-out part, zeros too, so a true zero
that is filled in costs as much as a value that is missed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from denoisers import DENOISERS, TITLES, Work, thin
from rich.table import Table
from scipy import sparse
from summary import in_words, spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from integration.children import Peers

SETS = ("zeisel1464_1000g", "baron_mouse1_822", "mix_celseq2_5cl", "pbmc3k_seurat", "zheng_facs3774")
HELD_OUT_SHARE = 0.1
SCORES = {
    "poisson": "Poisson loss",
    "poisson_totals": "Poisson loss, totals of the cells put right",
    "log_mse": "log MSE",
}
NOTE = (
    "All entries of the held-out molecules, zeros too; less is better. Poisson loss and log MSE (10,000 counts a cell) as in "
    "the denoising task of Open Problems. The Poisson loss is least for the true expectation. The log MSE is not: it favours "
    "the expectation of the logarithm, which is lower. Second column: each cell's denoised counts scaled to the total that the "
    "method saw. CPU seconds: fit and prediction, one process. Median over seeds (lowest to highest)."
)


def read_counts(path: Path) -> sparse.csr_matrix:
    """Raw counts of a file, without stored zeros; ends with a message if they are none."""
    import anndata

    counts = sparse.csr_matrix(anndata.read_h5ad(path).X)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    if not np.array_equal(counts.data, np.rint(counts.data)):
        raise SystemExit(f"{path.name} holds values that are no counts; thinning and hiding are done on raw counts.")
    return counts


def chosen_genes(counts: sparse.csr_matrix) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Columns that scanpy chooses: expressed in 5 % of the cells, of these the 2,000 most variable; in their order."""
    import anndata
    from baselines import normalise

    cells = anndata.AnnData(counts.astype(np.float32))
    cells.var_names = [str(column) for column in range(counts.shape[1])]
    return np.sort(normalise(cells).var_names.astype(int).to_numpy())


def split_set(
    path: Path, seed: int, share: float
) -> tuple[sparse.csr_matrix, sparse.csr_matrix, dict[str, int | float]]:
    """Kept and held-out counts (N, chosen genes), and what the set is. Cells of which nothing is kept are left out."""
    from scamac_scale.randomness import numpy_generator

    counts = read_counts(path)
    kept, test = thin(counts, share, numpy_generator(seed, "thinned counts", round(1e6 * share)))
    genes = chosen_genes(kept)
    kept, test = kept[:, genes], test[:, genes]
    has_counts = np.asarray(kept.sum(axis=1)).ravel() > 0
    kept, test = sparse.csr_matrix(kept[has_counts]), sparse.csr_matrix(test[has_counts])
    facts = {
        "cells": counts.shape[0],
        "genes": counts.shape[1],
        "scored_cells": kept.shape[0],
        "scored_genes": kept.shape[1],
        "density": round(kept.nnz / np.prod(kept.shape), 4),
        "held_out_zeros": round(1 - test.nnz / np.prod(test.shape), 4),
        "kept_counts_a_cell": float(np.median(np.asarray(kept.sum(axis=1)))),
    }
    return kept, test, facts


def run_seed(
    path: Path, seed: int, methods: Sequence[str], peers: dict[str, Peers], cpu_seconds: float | None = None
) -> Iterator[dict[str, Any]]:
    """One row for each method, each as soon as it is there; `cpu_seconds`: what ours took, if it has run before."""
    from scamac_scale.metrics.imputation import thinned_scores

    kept, test, facts = split_set(path, seed, HELD_OUT_SHARE)
    work, held_out = Work(kept, seed, peers, cpu_seconds), test.toarray()
    for name in (name for name in DENOISERS if name in methods):
        found = DENOISERS[name](work)
        if name == "scamac":
            work = replace(work, cpu_seconds=found.cost.cpu_seconds)
        sums = found.counts.sum(axis=1, keepdims=True)
        put_right = found.counts * (work.totals / np.where(sums > 0, sums, 1.0))
        total = float(work.totals.sum())
        scores = thinned_scores(held_out, found.counts, total)
        yield {
            "protocol": "thinned",
            "set": path.stem,
            "share": HELD_OUT_SHARE,
            "method": name,
            "seed": seed,
            "log_mse": scores["log_mse"],
            "poisson": scores["poisson"],
            "poisson_totals": thinned_scores(held_out, put_right, total)["poisson"],
            "cpu_seconds": round(found.cost.cpu_seconds, 2),
            "peak_bytes": found.cost.peak_bytes,
            **facts,
            **found.about,
        }


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each set and method, in the order of `DENOISERS`: every score over the seeds."""
    entries = []
    for name in dict.fromkeys(row["set"] for row in rows):
        for method in DENOISERS:
            group = [row for row in rows if row["set"] == name and row["method"] == method]
            if group:
                scores = {score: spread([row[score] for row in group]) for score in (*SCORES, "cpu_seconds")}
                entries.append({"set": name, "method": method, **scores})
    return entries


def show(summary: Sequence[dict[str, Any]]) -> Table:
    """One row for each set and method; the best median of each set is bold."""
    table = Table(title="Held-out molecules", caption=NOTE, caption_justify="left")
    for column in ("set", "method", *SCORES.values(), "CPU s"):
        table.add_column(column, justify="left" if column in ("set", "method") else "right", no_wrap=column == "method")
    for name in dict.fromkeys(row["set"] for row in summary):
        rows = [row for row in summary if row["set"] == name]
        best = {score: min(row[score]["median"] for row in rows) for score in SCORES}
        for index, row in enumerate(rows):
            cells = [
                f"[bold]{in_words(row[score], 4)}[/]"
                if row[score]["median"] == best[score]
                else in_words(row[score], 4)
                for score in SCORES
            ]
            cpu = f"{row['cpu_seconds']['median']:.0f}"
            table.add_row(
                name if index == 0 else "", TITLES[row["method"]], *cells, cpu, end_section=index + 1 == len(rows)
            )
    return table
