"""The methods that benchmarks/quality.py compares: the peers of baselines.py and this program.

This program is called through its public face only, except for "consensus without network": the consensus of the
landmarks on the input alone, which shows what the network adds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import baselines
import numpy as np
from baselines import PEERS, PREPARATION, Peer, add_graph, nearest_center, prepare
from numpy.typing import NDArray
from record import Cost, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from anndata import AnnData

    from scamac_scale.config import IngestConfig, InputConfig, ScamacConfig

Labels = NDArray[np.int64]
Latent = NDArray[np.floating]
ROOT = Path(__file__).resolve().parent.parent
PAPER_CONFIG = ROOT / "configs" / "paper.yaml"
PAPER_GENES = 3000

HELD_OUT = {"kang12k_1287g": ("sample", "1256")}
"""Set to a column of obs and the donor whose cells are labelled from those of the others."""


class LabelledSet:
    """One file, its labels, and what the peers share: prepared once, and the graph once per seed.

    Parameters
    ----------
    path
        h5ad.
    label
        Column of obs.
    """

    def __init__(self, path: Path, label: str) -> None:
        import anndata

        self.path = path
        self.name = path.stem
        adata = anndata.read_h5ad(path, backed="r")
        column = adata.obs[label]
        self.n_cells, self.n_genes = adata.shape
        self.density = stored_values(adata.X) / (self.n_cells * self.n_genes)
        adata.file.close()
        self.is_labelled = (column.notna() & (column.astype(str) != "")).to_numpy()
        self.truth = column.astype(str).to_numpy()
        self.n_true = len(set(self.truth[self.is_labelled]))
        self.is_held_out: NDArray[np.bool_] | None = None
        if self.name in HELD_OUT:
            donor, held_out = HELD_OUT[self.name]
            self.is_held_out = (adata.obs[donor].astype(str) == held_out).to_numpy()
        self._prepared: tuple[AnnData, Cost] | None = None
        self._graph: tuple[int, Cost] | None = None

    def prepared(self) -> tuple[AnnData, Cost]:
        """Log values, principal components, and what they cost."""
        if self._prepared is None:
            with measure() as cost:
                adata = prepare(self.path)
            self._prepared = adata, cost
        return self._prepared

    def forget(self) -> None:
        """Free what is kept for the next method."""
        self._prepared = self._graph = None

    def graph(self, seed: int) -> tuple[AnnData, Cost]:
        """The prepared set with its neighbour graph, and what both cost."""
        adata, cost = self.prepared()
        if self._graph is None or self._graph[0] != seed:
            with measure() as graph_cost:
                add_graph(adata, seed)
            self._graph = seed, graph_cost
        return adata, cost + self._graph[1]

    def score(self, labels: Labels) -> dict[str, float]:
        """ARI and NMI over the labelled cells."""
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        truth, found = self.truth[self.is_labelled], labels[self.is_labelled]
        return {
            "ari": round(float(adjusted_rand_score(truth, found)), 6),
            "nmi": round(float(normalized_mutual_info_score(truth, found)), 6),
        }

    def score_latent(self, latent: Latent) -> dict[str, float]:
        """15-NN accuracy of the labels, and how well a donor held out is labelled, where the set names one.

        Nothing where the labelled cells are too few for 15 neighbours.
        """
        from scamac_scale.errors import InputError
        from scamac_scale.metrics.preservation import neighbor_accuracy, transfer_scores

        truth = np.where(self.is_labelled, self.truth, "")
        try:
            found = {"neighbor_accuracy": neighbor_accuracy(latent, truth)}
        except InputError:
            return {}
        if self.is_held_out is not None:
            scores = transfer_scores(latent, truth, self.is_held_out)
            found |= {"transfer_accuracy": scores["accuracy"], "transfer_macro_f1": scores["macro_f1"]}
        return {name: round(value, 6) for name, value in found.items()}


def stored_values(matrix: Any) -> int:
    """Entries that a matrix on disk stores: its nonzeros if it is sparse."""
    group = getattr(matrix, "group", None)
    return int(matrix.size if group is None else group["data"].shape[0])


class Fit(NamedTuple):
    """What a method gives.

    Attributes
    ----------
    labels
        (N,).
    cost
        From the file to the labels.
    latent
        (N, D) that a user would search for neighbours in; None where there is none.
    """

    labels: Labels
    cost: Cost
    latent: Latent | None = None


@dataclass(frozen=True)
class Method:
    """One column of the table.

    Attributes
    ----------
    title
        For tables.
    fit
        (set, seed) to labels, cost and latent.
    settings
        Recorded beside the results.
    """

    title: str
    fit: Callable[[LabelledSet, int], Fit]
    settings: dict[str, Any]


def peer_method(peer: Peer) -> Method:
    """A peer of baselines.py; its cost includes the preparation, shared or not. The components count as latent once."""

    def fit(data: LabelledSet, seed: int) -> Fit:
        adata, before = data.graph(seed) if peer.has_graph else data.prepared()
        with measure() as cost:
            labels = peer.cluster(adata, data.n_true, seed)
        return Fit(labels, before + cost, None if peer.has_graph else adata.obsm["X_pca"])

    return Method(peer.title, fit, peer.settings)


def scaled_input(adata: AnnData, config: InputConfig) -> NDArray[np.float64]:
    """What the network sees: unit cells, centered genes, one global scale; (N, G)."""
    values: NDArray[np.float64] = adata.X.toarray().astype(np.float64)
    if config.unit_norm:
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        values /= np.where(norms > 0, norms, 1.0)
    if config.center:
        values -= values.mean(axis=0)
    if config.gene_sd is not None:
        values *= config.gene_sd / values.std(axis=0).mean()
    return values


def consensus_labels(adata: AnnData, n_clusters: int | None, config: ScamacConfig) -> Labels:
    """Consensus of the landmarks on the input alone.

    Parameters
    ----------
    adata
        From `prepare`.
    n_clusters
        K, or None to cut the tree at the configured height.
    config
        ``seed``, ``input`` and ``start``.

    Returns
    -------
    Labels
        (N,), see `consensus_of_points`.
    """
    return consensus_of_points(scaled_input(adata, config.input), n_clusters, config)


def consensus_of_points(points: NDArray[np.float64], n_clusters: int | None, config: ScamacConfig) -> Labels:
    """Consensus of landmarks among any points.

    Parameters
    ----------
    points
        (N, P): the input, principal components, or a latent.
    n_clusters
        K, or None to cut the tree at the configured height.
    config
        ``seed`` and ``start``.

    Returns
    -------
    Labels
        (N,): the landmarks keep the cluster of the consensus tree; every other cell joins the nearest cluster mean in
        the widest principal space.
    """
    from scamac_scale.train.clusters.consensus import cluster_means, find_consensus, principal_axes

    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.permutation(len(points))[: config.start.landmark_cells])
    found = find_consensus(
        {"input": points[rows]},
        np.ones(len(rows)),
        n_clusters,
        components=config.start.components,
        cut_height=config.start.cut_height,
        seed=config.seed,
    )
    mean, axes = principal_axes(points[rows], max(config.start.components))
    projected = (points - mean) @ axes
    labels = nearest_center(projected, cluster_means(projected[rows], found.labels, found.n_clusters))
    labels[rows] = found.labels
    return labels


def consensus_method(title: str, is_told: bool) -> Method:
    """Consensus without network; `is_told`: whether it gets the true K."""
    from scamac_scale.config import ScamacConfig

    def fit(data: LabelledSet, seed: int) -> Fit:
        adata, before = data.prepared()
        with measure() as cost:
            labels = consensus_labels(adata, data.n_true if is_told else None, ScamacConfig(seed=seed))
        return Fit(labels, before + cost)

    default = ScamacConfig()
    return Method(title, fit, {**PREPARATION, "input": asdict(default.input), "start": asdict(default.start)})


def scamac_method(title: str, config: ScamacConfig, ingest: IngestConfig, is_told: bool) -> Method:
    """This program, from the h5ad to the labels; `is_told`: whether it gets the true K."""

    def fit(data: LabelledSet, seed: int) -> Fit:
        from scamac_scale import ScAMAC

        n_clusters: int | str = data.n_true if is_told else "auto"
        with measure() as cost:
            model = ScAMAC(n_clusters, seed=seed, config=config)
            labelled = model.fit(data.path, ingest=ingest).predict(data.path)
            labels = labelled.obs["scamac_cluster"].cat.codes.to_numpy().astype(np.int64)
        return Fit(labels, cost, labelled.obsm["X_scAMAC"])

    return Method(title, fit, {"config": asdict(config), "ingest": asdict(ingest)})


def read_config(path: Path) -> ScamacConfig:
    """A complete config file, checked as the command line checks it."""
    from jsonargparse import ArgumentParser

    from scamac_scale.config import ScamacConfig

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ScamacConfig, as_group=False)
    config: ScamacConfig = ScamacConfig(**vars(parser.instantiate(parser.parse_path(path))))
    return config


def scamac_methods() -> dict[str, Callable[[], Method]]:
    """This program: default with the true K and without, paper config; and the consensus alone."""
    from scamac_scale.config import IngestConfig, ScamacConfig

    default, ingest = ScamacConfig(), IngestConfig()
    return {
        "scamac": lambda: scamac_method("scAMAC", default, ingest, is_told=True),
        "scamac-auto": lambda: scamac_method("scAMAC, auto", default, ingest, is_told=False),
        "scamac-paper": lambda: scamac_method(
            "scAMAC, paper",
            read_config(PAPER_CONFIG),
            replace(ingest, n_genes=PAPER_GENES),
            is_told=True,
        ),
        "consensus": lambda: consensus_method("consensus only", is_told=True),
        "consensus-auto": lambda: consensus_method("consensus only, auto", is_told=False),
    }


def find_methods(names: Collection[str]) -> dict[str, Method]:
    """The methods of these names; the package is imported only where one of them is ours."""
    methods = {name: peer_method(peer) for name, peer in PEERS.items() if name in names}
    if set(names) - set(methods):
        methods |= {name: make() for name, make in scamac_methods().items() if name in names}
    return methods


def warm_up(names: Collection[str], n_cells: int) -> None:
    """Import and compile what these methods use, on a small simulated set.

    Parameters
    ----------
    names
        Of methods.
    n_cells
        Of the largest set.
    """
    if any(not name.startswith("scamac") for name in names):
        has_graph = any(peer.has_graph for name, peer in PEERS.items() if name in names)
        baselines.warm_up(n_cells, has_graph=has_graph)
    if any(name.startswith("scamac") for name in names):
        import anndata

        from scamac_scale import ScAMAC

        rng = np.random.default_rng(0)
        types = rng.gamma(0.5, 2.0, (3, 200))
        counts = rng.poisson(types[np.arange(300) % 3]).astype(np.float32)
        cells = anndata.AnnData(counts)
        ScAMAC(3, seed=0).fit(cells).predict(cells)
