"""Two further questions: is a type that only one batch has kept apart, and is a batch that the fit has not seen mixed in?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rare import best_f1

from integration.latents import FORMS, METHODS, Options, fit_ours, predict_ours
from integration.scores import agreement, cluster, scaled_lisi

if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.cells import BatchedCells

FEWEST = 20
"""Cells that a type needs in the one batch that keeps it."""
OVER_SETS = ("mix_cel_4batch", "kang12k_1287g", "pbmc_pool18k_1191g")
OVER_METHODS = ("ours", "ours-nokey", "pca50-harmony")
HELD_OUT_SETS = ("mix_cel_4batch", "kang12k_1287g")
HELD_OUT_METHODS = ("ours", "ours-nokey")


@dataclass(frozen=True)
class Case:
    """A type that is taken out of all batches but one.

    Attributes
    ----------
    kept_type, batch
        The type, and the batch that keeps it.
    n_kept, n_removed
        Its cells in that batch, and in the others.
    """

    kept_type: str
    batch: str
    n_kept: int
    n_removed: int

    def apply(self, cells: BatchedCells) -> BatchedCells:
        """The cells that are left."""
        return cells.part((cells.types != self.kept_type) | (cells.batches == self.batch))


def find_cases(cells: BatchedCells, seed: int) -> list[Case]:
    """All cases of a set that have `FEWEST` cells and remove any, in an order drawn by a seed."""
    types, batches = cells.types, cells.batches
    found = []
    for name in sorted(set(types.tolist()) - {""}):
        of_type = types == name
        for batch in sorted(set(batches.tolist())):
            n_kept = int((of_type & (batches == batch)).sum())
            n_removed = int(of_type.sum()) - n_kept
            if n_kept >= FEWEST and n_removed > 0:
                found.append(Case(name, batch, n_kept, n_removed))
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[index] for index in order]


def over_correction(cells: BatchedCells, case: Case, method: str, seed: int, options: Options) -> dict[str, Any]:
    """F1 of the kept type, and ARI of all, by each clustering of one method; `cells` are those of `Case.apply`."""
    found = METHODS[method].run(cells, seed, options)
    clusterings = {"own": found.labels}
    if found.labels is None:
        clusterings = {how: cluster(found.latent, how, cells.n_types, seed) for how in ("consensus", "kmeans")}
    labels = {
        how: {
            "f1": round(best_f1(cells.types == case.kept_type, codes), 6),
            "ari": agreement(cells.types, codes)["ari"],
        }
        for how, codes in clusterings.items()
        if codes is not None
    }
    cost = {"seconds": round(found.cost.seconds, 3), "cpu_seconds": round(found.cost.cpu_seconds, 3)}
    return {"labels": labels, "n_kept": case.n_kept, "n_removed": case.n_removed, **cost}


def fit_whole(cells: BatchedCells, form: str, seed: int) -> dict[str, Any]:
    """What a fit that saw all batches gives: LISI and label of each cell."""
    latent, labels = predict_ours(fit_ours(cells, FORMS[form], seed), cells)
    return {"lisi": scaled_lisi(latent, cells.batches), "labels": labels}


def held_out(
    cells: BatchedCells, batch: str, form: str, seed: int, find_whole: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A fit without one batch, which is then predicted, against one with it.

    Parameters
    ----------
    cells
        All.
    batch
        The one to leave out.
    form
        Of `FORMS`.
    seed
        Of the fits.
    find_whole
        Gives `fit_whole` of these cells, form and seed.

    Returns
    -------
    dict
        Scores; those that end in ``seen`` are of the fit that saw all. The cells of the fit and those that are new are
        predicted apart, as a user would: iLISI is of both together.
    """
    whole = find_whole()
    is_new = cells.batches == batch
    # K is that of all cells in both, so that the two differ by the batch alone
    known, new = (cells.part(rows, cells.n_types) for rows in (~is_new, is_new))
    model = fit_ours(known, FORMS[form], seed)
    parts = {False: predict_ours(model, known), True: predict_ours(model, new)}
    width = parts[False][0].shape[1]
    latent, labels = np.empty((cells.n_cells, width), np.float32), np.empty(cells.n_cells, np.int64)
    for is_part_new, (some, codes) in parts.items():
        rows = is_new == is_part_new
        latent[rows], labels[rows] = some, codes
    lisi = scaled_lisi(latent, cells.batches)
    scores = {
        "ilisi": float(np.median(lisi)),
        "ilisi_seen": float(np.median(whole["lisi"])),
        "ilisi_of_batch": float(np.median(lisi[is_new])),
        "ilisi_of_batch_seen": float(np.median(whole["lisi"][is_new])),
        "ari_of_batch": agreement(cells.types[is_new], labels[is_new])["ari"],
        "ari_of_batch_seen": agreement(cells.types[is_new], whole["labels"][is_new])["ari"],
    }
    return {"n_held_out": int(is_new.sum()), **{name: round(value, 6) for name, value in scores.items()}}
