"""How well are hidden expression values recovered? The question of the paper's Figure 7, beside PCA and doing nothing.

A share of the nonzero raw counts, drawn uniformly over the whole matrix, is set to 0 before anything is fitted: the gene
filter, the variable genes, the size factors and the network see the damaged counts only. (The paper damages the
normalised values instead.) The default scAMAC is fitted to them and reconstructs them; so does PCA of the same damaged
log-normalised matrix on the same genes, clamped at 0 as ours is. Rank 32, the width of the latent, is the one to compare
with; rank 50 and rank 0, the mean of each gene, stand beside it.

Scored are the hidden entries of the genes that the model keeps, the same for all methods, against the undamaged counts
brought to log-normalised values as if nothing had been hidden: size factors from the undamaged totals over the genes that
passed the model's filter, scaled to their median. The damage to the size factors so counts as error, for all methods alike.
Labels give their number as K, and nothing else.

    python benchmarks/imputation.py --data FOLDER --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from quality import THREAD_SETTINGS
from record import Results, environment
from rich.console import Console
from rich.table import Table
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scamac_scale.cells.genes import GeneSpace

OUT = Path(__file__).resolve().parent / "results" / "imputation.json"
KEY = ("set", "share", "method", "seed")
SETS = ("zeisel1464_1000g", "pbmc3k_seurat")
SHARES = (0.1, 0.3, 0.5)
RANKS = {"pca32": 32, "pca50": 50, "gene-mean": 0}
TITLES = {
    "scamac": "scAMAC",
    "pca32": "PCA, rank 32",
    "pca50": "PCA, rank 50",
    "gene-mean": "gene mean (rank 0)",
    "zeros": "zeros left",
}
SCORES = {"median_l1": "median L1, less is better", "rmse": "RMSE, less is better", "cosine": "cosine, more is better"}
NOTE = (
    "Hidden: raw counts, before the fit. Scored: hidden entries of the genes the model keeps, in log-normalised units of the "
    "undamaged counts. All of them are nonzero: who overestimates everywhere gains, and true zeros that are filled in cost "
    "nothing. The cosine is high for anything positive: compare it with the gene mean. Hidden uniformly, not the low values "
    "first as real dropout does. Median over seeds (lowest to highest)."
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of .h5ad files; default $SCAMAC_DATA"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="files of raw counts, without .h5ad")
    parser.add_argument("--label", default="cell_type", help="column of obs; its number of classes is K")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="of the nonzero counts to hide")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this minus 1, of the damage and of the fit")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file; replaced")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("name a folder of .h5ad files with --data, or in SCAMAC_DATA.")
    missing = [name for name in options.sets if not (Path(options.data) / f"{name}.h5ad").is_file()]
    if missing:
        parser.error(f"--data holds no {', '.join(missing)}; name others with --sets.")
    if not all(0 < share < 1 for share in options.shares):
        parser.error(f"--shares {options.shares}: each must lie between 0 and 1.")
    return options


def limit_threads(threads: int | None) -> None:
    """Give every library so many threads, those that are loaded and those to come; None leaves theirs."""
    if threads is not None:
        from threadpoolctl import threadpool_limits

        os.environ.update({name: str(threads) for name in THREAD_SETTINGS})
        threadpool_limits(threads)


def hide(
    counts: sparse.csr_matrix, share: float, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Set a share of the nonzero entries to 0.

    Parameters
    ----------
    counts
        (N, G); not changed.
    share
        Of the nonzero entries, 0 to 1; their number is rounded to the nearest.
    rng
        Draws the entries, all with the same chance, without replacement.

    Returns
    -------
    csr_matrix, csr_matrix
        (N, G) damaged counts, without stored zeros; (N, G) bool, True where an entry was hidden.
    """
    damaged = counts.copy()
    damaged.eliminate_zeros()
    rows = np.repeat(np.arange(damaged.shape[0]), np.diff(damaged.indptr))
    drawn = rng.choice(damaged.nnz, round(share * damaged.nnz), replace=False)
    places = rows[drawn], damaged.indices[drawn]
    hidden = sparse.csr_matrix((np.ones(drawn.size, dtype=bool), places), shape=damaged.shape)
    damaged.data[drawn] = 0
    damaged.eliminate_zeros()
    return damaged, hidden


