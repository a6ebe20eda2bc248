"""From what is known of each technical batch to one choice of genes: by how often a gene is among the most variable, or by its ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.flavors.sums import Choice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.ingestion.flavors.sums import Candidates, Moments

    Tabulate = Callable[[Moments, float], pd.DataFrame]

STATISTICS = ("means", "dispersions", "dispersions_norm")
NO_SAY = "no gene varies between the cells of any technical batch, so that none can be chosen."
ROUNDING = 1e-12
"""Variance, as a share of the squared mean, that is rounding: cells of one technical batch are often alike to the last bit."""


def variable_genes(dispersions_norm: NDArray[np.float64], n_genes: int) -> NDArray[np.bool_]:
    """Mark the genes that vary most.

    Parameters
    ----------
    dispersions_norm
        (G,) from `dispersion_table`; NaN is never taken.
    n_genes
        How many to take.

    Returns
    -------
    ndarray
        (G,) marks of the `n_genes` largest, and of all that equal the smallest of these: ties are not broken, as in
        scanpy, so that the answer does not depend on the order of the genes. All genes that vary where there are fewer.

    Raises
    ------
    InputError
        If no gene varies.
    """
    known = np.sort(dispersions_norm[~np.isnan(dispersions_norm)])[::-1]
    if not known.size:
        raise InputError(
            "no gene varies between cells more than others do, so that none can be chosen; check the matrix."
        )
    cut_off = known[min(n_genes, known.size) - 1]
    with np.errstate(invalid="ignore"):
        return np.asarray(dispersions_norm >= cut_off)


def choose_by_dispersion(batches: Iterable[Moments], tabulate: Tabulate, candidates: Candidates) -> Choice:
    """Choose the genes of largest ``dispersions_norm``: of all cells, or over technical batches.

    Parameters
    ----------
    batches
        Moments of each technical batch, or of all cells.
    tabulate
        From moments, and the variance that is rounding as a share of the squared mean, to `STATISTICS` of each gene.
    candidates
        The genes, and how many are asked for.
    """
    if candidates.tech is not None:
        return choose_over_batches(batches, candidates.names, candidates.n_genes, tabulate)
    table = tabulate(next(iter(batches)), 0.0)
    return Choice(table, variable_genes(table["dispersions_norm"].to_numpy(), candidates.n_genes))


def choose_over_batches(batches: Iterable[Moments], names: Sequence[str], n_genes: int, tabulate: Tabulate) -> Choice:
    """Choose the genes that vary most in most technical batches.

    Parameters
    ----------
    batches
        Sums over the cells of each batch, of the same G genes; taken one at a time.
    names
        (G,) of the genes, by whose order ties are broken, so that the answer does not depend on the order of the genes.
    n_genes
        How many to take.
    tabulate
        From moments to `STATISTICS`.

    Returns
    -------
    Choice
        The `n_genes` genes, or all where there are fewer, that are among the `n_genes` most variable of most batches; of
        those that are so in as many, the ones with the largest average of ``dispersions_norm``. Each batch is measured over
        the genes that a cell of it expresses. The table has the averages over the batches (a gene counts as 0 where no cell of
        a batch expresses it, and not where it does not vary), and ``highly_variable_nbatches``, in how many batches a gene is
        among those that vary most; silent are the batches in which no gene varies.

    Raises
    ------
    InputError
        If no gene varies within any batch.

    Notes
    -----
    As ``sc.pp.highly_variable_genes(batch_key=...)``, which fails where no gene varies within a batch (it has one cell,
    say); here such a batch has no say, as if its cells were left out of the choice. Memory is a few numbers a gene.
    """
    import pandas as pd

    size = len(names)
    sums, counts = np.zeros((len(STATISTICS), size)), np.zeros((len(STATISTICS), size), dtype=np.int64)
    n_variable = np.zeros(size, dtype=np.int64)
    silent, n_batches = [], 0
    for moments in batches:
        n_batches += 1
        is_expressed = moments.total > 0
        values = np.zeros((len(STATISTICS), size))
        if moments.n_cells > 1 and is_expressed.any():
            table = tabulate(moments.of(is_expressed), ROUNDING)
            values[:, is_expressed] = table[list(STATISTICS)].to_numpy().T
        norm = values[-1, is_expressed]
        if moments.n_cells < 2 or np.isnan(norm).all():
            silent.append(n_batches - 1)
            continue
        n_variable[is_expressed] += variable_genes(norm, n_genes)
        is_known = ~np.isnan(values)
        with np.errstate(
            invalid="ignore"
        ):  # where most dispersions of a bin are equal, others are infinitely far from them
            sums += np.where(is_known, values, 0.0)
        counts += is_known
    if len(silent) == n_batches:
        raise InputError(NO_SAY)
    averages = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    by_name = np.argsort(np.array(names, dtype=object), kind="stable")
    falling = np.where(np.isnan(averages[-1]), np.inf, -averages[-1])
    order = by_name[np.lexsort((falling[by_name], -n_variable[by_name]))]
    is_variable = np.zeros(size, dtype=bool)
    is_variable[order[:n_genes]] = True
    found = pd.DataFrame(dict(zip(STATISTICS, averages, strict=True)))
    return Choice(found.assign(highly_variable_nbatches=n_variable), is_variable, tuple(silent))


def choose_by_rank(
    scores: NDArray[np.float64], candidates: Candidates, *, is_rank_first: bool
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Choose the genes of the best ranks within technical batches.

    Parameters
    ----------
    scores
        (T, F) how much each gene varies within each batch that has a say; finite.
    candidates
        The genes, and how many are asked for.
    is_rank_first
        Whether the median rank counts before the number of batches, or after it.

    Returns
    -------
    columns : dict
        ``highly_variable_rank``, the median of the ranks (from 0) over the batches in which a gene is among those asked for, NaN where
        it is so in none; with technical batches ``highly_variable_nbatches``, in how many it is.
    is_variable : ndarray
        (F,) marks of exactly as many genes as were asked for, or of all.

    Notes
    -----
    Genes that vary equally within a batch are ranked as NumPy's default sort leaves them, as in scanpy; those of equal median rank in
    equally many batches are taken in their order.
    """
    n_genes = candidates.n_genes
    ranks = np.argsort(np.argsort(-scores, axis=1), axis=1).astype(np.float32)
    is_top = ranks < n_genes
    n_batches = is_top.sum(axis=0).astype(np.int64)
    ranked = np.ma.masked_array(ranks, ~is_top)
    rank = np.ma.median(ranked, axis=0).filled(np.nan)  # type: ignore[no-untyped-call]  # NumPy has no type for it
    last = np.where(np.isnan(rank), np.inf, rank)
    order = np.lexsort((-n_batches, last) if is_rank_first else (last, -n_batches))
    is_variable = np.zeros(len(rank), dtype=bool)
    is_variable[order[:n_genes]] = True
    columns: dict[str, NDArray[Any]] = {"highly_variable_rank": rank}
    if candidates.tech is not None:
        columns["highly_variable_nbatches"] = n_batches
    return columns, is_variable
