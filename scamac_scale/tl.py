"""Tools in scanpy's style: they work in place on an AnnData in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from scamac_scale.config import IngestConfig, MarkerTest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad

    from scamac_scale.api import ScAMAC
    from scamac_scale.api.files import Data
    from scamac_scale.api.labels import AnnotateOptions
    from scamac_scale.config import Count, ScamacConfig


def scamac(
    adata: ad.AnnData,
    n_clusters: Count | None = None,
    *,
    batch_key: str | Sequence[str] | None = None,
    seed: int | None = None,
    config: ScamacConfig | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    denoised: bool = False,
    levels: str | int | Sequence[int] = (),
) -> None:
    """Cluster the cells of an AnnData with scAMAC, in place.

    Parameters
    ----------
    adata
        N cells with raw counts, linear values (RPKM, TPM) or log values; which is detected.
    n_clusters
        Number of clusters K, or ``"auto"`` (the default).
    batch_key
        Column of obs, or several, that tell the technical batch (donor, chip, technology) of a cell: the latent is corrected for it.
    seed
        Every random choice derives from it.
    config
        All settings.
    layer
        Layer with the values, instead of X.
    use_raw
        Take the values of ``adata.raw``.
    denoised
        Add ``obsm["scamac_denoised"]``, log-normalised expression of the genes of the model (their names are in
        ``uns["scamac_details"]["genes"]``).
    levels
        Numbers of coarser and finer clusters beside the others, each nested in the next: ``(5, 20)`` adds ``obs["scamac_cluster_5"]`` and
        ``obs["scamac_cluster_20"]``.

    Raises
    ------
    InputError
        If the data cannot be used.

    Notes
    -----
    Writes ``obs["scamac_cluster"]``, ``obsm["X_scAMAC"]``, ``obsm["scamac_membership"]`` and ``uns["scamac"]``, and
    ``uns["dendrogram_scamac_cluster"]`` for scanpy's plots; with a batch key also ``obsm["X_scAMAC_uncorrected"]``.
    """
    from scamac_scale.api import ScAMAC
    from scamac_scale.infer.levels import DENDROGRAM_KEY
    from scamac_scale.infer.options import counts_of
    from scamac_scale.infer.output.table import CLUSTER_KEY, DENOISED_KEY, UNCORRECTED_KEY

    matrix = "raw" if use_raw else (layer or "X")
    model = ScAMAC(n_clusters, batch_key=batch_key, seed=seed, config=config)
    model.fit(adata, ingest=IngestConfig(matrix=matrix))
    found = model.predict(adata, denoised=denoised, matrix=matrix, levels=levels)
    for name in [CLUSTER_KEY, *(f"{CLUSTER_KEY}_{level}" for level in counts_of(levels))]:
        adata.obs[name] = found.obs[name]
    adata.obsm.pop(UNCORRECTED_KEY, None)  # of a run before
    for name in found.obsm:
        adata.obsm[name] = found.obsm[name]
    adata.uns.pop(DENDROGRAM_KEY, None)  # of a run before
    for name in found.uns:
        adata.uns[name] = found.uns[name]
    if denoised:
        adata.obsm[DENOISED_KEY] = found.layers[DENOISED_KEY]


def markers(
    adata: ad.AnnData,
    groupby: str = "scamac_cluster",
    *,
    method: MarkerTest = "t-test",
    reference: str = "rest",
    n_genes: int | None = None,
    layer: str | None = None,
    use_raw: bool = False,
) -> None:
    """Rank the genes of each cluster, in place, as ``sc.tl.rank_genes_groups`` does on log-normalised values.

    Parameters
    ----------
    adata
        N cells that `scamac` has clustered, with the raw values that it was given.
    groupby
        Column of obs whose values are the groups.
    method, reference, n_genes
        As of `scamac_scale.api.markers`.
    layer, use_raw
        As of `scamac`.

    Raises
    ------
    InputError
        If the data cannot be used, or `adata` was not clustered by `scamac`.

    Notes
    -----
    Writes ``uns["rank_genes_groups"]``. scanpy's plots take expression from X: log-normalise that first.
    """
    from scamac_scale.marker_genes.find import markers_in_memory
    from scamac_scale.marker_genes.options import MarkerOptions

    options = MarkerOptions(groupby=groupby, method=method, reference=reference, n_genes=n_genes)
    markers_in_memory(adata, options, IngestConfig(matrix="raw" if use_raw else (layer or "X")))


def annotate(
    adata: ad.AnnData,
    model: ScAMAC,
    reference: Data,
    label: str,
    **options: Unpack[AnnotateOptions],
) -> None:
    """Give the cells of an AnnData the labels of a reference, in place.

    Parameters
    ----------
    adata
        N cells with the genes of the model.
    model
        Fitted, or loaded.
    reference
        Labelled cells with the genes of the model; as of `ScAMAC.annotate`.
    label
        Column of obs of the reference.
    **options
        As of `ScAMAC.annotate`.

    Raises
    ------
    InputError
        If the data or the column cannot be used.

    Notes
    -----
    Writes ``obs["scamac_label"]`` and ``obs["scamac_label_probability"]``; nothing else is changed.
    """
    from scamac_scale.infer.output.table import LABEL_KEY, LABEL_PROBABILITY_KEY

    found = model.annotate(reference, label, adata, **options)
    for name in (LABEL_KEY, LABEL_PROBABILITY_KEY):
        adata.obs[name] = found.obs[name]