def log_normalised(counts: sparse.csr_matrix, names: Sequence[str], genes: GeneSpace) -> NDArray[np.float32]:
    """Values of the model's genes, each cell scaled to the median total of these counts over the genes that passed the filter.

    Parameters
    ----------
    counts
        (N, G).
    names
        (G,) genes of the columns.
    genes
        Of the model; its own target is not used, since that is the median of the counts of the fit.

    Returns
    -------
    ndarray
        (N, chosen genes).
    """
    from scamac_scale.ingestion.normalise import GeneColumns

    totals = GeneColumns.locate(genes, names).totals(counts)
    own = replace(genes, target_sum=float(np.median(totals[totals > 0])))
    values: NDArray[np.float32] = GeneColumns.locate(own, names).normalised(counts).toarray()
    return values


def pca_reconstructions(values: NDArray[np.float32], ranks: Sequence[int]) -> list[NDArray[np.float64]]:
    """Exact PCA reconstructions (N, G) of these ranks, clamped at 0; rank 0 is the mean of each gene."""
    from scipy.linalg import eigh

    mean = values.mean(axis=0, dtype=np.float64)
    centered = values - mean
    n_genes = mean.size
    ends = [max(0, n_genes - max(ranks)), n_genes - 1]
    axes = eigh(centered.T @ centered, subset_by_index=ends)[1][:, ::-1]
    return [np.maximum(mean + centered @ axes[:, :rank] @ axes[:, :rank].T, 0.0) for rank in ranks]


def recover(
    damaged: sparse.csr_matrix, cells: AnnData, n_clusters: int, seed: int
) -> tuple[GeneSpace, dict[str, NDArray[Any]]]:
    """What every method makes of the damaged counts.

    Parameters
    ----------
    damaged
        (N, G) counts.
    cells
        Names of the N cells and G genes.
    n_clusters, seed
        Of the fit.

    Returns
    -------
    GeneSpace, dict
        The genes of the model; of each method (N, chosen genes) log-normalised values.
    """
    import anndata

    from scamac_scale import ScAMAC

    names = cells.var_names
    adata = anndata.AnnData(damaged, obs=cells.obs[[]].copy(), var=cells.var[[]].copy())
    model = ScAMAC(n_clusters, seed=seed).fit(adata)
    genes = model.fitted.genes
    predicted = model.predict(adata, denoised=True)
    assert list(predicted.var_names) == list(genes.chosen)
    values = log_normalised(damaged, names, genes)
    reconstructed = pca_reconstructions(values, list(RANKS.values()))
    return genes, {
        "scamac": predicted.layers["scamac_denoised"],
        **dict(zip(RANKS, reconstructed, strict=True)),
        "zeros": values,
    }


def score_all(counts: sparse.csr_matrix, cells: AnnData, n_clusters: int, share: float, seed: int) -> dict[str, Any]:
    """Hide, recover and score once: the scores of each method, and what was scored."""
    from scamac_scale.metrics.imputation import imputation_scores
    from scamac_scale.randomness import numpy_generator

    damaged, hidden = hide(counts, share, numpy_generator(seed, "hidden counts", round(1e6 * share)))
    genes, recovered = recover(damaged, cells, n_clusters, seed)
    truth = log_normalised(counts, cells.var_names, genes)
    held_out = hidden[:, cells.var_names.get_indexer(list(genes.chosen))].toarray()
    scores = {name: imputation_scores(truth, values, held_out) for name, values in recovered.items()}
    return {
        "scores": scores,
        "n_hidden": int(hidden.nnz),
        "n_scored": int(held_out.sum()),
        "n_genes": len(genes.chosen),
        "mean_truth": float(truth[held_out].mean()),
    }


