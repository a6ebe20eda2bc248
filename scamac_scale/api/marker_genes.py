"""Marker genes of the clusters of a result. Everything heavy is imported when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scamac_scale.api.progress import reports

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scamac_scale.api.files import Data
    from scamac_scale.config import IngestConfig, MarkerTest


@reports
def markers(
    out: str | Path,
    data: Data,
    *,
    groupby: str = "scamac_cluster",
    method: MarkerTest = "t-test",
    reference: str = "rest",
    n_genes: int | None = None,
    csv: str | Path | None = None,
    run: str | Path | None = None,
    ingest: IngestConfig | None = None,
    accept: str | Sequence[str] = (),
    dask: Any = None,  # Any: a Client, which is not imported for its type
    workers: int | None = None,
) -> dict[str, Any]:
    """Rank the genes of each cluster of a result as ``sc.tl.rank_genes_groups`` does, in one pass over the raw cells.

    Parameters
    ----------
    out
        Output of `ScAMAC.predict`, a zarr or h5ad on a disk of N cells. It gets ``uns["rank_genes_groups"]``; one that is there is replaced.
    data
        The same cells in the same order, raw, as `ingest` takes them; all genes of the input are ranked.
    groupby
        Column of obs of `out` whose values are the K groups. Groups of fewer than two cells are left out.
    method
        ``t-test`` (Welch), or ``t-test_overestim_var``.
    reference
        ``rest``, or a group that all others are compared with.
    n_genes
        Genes of each group in the table, the best first; None takes all, up to two million rows of all groups.
    csv
        The table as text; None puts it beside `out`, as ``NAME.markers.csv``. A table of markers that is there is replaced.
    run
        Run that `out` was predicted by, where that was by an earlier version, which does not tell how values are normalised.
    ingest
        How the raw data is read, and which of its cells were taken.
    accept
        As of `ScAMAC.predict`.
    dask, workers
        As of `ingest`: the table is the same to the bit.

    Returns
    -------
    dict
        ``out``, ``csv``, what was asked for, and ``groups``: of each its cells, best genes, and best AUC. Plain values.

    Raises
    ------
    ConfigError
        If a name is not known.
    InputError
        If cells of `data` and `out` differ in number, names or order, a column is missing, or the data does not fit the fit.
    OutputError
        If `out` or `csv` cannot be written, or another job is writing it; `out` is as it was.
    ClusterError, LostRankError
        If the cluster cannot do the work, or is lost.

    Notes
    -----
    Values are normalised as in the fit, ``log1p(x * target_sum / total)``, with the total over the genes that it counted. Memory is 24
    bytes for each group and gene, 100 MB for the AUC of at most 20,000 cells, the table, and what `ingest` needs for a pass.
    """
    from scamac_scale.infer.options import accepted_names
    from scamac_scale.marker_genes.find import Workers, find_markers
    from scamac_scale.marker_genes.options import MarkerOptions

    options = MarkerOptions(
        groupby=groupby, method=method, reference=reference, n_genes=n_genes, accept=accepted_names(accept)
    )
    return find_markers(out, data, options, ingest, run=run, csv=csv, by=Workers(dask, workers))
