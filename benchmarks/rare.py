"""How often are rare kinds of cells found, and which stage loses them? Types of 0.1, 0.3 and 1 % of 20,000 cells, the true K told.

*Simulated* atlases are those of `scamac_scale.simulation` with other shares: every rare type has exactly the wanted chance, the common
types share the rest as they do there. A type is marked by 3 % of the genes, at about 4.5 times the expression; *distinct* rare
types have 30 % of the genes more as markers (`--extra-markers`). *Real* ones (`--real FILE --thinned TYPE ...`) are resampled from
labelled cells, and then the named types are thinned to the share.

For each rare type, what the best has that each stage could still give, as F1:

- *means*: cells that join the nearest true type mean in the latent of the fit, which needs no landmark; low: genes or components.
- *union*: the best union of landmarks, whatever the consensus would make of them; low, where means is not: landmarks.
- *F1*: the cluster that covers the type best; low, where union is not: the consensus, or the last fuzzy sweep.

    python benchmarks/rare.py --threads 1
    python benchmarks/rare.py --threads 1 --real "$SCAMAC_DATA/zheng_facs3774.h5ad" --thinned "CD14+ Monocyte" "CD19+ B" --resume
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from quality import THREAD_SETTINGS
from record import Results, environment, measure
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scamac_scale.config import ScamacConfig

OUT = Path(__file__).resolve().parent / "results" / "rare.json"
KEY = ("atlas", "share", "way", "seed")
WAYS = ("default", "random landmarks", "min_cells=10", "finds_rare")
"""The default recipe, or one setting of it else: `start.landmark_choice`, `start.finds_rare`, or the filter of genes at the ingest."""
FOUND_F1 = 0.5
"""A rare type counts as found if the best matching cluster reaches this F1."""
SPARE = 1.5
"""Cells that are resampled for each one wanted, of which the thinned types leave enough."""
NOTE = (
    "Cells, F1: of a rare type, median over types and seeds (lowest to highest). Means: cells to the nearest true type mean in the "
    f"latent. Union: the best union of landmarks. Found: rare types with F1 of at least {FOUND_F1}. Genes: those of the store."
)


@dataclass(frozen=True)
class Sizes:
    """Of the simulated atlases.

    Attributes
    ----------
    n_cells, n_genes
        N, G.
    n_common, n_rare
        Types; every rare one has the share that is asked for.
    """

    n_cells: int
    n_genes: int
    n_common: int
    n_rare: int


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.001, 0.003, 0.01], help="of each rare type")
    parser.add_argument(
        "--extra-markers",
        type=float,
        nargs="+",
        default=[0.0, 0.3],
        help="share of the genes that mark a rare type, too",
    )
    parser.add_argument("--ways", nargs="+", default=["default"], choices=WAYS, metavar="WAY", help=", ".join(WAYS))
    parser.add_argument(
        "--real", type=Path, help="file of labelled counts to resample, in place of the simulated atlases"
    )
    parser.add_argument("--label", default="cell_type", help="its column of types")
    parser.add_argument("--thinned", nargs="+", default=[], metavar="TYPE", help="its types that become rare")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=400)
    parser.add_argument("--common", type=int, default=6, help="types that are not rare")
    parser.add_argument("--rare", type=int, default=3, help="rare types in each atlas")
    parser.add_argument("--landmarks", type=int, help="least number of landmarks; default: that of the recipe")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to this minus 1, of the atlas and of the fit")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--resume", action="store_true", help="skip what the file holds, of whatever commit")
    parser.add_argument("--report", action="store_true", help="no fits: the table of what the file holds")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    options = parser.parse_args(arguments)
    n_rare = len(options.thinned) if options.real else options.rare
    if not all(share > 0 and n_rare * share < 1 for share in options.shares):
        parser.error(f"--shares {options.shares}: each must be above 0, and below 1 for all {n_rare} rare types.")
    if bool(options.real) != bool(options.thinned):
        parser.error("--real FILE and --thinned TYPE ... go together.")
    return options


def simulate_rare(sizes: Sizes, share: float, extra_markers: float, seed: int) -> AnnData:
    """Draw an atlas in memory.

    Parameters
    ----------
    sizes
        Cells, genes and types.
    share
        Chance of each rare type; the common ones keep their proportions.
    extra_markers
        Share of the genes that mark a rare type beyond those of every type; drawn among the genes that mark none.
    seed
        Of types and cells.

    Returns
    -------
    AnnData
        (N, G) counts; ``obs["cell_type"]``, 0 to C - 1 common, from C on rare; ``varm["markers"]``, (G, R) bool.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    from scamac_scale.randomness import numpy_generator
    from scamac_scale.simulation.drawn import DRAWN_CELLS, MARKER_LOG_FOLD, CellModel, draw_cells

    model = CellModel.draw(sizes.n_genes, sizes.n_common + sizes.n_rare, seed)
    weight = model.weight.copy()
    weight[sizes.n_common :] = share
    weight[: sizes.n_common] *= (1.0 - sizes.n_rare * share) / weight[: sizes.n_common].sum()
    profile, rng = model.profile.copy(), numpy_generator(seed, "extra markers")
    markers = model.marked[:, None] == np.arange(sizes.n_common, sizes.n_common + sizes.n_rare)
    plain = np.flatnonzero(model.marked < 0)
    for rare in range(sizes.n_rare):
        genes = rng.choice(plain, min(round(extra_markers * sizes.n_genes), len(plain)), replace=False)
        profile[sizes.n_common + rare, genes] *= rng.lognormal(MARKER_LOG_FOLD, 0.5, len(genes))
        markers[genes, rare] = True
    profile /= profile.sum(axis=1, keepdims=True)
    model = replace(model, weight=weight / weight.sum(), profile=profile)
    drawn = [
        draw_cells(model, min(DRAWN_CELLS, sizes.n_cells - start), seed, block)
        for block, start in enumerate(range(0, sizes.n_cells, DRAWN_CELLS))
    ]
    counts = sparse.vstack(
        [
            sparse.csr_matrix((cells.data, cells.indices, cells.indptr), shape=(cells.n_cells, sizes.n_genes))
            for cells in drawn
        ],
        format="csr",
    )
    obs = pd.DataFrame(
        {"cell_type": np.concatenate([cells.codes["cell_type"] for cells in drawn])},
        index=[f"cell{row}" for row in range(sizes.n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{gene}" for gene in range(sizes.n_genes)])
    return anndata.AnnData(counts, obs=obs, var=var, varm={"markers": markers})


def thin_real(file: Path, label: str, thinned: Sequence[str], share: float, n_cells: int, seed: int) -> AnnData:
    """Resample labelled cells, and leave of some types only so many.

    Parameters
    ----------
    file, label
        Counts, and the column of obs with their types.
    thinned
        Types that become rare.
    share
        Of each of them, exactly to a cell.
    n_cells
        N.
    seed
        Of the cells.

    Returns
    -------
    AnnData
        (N, G) counts; ``obs["cell_type"]``, 0 to C - 1 common, from C on those of `thinned`; ``uns["n_common"]`` C.

    Raises
    ------
    SystemExit
        If a type is not among the labels, or there are too few cells of the others.
    """
    import anndata
    import pandas as pd

    from scamac_scale.randomness import numpy_generator
    from scamac_scale.simulation.resampled import resample

    with tempfile.TemporaryDirectory() as folder:
        atlas = anndata.read_zarr(
            resample(file, Path(folder) / "all.zarr", n_cells=round(SPARE * n_cells), label=label, seed=seed)
        )
    names = atlas.obs[label].astype(str).to_numpy()
    common = sorted(set(names) - set(thinned))
    codes = pd.Index([*common, *thinned]).get_indexer(names)
    order = numpy_generator(seed, "thinned").permutation(len(codes))
    n_rare = round(share * n_cells)
    rare = [order[codes[order] == len(common) + kind][:n_rare] for kind in range(len(thinned))]
    rest = order[codes[order] < len(common)][: n_cells - n_rare * len(thinned)]
    rows = np.sort(np.concatenate([*rare, rest]))
    if len(rows) < n_cells:
        raise SystemExit(f"{file.name}: {', '.join(thinned)} cannot be {share:.1%} each of {n_cells:,} cells.")
    obs = pd.DataFrame({"cell_type": codes[rows]}, index=[f"cell{row}" for row in range(n_cells)])
    return anndata.AnnData(
        atlas.X[rows], obs=obs, var=pd.DataFrame(index=atlas.var_names), uns={"n_common": len(common)}
    )


@contextmanager
def watch_landmarks() -> Iterator[dict[str, NDArray[np.int64]]]:
    """Keep how many cells of each type each landmark has, (M, types) as ``cells``."""
    from unittest.mock import patch

    from scamac_scale.train import recipe
    from scamac_scale.train.clusters.landmarks import find_landmarks

    seen: dict[str, NDArray[np.int64]] = {}

    def find_and_keep(source: Any, *arguments: Any) -> Any:
        groups = find_landmarks(source, *arguments)
        types = source.obs["cell_type"].to_numpy().astype(np.int64)
        cells = np.zeros((groups.table.n_codes, types.max() + 1), dtype=np.int64)
        np.add.at(cells, (groups.table.read(np.arange(source.n_cells)), types), 1)
        seen["cells"] = cells
        return groups

    with patch.object(recipe, "find_landmarks", find_and_keep):
        yield seen


def union_f1(cells: NDArray[np.int64], kind: int) -> float:
    """F1 of the best union of landmarks, (M, types) cells: those with the highest shares of the type, down to some share."""
    of_type, size = cells[:, kind], cells.sum(axis=1)
    order = np.argsort(-of_type / np.maximum(size, 1), kind="stable")
    shared, taken = of_type[order].cumsum(), size[order].cumsum()
    return float((2.0 * shared / (taken + of_type.sum())).max())


def best_f1(is_type: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """F1 of the cluster that covers these cells best; (N,), (N,)."""
    size = np.bincount(labels)
    shared = np.bincount(labels, weights=is_type, minlength=len(size))
    return float((2.0 * shared / (size + is_type.sum())).max())


def fit_once(store: Path, n_common: int, n_kinds: int, config: ScamacConfig) -> dict[str, Any]:
    """One fit, told the true K: its scores; lists have an entry for each rare type."""
    from baselines import nearest_center

    from scamac_scale import ScAMAC
    from scamac_scale.metrics.clustering import clustering_scores

    model = ScAMAC(n_kinds, config=config)
    with measure() as cost, watch_landmarks() as seen:
        cells = model.fit(store).predict(store)
    truth = cells.obs["cell_type"].to_numpy().astype(np.int64)
    labels = cells.obs["scamac_cluster"].cat.codes.to_numpy().astype(np.int64)
    latent = np.asarray(cells.obsm["X_scAMAC"], dtype=np.float64)
    nearest = nearest_center(latent, np.stack([latent[truth == kind].mean(axis=0) for kind in range(n_kinds)]))
    rare = range(n_common, n_kinds)
    most = seen["cells"].argmax(axis=1)
    return {
        "rare_cells": [int((truth == kind).sum()) for kind in rare],
        "rare_landmarks": [int((most[seen["cells"].sum(axis=1) > 0] == kind).sum()) for kind in rare],
        "f1": [round(best_f1(truth == kind, labels), 6) for kind in rare],
        "f1_union": [round(union_f1(seen["cells"], kind), 6) for kind in rare],
        "f1_true_means": [round(best_f1(truth == kind, nearest), 6) for kind in rare],
        "ari": round(clustering_scores(truth, labels)["ari"], 6),
        "ari_true_means": round(clustering_scores(truth, nearest)["ari"], 6),
        "n_clusters": len(set(labels.tolist())),
        "seconds": round(cost.seconds, 3),
        "cpu_seconds": round(cost.cpu_seconds, 3),
    }


def settings(way: str, n_landmarks: int | None, seed: int) -> ScamacConfig:
    """The default recipe in one of `WAYS`."""
    from scamac_scale.config import ScamacConfig

    default = ScamacConfig(seed=seed)
    start = replace(default.start, landmark_choice="random") if way == "random landmarks" else default.start
    start = replace(start, finds_rare=way == "finds_rare")
    return replace(default, start=start if n_landmarks is None else replace(start, landmark_cells=n_landmarks))


def atlases(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Callable[[], AnnData]]]:
    """Name, share and seed of each atlas, and what makes it."""
    sizes = Sizes(options.cells, options.genes, options.common, options.rare)
    for seed, share in itertools.product(range(options.seeds), options.shares):
        if options.real:
            known = (options.real, options.label, options.thinned, share, options.cells, seed)
            yield {"atlas": options.real.stem, "share": share, "seed": seed}, partial(thin_real, *known)
        else:
            for extra in options.extra_markers:
                name = f"simulated, {extra:.0%} more markers"
                yield {"atlas": name, "share": share, "seed": seed}, partial(simulate_rare, sizes, share, extra, seed)


def run(options: argparse.Namespace, console: Console) -> None:
    """All atlases and ways; each atlas is made once."""
    from scamac_scale.api import ingest
    from scamac_scale.config import IngestConfig
    from scamac_scale.sources import open_source

    results = Results(options.out, KEY)
    done = results.done() if options.resume else set()
    where = environment()
    for named, make in atlases(options):
        ways = [way for way in options.ways if (named["atlas"], named["share"], way, named["seed"]) not in done]
        if not ways:
            continue
        atlas = make()
        n_common = atlas.uns.get("n_common", options.common)
        sizes = {"n_cells": atlas.n_obs, "n_common": n_common, "n_rare": atlas.obs["cell_type"].max() + 1 - n_common}
        sizes = {name: int(size) for name, size in sizes.items()}
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                ingested = IngestConfig(min_cells=10) if way == "min_cells=10" else None
                store = ingest(atlas, Path(folder) / "store.zarr", ingested)
                with open_source(store) as source:
                    sizes["n_genes"] = len(source.gene_names)
                config = settings(way, options.landmarks, named["seed"])
                found = fit_once(Path(store), n_common, n_common + sizes["n_rare"], config)
            results.add({**named, "way": way, **sizes, **found}, where)
            console.print(
                f"{named['atlas']}  {named['share']:.1%}  seed {named['seed']}  {way}  of {found['rare_cells']} cells: F1 {found['f1']}  "
                f"union {found['f1_union']}  means {found['f1_true_means']}  ARI {found['ari']:.3f}  {found['cpu_seconds']:.0f} CPU s",
                highlight=False,
                soft_wrap=True,
            )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each atlas, share and way, over rare types and seeds."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for one in runs:
        groups.setdefault((one["atlas"], one["share"], one["way"]), []).append(one)
    rows = []
    for atlas, share, way in sorted(groups, key=lambda key: (*key[:2], WAYS.index(key[2]))):
        group = groups[atlas, share, way]
        pooled = {
            name: [value for one in group for value in one[name]]
            for name in ("rare_cells", "rare_landmarks", "f1", "f1_union", "f1_true_means")
        }
        rows.append(
            {
                "atlas": atlas,
                "share": share,
                "way": way,
                "seeds": len(group),
                "types": len(pooled["f1"]),
                "found": sum(value >= FOUND_F1 for value in pooled["f1"]),
                "n_genes": group[0]["n_genes"],
                **{name: spread(values) for name, values in pooled.items()},
                **{name: spread([one[name] for one in group]) for name in ("ari", "ari_true_means", "cpu_seconds")},
            }
        )
    return rows


def in_words(values: dict[str, float], digits: int) -> str:
    """Median, with the lowest and the highest in brackets."""
    return "{median:.{d}f} ({low:.{d}f} to {high:.{d}f})".format(**values, d=digits)


def show(summary: Sequence[dict[str, Any]]) -> Table:
    """The table: one row for each atlas, share and way."""
    table = Table(title="Rare types, the true number of clusters told", caption=NOTE, caption_justify="left")
    for column in ("atlas", "share", "way"):
        table.add_column(column, no_wrap=True)
    for column in ("genes", "cells", "F1", "found", "union", "means", "ARI", "CPU s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in summary:
        table.add_row(
            row["atlas"],
            f"{row['share']:.1%}",
            row["way"],
            str(row["n_genes"]),
            f"{row['rare_cells']['median']:.0f}",
            in_words(row["f1"], 2),
            f"{row['found']}/{row['types']}",
            in_words(row["f1_union"], 2),
            in_words(row["f1_true_means"], 2),
            f"{row['ari']['median']:.3f}",
            f"{row['cpu_seconds']['median']:.0f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the atlases, fit, count, print, write."""
    options = parse(arguments)
    if options.threads is not None:
        os.environ.update({name: str(options.threads) for name in THREAD_SETTINGS})
    console = Console(width=None if sys.stdout.isatty() else 180)
    if not options.report:
        run(options, console)
    results = Results(options.out, KEY)
    summary = summarise(results.read()["runs"])
    results.update(summary=summary, note=NOTE)
    console.print(show(summary))


if __name__ == "__main__":
    main()