def run_set(path: Path, options: argparse.Namespace, console: Console) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All shares and seeds of one set: what it is, and one row for each method."""
    import anndata

    cells = anndata.read_h5ad(path)
    counts = sparse.csr_matrix(cells.X)
    counts.sum_duplicates()
    if not np.array_equal(counts.data, np.rint(counts.data)):
        raise SystemExit(f"{path.name} holds values that are no counts; hiding is done on raw counts.")
    labels = cells.obs[options.label].dropna().astype(str)
    n_clusters = labels[labels != ""].nunique()
    facts = {
        "cells": cells.n_obs,
        "genes": cells.n_vars,
        "density": round(counts.count_nonzero() / np.prod(counts.shape), 4),
        "classes": n_clusters,
    }
    rows = []
    for share in options.shares:
        for seed in range(options.seeds):
            found = score_all(counts, cells, n_clusters, share, seed)
            shared = {name: found[name] for name in ("n_hidden", "n_scored", "n_genes", "mean_truth")}
            for name, scores in found["scores"].items():
                kept = {score: scores[score] for score in SCORES}
                rows.append({"set": path.stem, "share": share, "method": name, "seed": seed, **kept, **shared})
            line = "  ".join(f"{name} {scores['rmse']:.3f}" for name, scores in found["scores"].items())
            console.print(f"{path.stem}  {share:.0%}  seed {seed}  RMSE  {line}", highlight=False, soft_wrap=True)
    return facts, rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the seeds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def in_words(values: dict[str, float], digits: int = 3) -> str:
    """Median, with the lowest and the highest in brackets."""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(values["median"], values["low"], values["high"], d=digits)


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each set, share and method: every score over the seeds."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["share"], row["method"]), []).append(row)
    return [
        {"set": name, "share": share, "method": method}
        | {score: spread([row[score] for row in group]) for score in SCORES}
        | {count: statistics.median(row[count] for row in group) for count in ("n_scored", "n_genes")}
        for (name, share, method), group in groups.items()
    ]


def show(summary: Sequence[dict[str, Any]], name: str) -> Table:
    """The table of one set; the best median of each share is bold."""
    table = Table(title=f"{name}: hidden counts, recovered", caption=NOTE, caption_justify="left")
    for column in ("hidden", "scored", "method", *SCORES.values()):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=column == "method")
    for share in dict.fromkeys(row["share"] for row in summary if row["set"] == name):
        rows = [row for row in summary if row["set"] == name and row["share"] == share]
        best = {score: (max if score == "cosine" else min)(row[score]["median"] for row in rows) for score in SCORES}
        for index, row in enumerate(rows):
            what = (f"{share:.0%}", f"{row['n_scored']:,.0f} of {row['n_genes']:.0f} genes") if index == 0 else ("", "")
            cells = [
                f"[bold]{in_words(row[score])}[/]" if row[score]["median"] == best[score] else in_words(row[score])
                for score in SCORES
            ]
            table.add_row(*what, TITLES[row["method"]], *cells, end_section=index + 1 == len(rows))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Hide, recover, score, print, write."""
    options = parse(arguments)
    limit_threads(options.threads)
    from scamac_scale.config import IngestConfig, ScamacConfig

    console = Console(width=None if sys.stdout.isatty() else 160)
    where = environment()
    sets, rows = {}, []
    for name in options.sets:
        sets[name], found = run_set(Path(options.data) / f"{name}.h5ad", options, console)
        rows += found
    summary = summarise(rows)
    Results(options.out, KEY).update(
        environments=[where],
        settings={"config": asdict(ScamacConfig()), "ingest": asdict(IngestConfig()), "ranks": RANKS},
        note=NOTE,
        sets=sets,
        summary=summary,
        runs=[{**row, "environment": 0} for row in rows],
    )
    for name in options.sets:
        console.print(show(summary, name))


if __name__ == "__main__":
    main()
