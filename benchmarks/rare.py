"""How often are rare kinds of cells found? Simulated atlases with types of 0.1, 0.3 and 1 % of the cells.

Centers start on 1,000 landmarks or more, groups of like cells. Around random cells, a rare type has one for every 0.1 %;
`start.landmark_choice` set to ``kmeans`` puts them around the centers of k-means on the latents instead, and
`model.bank_choice` takes the cells nearest to such centers. For each choice, with the true number of clusters given: the landmarks
most of whose cells are of a rare type, how well the best matching cluster covers it (F1), and ARI over all cells.

The cells are those of `scamac_scale.simulation` with other shares: every rare type has exactly the wanted chance, the common
types share the rest as they do there. A type is marked by 3 % of the genes there, at about 4.5 times the expression; a rare
one can be given more markers of the same kind (`--extra-markers`, a share of the genes), since what a landmark can do depends
on whether the latent shows the type at all. How well it does, stands beside the fit: the F1 of cells that join the nearest
true type mean in the latent, which needs no landmark. No marker is private to a type, so the gene filter (5 % of the cells)
keeps most; those it keeps are counted. In real data it drops what only a rare type expresses.

    python benchmarks/rare.py --threads 1
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from quality import THREAD_SETTINGS
from record import Results, environment, measure
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scamac_scale.config import ScamacConfig

OUT = Path(__file__).resolve().parent / "results" / "rare.json"
KEY = ("extra_markers", "share", "landmarks", "bank", "seed")
CHOICES = ("random/random", "kmeans/random", "random/kmeans", "kmeans/kmeans")
"""How landmarks and bank are chosen."""
FOUND_F1 = 0.5
"""A rare type counts as found if the best matching cluster reaches this F1."""
NOTE = (
    "Markers, cells: of a rare type, median. Rare landmarks, F1: median over rare types and seeds (lowest to highest). None: rare types without a landmark. Found: rare types "
    f"with F1 of at least {FOUND_F1}. F1, true means: cells to the nearest true type mean in the latent of the fit."
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
    parser.add_argument(
        "--choices",
        nargs="+",
        default=list(CHOICES),
        choices=CHOICES,
        metavar="LANDMARKS/BANK",
        help=", ".join(CHOICES),
    )
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=400)
    parser.add_argument("--common", type=int, default=6, help="types that are not rare")
    parser.add_argument("--rare", type=int, default=3, help="rare types in each atlas")
    parser.add_argument("--landmarks", type=int, help="least number of landmarks; default: that of the recipe")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this minus 1, of the atlas and of the fit")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--resume", action="store_true", help="skip what the file holds, of whatever commit")
    parser.add_argument("--report", action="store_true", help="no fits: the table of what the file holds")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    options = parser.parse_args(arguments)
    if not all(share > 0 and options.rare * share < 1 for share in options.shares):
        parser.error(f"--shares {options.shares}: each must be above 0, and below 1 for all {options.rare} rare types.")
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


@contextmanager
def watch_choices() -> Iterator[dict[str, NDArray[Any]]]:
    """Keep the type that most cells of each landmark have (``landmarks``), and the types of the cells of the ``bank``."""
    from unittest.mock import patch

    from scamac_scale.train import recipe
    from scamac_scale.train.clusters.landmarks import find_landmarks
    from scamac_scale.train.clusters.selection import SELECTIONS

    seen: dict[str, NDArray[Any]] = {}
    before = dict(SELECTIONS)

    def watched(choose: Any) -> Any:  # a function of that dict
        def choose_and_keep(source: Any, network: Any, n_rows: int, seed: int, purpose: str) -> Any:
            rows = choose(source, network, n_rows, seed, purpose)
            seen[purpose] = source.obs["cell_type"].to_numpy().astype(np.int64)[rows]
            return rows

        return choose_and_keep

    def find_and_keep(source: Any, *arguments: Any) -> Any:
        groups = find_landmarks(source, *arguments)
        types = source.obs["cell_type"].to_numpy().astype(np.int64)
        cells = np.zeros((groups.table.n_codes, types.max() + 1), dtype=np.int64)
        np.add.at(cells, (groups.table.read(np.arange(source.n_cells)), types), 1)
        seen["landmarks"] = cells[groups.numbers].argmax(axis=1)
        return groups

    SELECTIONS.update({name: watched(choose) for name, choose in before.items()})
    try:
        with patch.object(recipe, "find_landmarks", find_and_keep):
            yield seen
    finally:
        SELECTIONS.update(before)


def best_f1(is_type: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """F1 of the cluster that covers these cells best; (N,), (N,)."""
    size = np.bincount(labels)
    shared = np.bincount(labels, weights=is_type, minlength=len(size))
    return float((2.0 * shared / (size + is_type.sum())).max())


def fit_once(store: Path, sizes: Sizes, config: ScamacConfig) -> dict[str, Any]:
    """One fit, told the true K: what it chose, and its scores; lists have an entry for each rare type."""
    from baselines import nearest_center

    from scamac_scale import ScAMAC
    from scamac_scale.metrics.clustering import clustering_scores

    model = ScAMAC(sizes.n_common + sizes.n_rare, config=config)
    with measure() as cost, watch_choices() as seen:
        cells = model.fit(store).predict(store)
    truth = cells.obs["cell_type"].to_numpy().astype(np.int64)
    labels = cells.obs["scamac_cluster"].cat.codes.to_numpy().astype(np.int64)
    latent = np.asarray(cells.obsm["X_scAMAC"], dtype=np.float64)
    kinds = range(sizes.n_common + sizes.n_rare)
    nearest = nearest_center(latent, np.stack([latent[truth == kind].mean(axis=0) for kind in kinds]))
    rare = kinds[sizes.n_common :]
    return {
        "rare_cells": [int((truth == kind).sum()) for kind in rare],
        "rare_landmarks": [int((seen["landmarks"] == kind).sum()) for kind in rare],
        "rare_bank": [int((seen["bank"] == kind).sum()) for kind in rare] if "bank" in seen else None,
        "f1": [round(best_f1(truth == kind, labels), 6) for kind in rare],
        "f1_true_means": [round(best_f1(truth == kind, nearest), 6) for kind in rare],
        "ari": round(clustering_scores(truth, labels)["ari"], 6),
        "ari_true_means": round(clustering_scores(truth, nearest)["ari"], 6),
        "n_clusters": len(set(labels.tolist())),
        "seconds": round(cost.seconds, 3),
        "cpu_seconds": round(cost.cpu_seconds, 3),
    }


def settings(choice: str, n_landmarks: int | None, seed: int) -> ScamacConfig:
    """The default recipe with one of `CHOICES`."""
    from scamac_scale.config import ScamacConfig

    landmarks, bank = choice.split("/")
    default = ScamacConfig(seed=seed)
    start = replace(default.start, landmark_choice=landmarks)
    if n_landmarks is not None:
        start = replace(start, landmark_cells=n_landmarks)
    return replace(default, start=start, model=replace(default.model, bank_choice=bank))


def kept_markers(atlas: AnnData, store: Path) -> list[int]:
    """Markers of each rare type among the genes of the store."""
    from scamac_scale.sources import open_source

    with open_source(store) as source:
        kept = atlas.var_names.get_indexer(list(source.gene_names))
    counts: list[int] = atlas.varm["markers"][kept].sum(axis=0).tolist()
    return counts


def run(options: argparse.Namespace, sizes: Sizes, console: Console) -> None:
    """All shares, seeds and choices; each atlas is made once."""
    from scamac_scale.api import ingest

    results = Results(options.out, KEY)
    done = results.done() if options.resume else set()
    where = environment()
    results.update(
        sizes=asdict(sizes),
        settings=asdict(settings(CHOICES[0], options.landmarks, 0)),
        simulation="scamac_scale.simulation; rare types have the share each, the common ones keep their proportions",
    )
    for seed, extra, share in itertools.product(range(options.seeds), options.extra_markers, options.shares):
        atlas_key = {"extra_markers": extra, "share": share, "seed": seed}
        keys = [
            {**atlas_key, "landmarks": landmarks, "bank": bank}
            for landmarks, bank in (choice.split("/") for choice in options.choices)
            if (extra, share, landmarks, bank, seed) not in done
        ]
        if not keys:
            continue
        with tempfile.TemporaryDirectory() as folder:
            atlas = simulate_rare(sizes, share, extra, seed)
            store = ingest(atlas, Path(folder) / "store.zarr")
            shared = {"markers_kept": kept_markers(atlas, store)}
            for key in keys:
                choice = f"{key['landmarks']}/{key['bank']}"
                found = fit_once(store, sizes, settings(choice, options.landmarks, seed))
                results.add({**key, **shared, **found}, where)
                console.print(
                    f"{share:.1%}  extra markers {extra:.0%}  seed {seed}  {choice}  of {found['rare_cells']} cells "
                    f"{found['rare_landmarks']} landmarks  F1 {found['f1']}  true means {found['f1_true_means']}  "
                    f"ARI {found['ari']:.3f}  {found['seconds']:.0f} s",
                    highlight=False,
                    soft_wrap=True,
                )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each share and choice, over rare types and seeds."""
    groups: dict[tuple[float, float, str], list[dict[str, Any]]] = {}
    for one in runs:
        groups.setdefault((one["extra_markers"], one["share"], f"{one['landmarks']}/{one['bank']}"), []).append(one)
    rows = []
    order = sorted(groups, key=lambda key: (*key[:2], CHOICES.index(key[2])))
    for extra, share, choice in order:
        group = groups[extra, share, choice]
        pooled = {
            name: [value for one in group for value in one[name]]
            for name in ("rare_cells", "rare_landmarks", "f1", "f1_true_means", "markers_kept")
        }
        rows.append(
            {
                "extra_markers": extra,
                "share": share,
                "choice": choice,
                "seeds": len(group),
                "types": len(pooled["f1"]),
                "without_landmark": sum(count == 0 for count in pooled["rare_landmarks"]),
                "found": sum(value >= FOUND_F1 for value in pooled["f1"]),
                **{name: spread(values) for name, values in pooled.items()},
                **{name: spread([one[name] for one in group]) for name in ("ari", "ari_true_means", "seconds")},
            }
        )
    return rows


