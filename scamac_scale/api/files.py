"""Ingest, inspect and evaluate files. Everything heavy is imported when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from scamac_scale.api.progress import reports
from scamac_scale.config import IngestConfig, joined_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import anndata as ad

    Data: TypeAlias = str | Path | ad.AnnData | Sequence[str | Path | ad.AnnData]


@reports
def inspect(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Tell what a store, a run folder, a model or an output holds; see `scamac_scale.inspection.inspect`."""
    from scamac_scale.inspection import inspect as look

    return look(path, verify=verify)


@reports
def ingest(
    data: Data,
    out: str | Path,
    config: IngestConfig | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    dask: Any = None,  # Any: a Client, which is not imported for its type
    workers: int | None = None,
) -> Path | str:
    """Turn a raw file into a training store.

    Parameters
    ----------
    data
        h5ad, AnnData zarr or 10x h5 of N cells, by path or URL (``s3://bucket/atlas.h5ad``), or an AnnData in memory; a pattern
        (``"runs/*.h5ad"``), a manifest (``.csv``, ``.yaml``), or a list of these: their cells follow one another.
    out
        The store, a zarr folder or its URL; for a URL it is made below ``SCAMAC_WORK_DIR``, or the temporary folder, first.
    config
        What the values are, where they lie, which genes are kept.
    overwrite
        Replace an existing store.
    resume
        Go on from where an ingest of the same file and settings was stopped.
    dask
        Address of a dask scheduler, or a ``distributed.Client``, whose workers do the work: the store is the same to the byte.
    workers
        Start so many dask workers on this machine instead.

    Returns
    -------
    Path or str
        The store, or its URL.

    Raises
    ------
    InputError
        If the data cannot be used; names the cell and gene, or the key.
    OutputError
        If the store exists, cannot be written, or another job is writing it.
    ResumeError
        If what was begun is of another file or other settings.
    ClusterError, LostRankError
        If the cluster cannot do the work, or is lost.
    """
    from scamac_scale.ingestion.pipeline import ingest as write

    return write(data, out, config or IngestConfig(), overwrite=overwrite, resume=resume, dask=dask, workers=workers)


@reports
def evaluate(
    data: str | Path | ad.AnnData,
    label: str | None = None,
    *,
    key: str = "scamac_cluster",
    batch_key: str | Sequence[str] | None = None,
    basis: str = "X_scAMAC",
    unlabelled: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score a clustering against labels, and how well technical batches mix.

    Parameters
    ----------
    data
        Output of `ScAMAC.predict`: zarr, h5ad or AnnData.
    label
        Column of obs with the labels; cells without one, or with the text of a missing value ("nan", "NA", "None", ...), are left
        out of scores by label, and counted.
    key
        Column of obs with the clusters.
    batch_key
        Columns of obs with the technical batches, commas between them; several count jointly.
    basis
        Key of obsm in which batches are to mix.
    unlabelled
        Labels that mean none, such as ``"unknown"``; commas between them, or a list.

    Returns
    -------
    dict
        With a label ``ari``, ``nmi``, ``n_cells``, ``n_unlabelled``, ``n_clusters``, ``n_labels``; with a batch key those of
        docs/batches.md. Plain numbers; ``warnings`` is a list of sentences, always there with a batch key, else where there are some.

    Raises
    ------
    InputError
        If a column or the basis is missing (lists the known ones) or cannot be used, or there is one batch only.
    """
    from scamac_scale.evaluation import evaluate as score

    return score(data, label, key=key, batch_key=joined_key(batch_key), basis=basis, unlabelled=unlabelled)
