"""Do sub-clusters match finer labels, and does one homogeneous population stay whole?

Real cells: a study with coarse and finer labels is fitted (told the number of coarse labels) and predicted; `refine` then cuts the coarse
labels themselves (so that the fit has no part in it) and the clusters of the fit. Of a coarse label with several finer ones: ARI of the
sub-clusters with these. A label with one finer one that is cut counts as a false split, though it may hold kinds of cells that nobody
labelled. Cell lines: no line should be cut; technical batches are the plates.

Simulated cells of one population: Poisson or negative binomial counts, of three distributions of depth and three numbers of cells; the share
that is cut. Simulated pairs of groups: the share that is found, by how many genes differ.

    python benchmarks/refine.py --data FOLDER --threads 1 --resume
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from quality import THREAD_SETTINGS
from record import Results, environment, measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

OUT = Path(__file__).resolve().parent / "results" / "refine.json"
KEY = ("set", "labels")
NULLS = [
    (noise, depth, n) for noise in ("poisson", "nb") for depth in ("even", "broad", "two") for n in (100, 500, 2000)
]
POWER = [(n, share, genes) for n in (300, 1000) for share in (0.5, 0.1) for genes in (10, 20)]
SETS = {
    "pbmc_pool18k_1191g": ("fine", 100),
    "deng_counts": ("stage10", 20),
    "mix_celseq2_5cl": ("cell_type", 50),
    "mix_cel_4batch": ("cell_type", 50),
}
"""Column with the finer labels, and the least cells of what is cut."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of labelled sets")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--studies", nargs="*", help="of a set with several; default: all")
    parser.add_argument("--cells", type=int, help="of a study, drawn at random; default: all")
    parser.add_argument("--repeats", type=int, default=50, help="simulated populations of each noise")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--resume", action="store_true", help="skip what the file holds, of whatever commit")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    return parser.parse_args(arguments)


def simulate(noise: str, depth: str, n: int, seed: int, share: float = 0.0, genes: int = 0) -> Any:
    """Draw counts of one population, or of two that differ three-fold in some genes; `Cells` with the genes that `refine` would choose."""
    from scamac_scale.ingestion.flavors.sums import Moments
    from scamac_scale.subclusters.genes import variable_genes
    from scamac_scale.subclusters.population import Cells

    rng, n_genes = np.random.default_rng([seed, n, genes]), 1500
    means = rng.lognormal(-1.5, 1.3, n_genes)
    size = {"even": rng.lognormal(0, 0.2, n), "broad": rng.lognormal(0, 0.7, n), "two": rng.choice([0.4, 1.6], n)}[
        depth
    ]
    rates = size[:, None] * means
    is_second = np.arange(n) < share * n
    changed = rng.choice(np.flatnonzero(means > 0.2), genes, replace=False)
    rates[np.ix_(is_second, changed)] *= rng.choice([1 / 3, 3], genes)
    if noise == "nb":
        rates = rates * rng.gamma(2.0, 0.5, rates.shape)
    counts = rng.poisson(rates).astype(np.float64)
    total = counts.sum(axis=1)
    shares = counts / total[:, None]
    chosen = variable_genes(Moments(n, shares.sum(axis=0), (shares**2).sum(axis=0)), 500, "counts", total)
    return Cells(counts[:, chosen], total, np.zeros(n, np.int64), True), is_second


def run_nulls(noise: str, repeats: int) -> dict[str, Any]:
    """Cut populations in which there is nothing to find."""
    from scamac_scale.subclusters.split import find_split

    verdicts = []
    for repeat in range(repeats):
        _, depth, n = [case for case in NULLS if case[0] == noise][repeat % 9]
        cells, _ = simulate(noise, depth, n, repeat)
        found = find_split(cells, repeat).verdict
        verdicts.append(
            {
                "depth": depth,
                "n": n,
                "p_value": found.p_value,
                "ratio": found.separation / max(found.null_mean, 1e-9),
                "is_split": found.is_split,
            }
        )
    return {
        "n": len(verdicts),
        "false_splits": sum(one["is_split"] for one in verdicts),
        "below_level": sum(one["p_value"] < 0.01 for one in verdicts),
        "largest_ratio": max(one["ratio"] for one in verdicts),
        "verdicts": verdicts,
    }


def run_power(repeats: int) -> dict[str, Any]:
    """Cut populations of two groups."""
    from sklearn.metrics import adjusted_rand_score

    from scamac_scale.subclusters.split import find_split

    rows = []
    for n, share, genes in POWER:
        found = []
        for repeat in range(repeats):
            cells, is_second = simulate("nb", "broad", n, repeat, share, genes)
            split = find_split(cells, repeat)
            ari = adjusted_rand_score(is_second, split.side(cells)) if split.verdict.is_split else 0.0
            found.append((split.verdict.is_split, ari))
        rows.append(
            {
                "n": n,
                "share": share,
                "genes": genes,
                "found": float(np.mean([hit for hit, _ in found])),
                "ari": float(np.mean([ari for _, ari in found])),
            }
        )
    return {"rows": rows}


