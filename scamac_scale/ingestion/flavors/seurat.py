"""Highly variable genes from streamed sums: scanpy's ``seurat`` flavor without the matrix.

scanpy undoes the logarithm before it takes means and variances, so sums of ``x / total`` and their squares are enough,
and the target sum, a median known only at the end, can be applied to them afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.ingestion.flavors.over_batches import choose_by_dispersion

if TYPE_CHECKING:
    import pandas as pd

    from scamac_scale.ingestion.flavors.sums import Candidates, Choice, Moments

N_BINS = 20
"""Bins of equal width over the logarithm of the means, as scanpy and Seurat have them."""
SAME_MEANS = 1e-7
"""Means that differ by less, as a share, are equal: in float32, as scanpy has its values, they are."""


def choose_seurat(candidates: Candidates) -> Choice:
    """Choose by the dispersion of the normalised, not logged, values; needs no pass of its own."""
    factor = candidates.target_sum
    scaled = (part if factor is None else part.scaled(factor) for part in candidates.moments)
    return choose_by_dispersion(scaled, dispersion_table, candidates)


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

    mean, variance = moments.mean_and_variance()
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
