"""Highly variable genes from streamed sums: scanpy's ``seurat`` flavor without the matrix.

scanpy undoes the logarithm before it takes means and variances, so sums of ``x / total`` and their squares are enough,
and the target sum, a median known only at the end, can be applied to them afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

N_BINS = 20
"""Bins of equal width over the logarithm of the means, as scanpy and Seurat have them."""
STATISTICS = ("means", "dispersions", "dispersions_norm")
ROUNDING = 1e-12
"""Variance, as a share of the squared mean, that is rounding: cells of one technical batch are often alike to the last bit."""

SAME_MEANS = 1e-7
"""Means that differ by less, as a share, are equal: in float32, as scanpy has its values, they are."""


class Moments(NamedTuple):
    """Sums over cells that add up over blocks.

    Attributes
    ----------
    n_cells
        Cells summed over.
    total
        (G,) sum of the values of each gene.
    squared
        (G,) sum of their squares.
    """

    n_cells: int
    total: NDArray[np.float64]
    squared: NDArray[np.float64]

    def __add__(self, other: object) -> Moments:
        """Add the sums of other cells."""
        if not isinstance(other, Moments):
            return NotImplemented
        return Moments(self.n_cells + other.n_cells, self.total + other.total, self.squared + other.squared)

    def scaled(self, factor: float) -> Moments:
        """Return the sums of the values times `factor`."""
        return Moments(self.n_cells, self.total * factor, self.squared * factor**2)

    def of(self, genes: NDArray[np.bool_]) -> Moments:
        """Return the sums of some genes."""
        return Moments(self.n_cells, self.total[genes], self.squared[genes])


class BatchChoice(NamedTuple):
    """What `choose_over_batches` finds.

    Attributes
    ----------
    table
        (G rows) ``means``, ``dispersions`` and ``dispersions_norm``, the averages over the batches (a gene counts as 0 where
        no cell of a batch expresses it, and not where it does not vary), and ``highly_variable_nbatches``, in how many
        batches a gene is among those that vary most; named and defined as in scanpy.
    is_variable
        (G,) marks of the chosen genes.
    silent
        Batches in which no gene varies, which had no say.
    """

    table: pd.DataFrame
    is_variable: NDArray[np.bool_]
    silent: tuple[int, ...]


def dispersion_table(moments: Moments, rounding: float = 0.0) -> pd.DataFrame:
    """Compute how much each gene varies for its mean.

    Parameters
    ----------
    moments
        Sums of the normalised, not logged, values over at least two cells.
    rounding
        Variance, as a share of the squared mean, up to which a gene does not vary.

    Returns
    -------
    DataFrame
        (G rows) ``means`` (log1p of the mean), ``dispersions`` (log of variance over mean; NaN where a gene does not vary)
        and ``dispersions_norm`` (z-score among genes of the same bin of means; a gene alone in its bin gets 1), named and
        defined as in scanpy.

    References
    ----------
    Satija et al., Nature Biotechnology 2015; ``scanpy.pp.highly_variable_genes(flavor="seurat")``.
    """
    import pandas as pd

    n = moments.n_cells
    mean = moments.total / n
    variance = np.maximum(moments.squared / n - mean**2, 0.0) * (n / (n - 1))  # rounding may leave -1e-20
    if rounding:
        variance[variance <= rounding * mean**2] = 0.0
    mean[mean == 0] = 1e-12
    dispersion = variance / mean
    dispersion[dispersion == 0] = np.nan
    table = pd.DataFrame({"means": np.log1p(mean), "dispersions": np.log(dispersion)})
    bins = pd.cut(_apart(table["means"]), bins=N_BINS, labels=False)
    of_bin = table.groupby(bins)["dispersions"]
    center, spread = of_bin.transform("mean"), of_bin.transform("std")
    is_alone = spread.isna()
    spread = spread.where(~is_alone, center)
    center = center.where(~is_alone, 0.0)
    if rounding:
        spread = spread.mask(spread <= rounding)
    table["dispersions_norm"] = (table["dispersions"] - center) / spread
    return table


def _apart(means: pd.Series) -> pd.Series:
    """Make means that are equal up to rounding the same: they are one bin, where twenty would tell rounding errors apart."""
    low, high = float(means.min()), float(means.max())
    return means if high - low > SAME_MEANS * high else means * 0.0 + low


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


def choose_over_batches(batches: Iterable[Moments], names: Sequence[str], n_genes: int) -> BatchChoice:
    """Choose the genes that vary most in most technical batches.

    Parameters
    ----------
    batches
        Sums over the cells of each batch, of the same G genes; taken one at a time.
    names
        (G,) of the genes, by whose order ties are broken, so that the answer does not depend on the order of the genes.
    n_genes
        How many to take.

    Returns
    -------
    BatchChoice
        The `n_genes` genes, or all where there are fewer, that are among the `n_genes` most variable of most batches; of
        those that are so in as many, the ones with the largest average of ``dispersions_norm``. Each batch is measured over
        the genes that a cell of it expresses.

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
            table = dispersion_table(moments.of(is_expressed), ROUNDING)
            values[:, is_expressed] = table[list(STATISTICS)].to_numpy().T
        norm = values[-1, is_expressed]
        if moments.n_cells < 2 or np.isnan(norm).all():
            silent.append(n_batches - 1)
            continue
        n_variable[is_expressed] += variable_genes(norm, n_genes)
        is_known = ~np.isnan(values)
        sums += np.where(is_known, values, 0.0)
        counts += is_known
    if len(silent) == n_batches:
        raise InputError("no gene varies between the cells of any technical batch, so that none can be chosen.")
    averages = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    by_name = np.argsort(np.array(names, dtype=object), kind="stable")
    falling = np.where(np.isnan(averages[-1]), np.inf, -averages[-1])
    order = by_name[np.lexsort((falling[by_name], -n_variable[by_name]))]
    is_variable = np.zeros(size, dtype=bool)
    is_variable[order[:n_genes]] = True
    found = pd.DataFrame(dict(zip(STATISTICS, averages, strict=True)))
    return BatchChoice(found.assign(highly_variable_nbatches=n_variable), is_variable, tuple(silent))