def in_words(values: dict[str, float], digits: int) -> str:
    """Median, with the lowest and the highest in brackets."""
    return "{median:.{d}f} ({low:.{d}f} to {high:.{d}f})".format(**values, d=digits)


def show(summary: Sequence[dict[str, Any]], sizes: dict[str, Any]) -> Table:
    """The table: one row for each share and choice."""
    title = (
        "Rare types among {n_cells:,} cells, {n_genes:,} genes, {n_common} common types and {n_rare} rare ones".format(
            **sizes
        )
    )
    table = Table(title=title, caption=NOTE, caption_justify="left")
    for column in ("markers", "share", "cells", "landmarks/bank"):
        table.add_column(column, justify="left" if column == "landmarks/bank" else "right", no_wrap=True)
    for column in ("rare landmarks", "none", "F1", "found", "F1, true means", "ARI", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for index, row in enumerate(summary):
        is_first, is_last = (
            not 0 <= other < len(summary)
            or any(summary[other][name] != row[name] for name in ("extra_markers", "share"))
            for other in (index - 1, index + 1)
        )
        table.add_row(
            f"{row['markers_kept']['median']:.0f}" if is_first else "",
            f"{row['share']:.1%}" if is_first else "",
            f"{row['rare_cells']['median']:.0f}" if is_first else "",
            row["choice"],
            in_words(row["rare_landmarks"], 1),
            f"{row['without_landmark']}/{row['types']}",
            in_words(row["f1"], 2),
            f"{row['found']}/{row['types']}",
            in_words(row["f1_true_means"], 2),
            in_words(row["ari"], 3),
            f"{row['seconds']['median']:.0f}",
            end_section=is_last,
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, fit, count, print, write."""
    options = parse(arguments)
    if options.threads is not None:
        os.environ.update({name: str(options.threads) for name in THREAD_SETTINGS})
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not options.report:
        run(options, Sizes(options.cells, options.genes, options.common, options.rare), console)
    results = Results(options.out, KEY)
    held = results.read()
    summary = summarise(held["runs"])
    results.update(summary=summary, note=NOTE)
    console.print(show(summary, held["sizes"]))


if __name__ == "__main__":
    main()