def studies(name: str, data: Path, n_cells: int | None) -> Iterator[tuple[str, AnnData]]:
    """Split a set into what is fitted as one."""
    import anndata

    whole = anndata.read_h5ad(data / f"{name}.h5ad")
    whole.obs["cell_type"] = whole.obs["cell_type"].astype(str)
    for batch in sorted(whole.obs["batch"].unique()) if name.startswith("pbmc_pool") else [None]:
        found = whole if batch is None else whole[whole.obs["batch"] == batch].copy()
        if n_cells is not None and found.n_obs > n_cells:
            rows = np.sort(np.random.default_rng(0).choice(found.n_obs, n_cells, replace=False))
            found = found[rows].copy()
        yield name if batch is None else f"{name}/{batch}", found


def score(found: Any, key: str, fine: str, min_cells: int) -> dict[str, Any]:
    """Tell how sub-clusters agree with finer labels, within each cluster."""
    from sklearn.metrics import adjusted_rand_score

    obs, rows = found.obs, []
    for cluster, cells in obs.groupby(key, observed=True):
        if len(cells) < min_cells:
            continue
        n_fine = int((cells[fine].value_counts() >= 10).sum()) or 1
        n_found = int(cells["scamac_subcluster"].nunique())
        sizes = cells["scamac_subcluster"].value_counts()
        ari = float(adjusted_rand_score(cells[fine].astype(str), cells["scamac_subcluster"].astype(str)))
        rows.append(
            {
                "cluster": str(cluster),
                "n": len(cells),
                "n_fine": n_fine,
                "n_found": n_found,
                "largest_share": float(sizes.max() / len(cells)),
                "ari": ari,
            }
        )
    several = [row for row in rows if row["n_fine"] > 1]
    single = [row for row in rows if row["n_fine"] == 1]
    return {
        "ari_before": float(adjusted_rand_score(obs[fine].astype(str), obs[key].astype(str))),
        "ari_after": float(adjusted_rand_score(obs[fine].astype(str), obs["scamac_subcluster"].astype(str))),
        "with_finer": len(several),
        "found": sum(row["n_found"] > 1 for row in several),
        "mean_ari_within": float(np.mean([row["ari"] for row in several])) if several else None,
        "without_finer": len(single),
        "cut": sum(row["n_found"] > 1 for row in single),
        "clusters": rows,
    }


def run_set(name: str, options: argparse.Namespace, results: Results, where: dict[str, Any]) -> None:
    """Fit, predict, refine and score each study of a set."""
    import anndata

    from scamac_scale import ScAMAC, refine

    fine, min_cells = SETS[name]
    done = results.done() if options.resume else set()
    for study, cells in studies(name, options.data, options.cells):
        if options.studies and study.rpartition("/")[2] not in options.studies:
            continue
        if {(study, "coarse"), (study, "own")} <= done:
            continue
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            atlas, result = folder / "atlas.h5ad", folder / "result.zarr"
            cells.write_h5ad(atlas)
            batch_key = "batch" if name.startswith("mix_") else None
            with measure() as fit_cost:
                model = ScAMAC(cells.obs["cell_type"].nunique(), batch_key=batch_key).fit(atlas)
                model.predict(atlas, result)
            for labels, key in (("coarse", "cell_type"), ("own", "scamac_cluster")):
                with measure() as cost:
                    out = refine(
                        atlas, folder / f"{labels}.zarr", model=model, result=result, key=key, min_cells=min_cells
                    )
                found = anndata.read_zarr(out)
                scores = score(found, key, fine, min_cells)
                table = found.uns["scamac_refine"]["table"]
                columns = [
                    "cluster",
                    "part",
                    "n_cells",
                    "separation",
                    "null_mean",
                    "p_value",
                    "is_split",
                    "why",
                    "depth_log2_ratio",
                ]
                tests = [
                    {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
                    for row in table[columns].to_dict("records")
                ]
                about = {"set": study, "labels": labels, "n": cells.n_obs, "min_cells": min_cells}
                costs = {
                    "fit_cpu_seconds": fit_cost.cpu_seconds,
                    "cpu_seconds": cost.cpu_seconds,
                    "peak_bytes": cost.peak_bytes,
                }
                results.add({**about, **scores, **costs, "tests": tests}, where)
                print(
                    about,
                    {name: value for name, value in scores.items() if name != "clusters"},
                    round(cost.cpu_seconds, 1),
                    flush=True,
                )
                for row in scores["clusters"]:
                    print("   ", row, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, cut, count, print, write."""
    options = parse(arguments)
    if options.threads is not None:
        os.environ.update({name: str(options.threads) for name in THREAD_SETTINGS})
    results, where = Results(options.out, KEY), environment()
    done = results.done() if options.resume else set()
    for noise in ("poisson", "nb"):
        if options.repeats and ("one population", noise) not in done:
            found = run_nulls(noise, options.repeats)
            results.add({"set": "one population", "labels": noise, **found}, where)
            print(noise, {name: value for name, value in found.items() if name != "verdicts"}, flush=True)
    if options.repeats and ("two groups", "nb") not in done:
        found = run_power(max(1, options.repeats // 10))
        results.add({"set": "two groups", "labels": "nb", **found}, where)
        for row in found["rows"]:
            print(row, flush=True)
    for name in options.sets if options.data else ():
        run_set(name, options, results, where)


if __name__ == "__main__":
    sys.exit(main())
