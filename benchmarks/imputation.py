"""How well are hidden expression values recovered? Two protocols: honest, and that of the paper's Figure 7.

``thinned`` (the default) is molecular cross-validation: see thinning.py. Beside ours stand no denoising, the mean of each
gene, PCA, ALRA, MAGIC and scVI.

``hidden`` is the biased protocol of Figure 7. A share of the nonzero raw counts, drawn uniformly over the whole matrix, is set
to 0 before anything is fitted: the gene filter, the variable genes, the size factors and the network see the damaged counts
only. (The paper damages the normalised values instead.) Only entries that were nonzero are scored, so a method that fills in
true zeros pays nothing. The default scAMAC is fitted to them and reconstructs them; so does PCA of the same damaged
log-normalised matrix on the same genes, clamped at 0 as ours is. Rank 32, the width of the latent, is the one to compare
with; rank 50 and rank 0, the mean of each gene, stand beside it. Scored are the hidden entries of the genes that the model
keeps, the same for all methods, against the undamaged counts brought to log-normalised values as if nothing had been hidden:
size factors from the undamaged totals over the genes that passed the model's filter, scaled to their median. The damage to
the size factors so counts as error, for all methods alike. Labels give their number as K, and nothing else.

    python benchmarks/imputation.py --threads 1 --magic-python PEERS/magic/bin/python --scvi-python PEERS/scvi/bin/python
    python benchmarks/imputation.py --threads 1 --protocol hidden
    python benchmarks/imputation.py --report                   # the tables again, from the JSON file
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
import thinning
from denoisers import DENOISERS, PACKAGES, pca_reconstructions
from integration.children import PeerError, Peers
from quality import THREAD_SETTINGS
from record import Results, environment
from rich.console import Console
from rich.table import Table
from scipy import sparse
from summary import in_words, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scamac_scale.cells.genes import GeneSpace

OUT = Path(__file__).resolve().parent / "results" / "imputation.json"
KEY = ("protocol", "set", "share", "method", "seed")
PROTOCOLS = ("thinned", "hidden")
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
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="all entries, or Figure 7's")
    parser.add_argument("--sets", nargs="+", help="files of raw counts, without .h5ad; default: those of the protocol")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this minus 1, of the damage and of the fit")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--resume", action="store_true", help="thinned: skip what the file holds, of whatever commit")
    parser.add_argument("--report", action="store_true", help="no fits: the tables of what the file holds")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    thinned = parser.add_argument_group("thinned")
    thinned.add_argument("--methods", nargs="+", choices=list(DENOISERS), metavar="METHOD", default=list(DENOISERS))
    thinned.add_argument("--magic-python", type=Path, help="interpreter of the environment with MAGIC; none: left out")
    thinned.add_argument("--scvi-python", type=Path, help="interpreter of the environment with scVI; none: left out")
    hidden = parser.add_argument_group("hidden")
    hidden.add_argument("--label", default="cell_type", help="column of obs; its number of classes is K")
    hidden.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="of the nonzero counts to hide")
    options = parser.parse_args(arguments)
    if options.report:
        return options
    if options.data is None:
        parser.error("name a folder of .h5ad files with --data, or in SCAMAC_DATA.")
    options.sets = options.sets or list(SETS if options.protocol == "hidden" else thinning.SETS)
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
    counts = thinning.read_counts(path)
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
                rows.append(
                    {
                        "protocol": "hidden",
                        "set": path.stem,
                        "share": share,
                        "method": name,
                        "seed": seed,
                        **kept,
                        **shared,
                    }
                )
            line = "  ".join(f"{name} {scores['rmse']:.3f}" for name, scores in found["scores"].items())
            console.print(f"{path.stem}  {share:.0%}  seed {seed}  RMSE  {line}", highlight=False, soft_wrap=True)
    return facts, rows


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


def run_hidden(options: argparse.Namespace, results: Results, console: Console) -> None:
    """The protocol of Figure 7 on all sets."""
    from scamac_scale.config import IngestConfig, ScamacConfig

    where = environment()
    for name in options.sets:
        facts, rows = run_set(Path(options.data) / f"{name}.h5ad", options, console)
        for row in rows:
            results.add(row, where)
        results.update(sets={**results.read().get("sets", {}), name: facts})
    settings = {"config": asdict(ScamacConfig()), "ingest": asdict(IngestConfig()), "ranks": RANKS}
    results.update(settings={**results.read().get("settings", {}), "hidden": settings})


def usable_methods(options: argparse.Namespace, console: Console) -> tuple[list[str], dict[str, Peers]]:
    """Methods that can run here, and the environments of the peers."""
    pythons = {"magic-impute": options.magic_python, "scvi-tools": options.scvi_python}
    peers = {package: Peers(python, options.threads) for package, python in pythons.items()}
    usable = []
    for method in options.methods:
        package = PACKAGES.get(method)
        try:
            if package is not None:
                peers[package].check([package])
            usable.append(method)
        except PeerError as error:
            console.print(f"{method} is left out: {error}", highlight=False, soft_wrap=True)
    return usable, peers


def run_thinned(options: argparse.Namespace, results: Results, console: Console) -> None:
    """Molecular cross-validation on all sets, one method after the other."""
    from denoisers import ALRA, PCA_RANKS

    methods, peers = usable_methods(options, console)
    where, done = environment(), results.done() if options.resume else set()
    for name in options.sets:
        for seed in range(options.seeds):
            missing = [m for m in methods if ("thinned", name, thinning.HELD_OUT_SHARE, m, seed) not in done]
            ours = ("thinned", name, thinning.HELD_OUT_SHARE, "scamac", seed)
            budget = next((run["cpu_seconds"] for run in results.read()["runs"] if results.key_of(run) == ours), None)
            path = Path(options.data) / f"{name}.h5ad"
            for row in thinning.run_seed(path, seed, missing, peers, budget) if missing else ():
                results.add(row, where)
                said = f"Poisson {row['poisson']:.4f}  log MSE {row['log_mse']:.4f}  {row['cpu_seconds']:.0f} CPU s"
                console.print(f"{name}  {row['method']}  seed {seed}  {said}", highlight=False, soft_wrap=True)
    settings = {"held_out_share": thinning.HELD_OUT_SHARE, "alra": ALRA, "pca_ranks": PCA_RANKS}
    results.update(settings={**results.read().get("settings", {}), "thinned": settings})


RUNS = {"thinned": run_thinned, "hidden": run_hidden}


def report(results: Results, console: Console) -> None:
    """Summarise all that the file holds, write that into it, and print the tables."""
    runs = results.read()["runs"]
    hidden = [run for run in runs if run["protocol"] == "hidden"]
    thinned = [run for run in runs if run["protocol"] == "thinned"]
    summary = {"thinned": thinning.summarise(thinned), "hidden": summarise(hidden)}
    results.update(note={"thinned": thinning.NOTE, "hidden": NOTE}, summary=summary)
    if thinned:
        console.print(thinning.show(summary["thinned"]))
    for name in dict.fromkeys(run["set"] for run in hidden):
        console.print(show(summary["hidden"], name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Damage, recover, score, write, print."""
    options = parse(arguments)
    limit_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 160)
    results = Results(options.out, KEY)
    if not options.report:
        RUNS[options.protocol](options, results, console)
    report(results, console)


if __name__ == "__main__":
    main()
