"""scanpy's ``cell_ranger`` flavor: dispersions of log-normalised values, compared among genes of like means by median and MAD.

The scale of a cell depends on the median total of all cells, so the log values are summed in a pass of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.cells.normalisation import cell_scale
from scamac_scale.ingestion.flavors.over_batches import choose_by_dispersion
from scamac_scale.ingestion.flavors.sums import Common, fold, log_moments, moments_of_batches, raw_moments

if TYPE_CHECKING:
    import pandas as pd

    from scamac_scale.ingestion.flavors.sums import Candidates, Choice, Moments

PERCENTILES = np.arange(10, 105, 5)
"""Of the means, at which genes are cut into bins; all below the tenth are one."""
NORMAL_MAD = 0.6744897501960817
"""Median absolute deviation of a standard normal."""


def choose_cell_ranger(candidates: Candidates) -> Choice:
    """Choose by the dispersion of log values."""
    column, n_genes = candidates.column, candidates.shape[1]
    if candidates.target_sum is None:
        sums = fold(candidates, raw_moments, Common(column, n_genes, candidates.tech), "measuring log values")
    else:
        scale = cell_scale(candidates.totals, candidates.target_sum)
        common = Common(column, n_genes, candidates.tech, scale)
        sums = fold(candidates, log_moments, common, "measuring log values")
    return choose_by_dispersion(moments_of_batches(candidates, sums), mad_table, candidates)


def mad_table(moments: Moments, rounding: float = 0.0) -> pd.DataFrame:
    """Compute how much each gene varies for its mean.

    Parameters
    ----------
    moments
        Sums of the log values over at least two cells.
    rounding
        Variance, as a share of the squared mean, up to which a gene does not vary.

    Returns
    -------
    DataFrame
        (G rows) ``means``, ``dispersions`` (variance over mean) and ``dispersions_norm`` (distance from the median of the bin in
        units of its median absolute deviation; infinite where that is 0, and NaN where the distance is 0, too), named and defined
        as in scanpy.

    Notes
    -----
    scanpy fails where percentiles are equal; here equal ones are one.

    References
    ----------
    Zheng et al., Nature Communications 2017; ``scanpy.pp.highly_variable_genes(flavor="cell_ranger")``.
    """
    import pandas as pd

    mean, variance = moments.mean_and_variance()
    if rounding:
        variance[variance <= rounding * mean**2] = 0.0
    mean[mean == 0] = 1e-12
    table = pd.DataFrame({"means": mean, "dispersions": variance / mean})
    edges = np.unique(np.percentile(mean, PERCENTILES))
    bins = pd.cut(table["means"], bins=np.r_[-np.inf, edges, np.inf], labels=False)
    of_bin = table.groupby(bins)["dispersions"]
    center = of_bin.transform("median")
    spread = (table["dispersions"] - center).abs().div(NORMAL_MAD).groupby(bins).transform("median")
    with np.errstate(divide="ignore", invalid="ignore"):
        table["dispersions_norm"] = (table["dispersions"] - center) / spread
    return table
