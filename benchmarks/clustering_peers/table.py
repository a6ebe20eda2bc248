"""The methods of benchmarks/figure4.py by name: ours, the plain ones of methods.py, and the peers of this folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from baselines import PREPARATION
from methods import Fit, Labels, Latent, Method, find_methods
from record import Cost, measure

from clustering_peers import contrastive, embedded, graphs, scgmai, simlr
from clustering_peers.communities import leiden_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from integration.children import Peers
    from methods import LabelledSet

    from clustering_peers.cells import Cells, CountedSet, Found

OURS = ("scamac", "scamac-auto", "consensus", "consensus-auto")
PLAIN = ("pca50-kmeans", "leiden-1")
SCVI = ("scvi-kmeans", "scvi-leiden")
SCVI_BATCH = 128
SCVI_EPOCHS = 400
SCVI_STEPS = 4000

WRITTEN: dict[str, tuple[str, Callable[[Cells, int], Found], dict[str, object]]] = {
    "seurat": ("Seurat-like", graphs.seurat_like, graphs.SETTINGS),
    "simlr": ("SIMLR-like", simlr.simlr_like, simlr.SETTINGS),
    "scdeepcluster": ("scDeepCluster-like", embedded.scdeepcluster_like, embedded.SCDEEPCLUSTER_SETTINGS),
    "desc": ("DESC-like", embedded.desc_like, embedded.DESC_SETTINGS),
    "contrastive": ("contrastive-sc-like", contrastive.contrastive_like, contrastive.SETTINGS),
    "scgmai": ("scGMAI-like", scgmai.scgmai_like, scgmai.SETTINGS),
}
"""Name to title, (cells, seed) to labels and latent, and settings."""

NAMES = (*OURS, *PLAIN, *WRITTEN, *SCVI)
FINDS_K = ("scamac-auto", "consensus-auto", "leiden-1", "seurat", "desc", "scvi-leiden")
"""Those that are not told the true number of clusters."""
LIMITS = {"simlr": simlr.MAX_CELLS}
"""Most cells of a set that a method is run on."""


def written_method(name: str) -> Method:
    """A peer written from its paper; its cost includes the preparation."""
    title, cluster, settings = WRITTEN[name]

    def fit(data: LabelledSet, seed: int) -> Fit:
        cells, before = as_counted(data).cells()
        with measure() as cost:
            labels, latent = cluster(cells, seed)
        return Fit(labels, before + cost, latent)

    return Method(title, fit, {**PREPARATION, **settings})


def as_counted(data: LabelledSet) -> CountedSet:
    """The set, known to keep its counts."""
    from clustering_peers.cells import CountedSet

    assert isinstance(data, CountedSet)
    return data


class ScviLatent:
    """scVI's latent, trained in its own environment once for each set and seed, and what it cost."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self._held: tuple[tuple[str, int], Latent, Cost] | None = None

    def of(self, data: LabelledSet, seed: int) -> tuple[Latent, Cost]:
        """The latent, (N, 10)."""
        if self._held is None or self._held[0] != (data.name, seed):
            from scipy import sparse

            cells, before = as_counted(data).cells()
            counts = sparse.csr_matrix(cells.counts)
            arrays: dict[str, Any] = {
                "data": counts.data,
                "indices": counts.indices,
                "indptr": counts.indptr,
                "shape": np.array(counts.shape),
                "batches": np.full(len(cells.counts), "all"),
            }
            steps = -(-len(cells.counts) // SCVI_BATCH)
            epochs = max(1, min(SCVI_EPOCHS, SCVI_STEPS // steps))
            found, cost, _ = self.peers.call("run_scvi", arrays, {"seed": seed, "epochs": epochs})
            self._held = (data.name, seed), found["latent"], before + cost
        return self._held[1], self._held[2]


def scvi_methods(peers: Peers) -> dict[str, Method]:
    """scVI with k-means and with Leiden on the same latent; the cost of each includes the training."""
    latents = ScviLatent(peers)

    def kmeans(latent: Latent, n_clusters: int, seed: int) -> Labels:
        from sklearn.cluster import KMeans

        labels: Labels = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(latent)
        return labels

    def make(title: str, cluster: Callable[[Latent, int, int], Labels], settings: dict[str, Any]) -> Method:
        def fit(data: LabelledSet, seed: int) -> Fit:
            latent, before = latents.of(data, seed)
            with measure() as cost:
                labels = cluster(latent, data.n_true, seed)
            return Fit(labels, before + cost, latent)

        training = {"epochs": SCVI_EPOCHS, "max_steps": SCVI_STEPS, "versions_wanted": "scvi-tools 1.4.2"}
        return Method(title, fit, {**PREPARATION, **training, **settings})

    return {
        "scvi-kmeans": make("scVI + k-means", kmeans, {"n_init": 10}),
        "scvi-leiden": make(
            "scVI + Leiden r = 1",
            lambda latent, _, seed: leiden_of(latent, 1.0, seed),
            {"resolution": 1.0, "n_neighbors": 15},
        ),
    }


def find_all(names: Collection[str], peers: Peers) -> dict[str, Method]:
    """The methods of these names, in the order of `NAMES`; titles say which are not told K."""
    methods = find_methods([name for name in names if name in (*OURS, *PLAIN)])
    methods |= {name: written_method(name) for name in WRITTEN if name in names}
    if any(name in SCVI for name in names):
        peers.check(["scvi-tools"])
        methods |= {name: method for name, method in scvi_methods(peers).items() if name in names}
    told = {
        name: replace(method, settings={**method.settings, "told_K": name not in FINDS_K})
        for name, method in methods.items()
    }
    return {name: told[name] for name in NAMES if name in told}
