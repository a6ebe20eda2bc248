"""Highly variable genes from streamed sums: scanpy's ``seurat`` flavor without the matrix.

scanpy undoes the logarithm before it takes means and variances, so sums of ``x / total`` and their squares are enough,
and the target sum, a median known only at the end, can be applied to them afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

N_BINS = 20
"""Bins of equal width over the logarithm of the means, as scanpy and Seurat have them."""


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


def dispersion_table(moments: Moments) -> pd.DataFrame:
    """Compute how much each gene varies for its mean.

    Parameters
    ----------
    moments
        Sums of the normalised, not logged, values over at least two cells.

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
    mean[mean == 0] = 1e-12
    dispersion = variance / mean
    dispersion[dispersion == 0] = np.nan
    table = pd.DataFrame({"means": np.log1p(mean), "dispersions": np.log(dispersion)})
    bins = pd.cut(table["means"], bins=N_BINS, labels=False)
    of_bin = table.groupby(bins)["dispersions"]
    center, spread = of_bin.transform("mean"), of_bin.transform("std")
    is_alone = spread.isna()
    spread = spread.where(~is_alone, center)
    center = center.where(~is_alone, 0.0)
    table["dispersions_norm"] = (table["dispersions"] - center) / spread
    return table


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
        raise InputError("no gene varies between cells, so that none can be chosen; check the matrix.")
    cut_off = known[min(n_genes, known.size) - 1]
    with np.errstate(invalid="ignore"):
        return np.asarray(dispersions_norm >= cut_off)
