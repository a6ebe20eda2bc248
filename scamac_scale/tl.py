"""Tools in scanpy's style: they work in place on an AnnData in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scamac_scale.config import IngestConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad

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
        ``uns["scamac"]["genes"]``).
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
