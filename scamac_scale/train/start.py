"""How a run begins: the scale of the input, the weights of the network, the labels of the landmark cells.

The PCA start sets the autoencoder to the linear PCA autoencoder: each component passes through LeakyReLU as a pair of
opposite units, since phi(t) - phi(-t) = (1 + slope) t. The two projections (Eqs. 6 and 7) read the same pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scamac_scale.errors import ConfigError, MissingExtraError
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.plan import RowsPlan
from scamac_scale.randomness import integer_seed, numpy_generator
from scamac_scale.sweep import SWEEP_CELLS, sweep
from scamac_scale.train import consensus as members_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.arrays import FloatArray, IntArray
    from scamac_scale.config import ModelConfig, ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork

LANDMARKS_PER_CLUSTER = 5


def sample_rows(n_cells: int, n_rows: int, seed: int, purpose: str) -> IntArray:
    """Draw rows without repeats, in ascending order; all of them where `n_rows` reaches `n_cells`."""
    if n_rows >= n_cells:
        return np.arange(n_cells)
    chosen = numpy_generator(seed, purpose).choice(n_cells, size=n_rows, replace=False, shuffle=False)
    return np.sort(chosen)


def read_cells(source: CellSource, rows: IntArray, network: ScamacNetwork) -> torch.Tensor:
    """Scaled input of some cells, (n, G) float32 on the CPU; for samples that fit memory."""
    pieces = [rows[start : start + SWEEP_CELLS] for start in range(0, len(rows), SWEEP_CELLS)]
    with Feed(source) as feed:
        scaled = [
            network.scale_input(batch.values.to(network.gene_mean.device)).cpu() for batch in feed.run(RowsPlan(pieces))
        ]
    return torch.cat(scaled)


def fit_input_scale(network: ScamacNetwork, source: CellSource, gene_sd: float | None, is_centered: bool) -> None:
    """Set the gene means and the one global scale of the input from a sweep over all cells.

    Parameters
    ----------
    network
        Its `gene_mean` (G,) and `input_scale` () are written.
    source
        N cells.
    gene_sd
        Mean standard deviation of a gene afterwards, or None to leave the scale at 1.
    is_centered
        Whether gene means are subtracted.
    """
    network.gene_mean.zero_()
    network.input_scale.fill_(1.0)
    device = network.gene_mean.device

    def add(sums: torch.Tensor, batch: Batch) -> torch.Tensor:
        x = network.scale_input(batch.values.to(device)).double()
        return sums + torch.stack([x.sum(dim=0), x.square().sum(dim=0)]).cpu()

    sums = sweep(source, add, torch.zeros(2, len(network.gene_mean), dtype=torch.float64), label="gene moments")
    mean, square = sums / source.n_cells
    if is_centered:
        network.gene_mean.copy_(mean)
    if gene_sd is not None:
        sd = float((square - mean.square()).clamp_min(0.0).sqrt().mean())
        network.input_scale.fill_(gene_sd / sd if sd > 0 else 1.0)


def principal_components(
    network: ScamacNetwork, source: CellSource, n_components: int, rows: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Mean and principal axes of the scaled input by streamed covariance.

    Parameters
    ----------
    network
        Scales the input.
    source
        N cells.
    n_components
        Axes asked for; fewer where the cells or genes are fewer.
    rows
        (n,) cells of the covariance.

    Returns
    -------
    tuple of FloatArray
        Mean (G,) and axes (G, W), float64, largest variance first, largest entry of each axis positive.

    Notes
    -----
    O(n G^2) time and O(G^2) memory; float32 block products summed in float64.
    """
    from scipy.linalg import eigh

    n_genes = len(network.gene_mean)
    mean = torch.zeros(n_genes, dtype=torch.float64)
    cross = torch.zeros(n_genes, n_genes, dtype=torch.float64)
    device = network.gene_mean.device
    pieces = [rows[start : start + SWEEP_CELLS] for start in range(0, len(rows), SWEEP_CELLS)]
    with Feed(source) as feed:
        for batch in feed.run(RowsPlan(pieces)):
            x = network.scale_input(batch.values.to(device))
            mean += x.sum(dim=0, dtype=torch.float64).cpu()
            cross += (x.T @ x).cpu()
    mean /= len(rows)
    covariance = (cross / len(rows) - torch.outer(mean, mean)).numpy()
    width = min(n_components, len(rows) - 1, n_genes)
    _, axes = eigh(covariance, subset_by_index=[n_genes - width, n_genes - 1])
    axes = axes[:, ::-1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(width)])
    return mean.numpy(), axes * np.where(signs == 0, 1.0, signs)


def check_pca_start(model: ModelConfig) -> None:
    """Refuse a network that cannot be the linear PCA autoencoder.

    Parameters
    ----------
    model
        Sizes and forms.

    Raises
    ------
    ConfigError
        If the latent or output activation is not linear, or the encoder is too narrow for the pairs.
    """
    if model.latent_activation != "linear" or model.output_activation != "linear":
        raise ConfigError(
            "start.weights='pca' needs model.latent_activation and model.output_activation 'linear'; "
            f"got {model.latent_activation!r} and {model.output_activation!r}. Set start.weights to 'kaiming'."
        )
    if model.encoder_width < 2 * model.latent_width:
        raise ConfigError(
            f"start.weights='pca' needs model.encoder_width >= 2 x model.latent_width = {2 * model.latent_width}; "
            f"got {model.encoder_width}."
        )


def start_from_pca(network: ScamacNetwork, source: CellSource, config: ScamacConfig) -> None:
    """Set the autoencoder and the two projections to the linear PCA autoencoder.

    Parameters
    ----------
    network
        Its weights are written. Units beyond the pairs keep their random input weights and start with no influence.
    source
        N cells; a random sample of ``start.pca_cells`` where N is larger.
    config
        Of the run.

    Raises
    ------
    ConfigError
        If the latent or output activation is not linear, or the encoder is too narrow for the pairs.
    """
    model = config.model
    check_pca_start(model)
    rows = sample_rows(source.n_cells, config.start.pca_cells, config.seed, "pca")
    mean, axes = principal_components(network, source, model.latent_width, rows)
    width = axes.shape[1]
    slope = model.negative_slope if model.encoder_activation == "leaky_relu" else 1.0
    pairs = torch.zeros(model.latent_width, model.encoder_width, dtype=torch.float64)
    index = torch.arange(width)
    pairs[index, 2 * index] = 1.0 / (1.0 + slope)
    pairs[index, 2 * index + 1] = -1.0 / (1.0 + slope)
    signs = torch.zeros(2 * width, model.latent_width, dtype=torch.float64)
    signs[2 * index, index] = 1.0
    signs[2 * index + 1, index] = -1.0
    basis = torch.zeros(len(mean), model.latent_width, dtype=torch.float64)
    basis[:, :width] = torch.from_numpy(axes)
    center = torch.from_numpy(mean)
    auto, heads = network.autoencoder, network.projection
    with torch.no_grad():
        auto.w1.weight[: 2 * width] = (signs @ basis.T).to(auto.w1.weight)
        auto.w1.bias[: 2 * width] = -(signs @ (basis.T @ center)).to(auto.w1.bias)
        auto.w3.weight[: 2 * width] = signs.to(auto.w3.weight)
        auto.w3.bias[: 2 * width] = 0.0
        auto.w4.weight.copy_(basis @ pairs)
        auto.w4.bias.copy_(center)
        for layer in (auto.w2, heads.w11, heads.w22):
            layer.weight.copy_(pairs)
            layer.bias.zero_()


def _keep_kaiming(network: ScamacNetwork, source: CellSource, config: ScamacConfig) -> None:
    """Leave the random weights that the layers were made with."""


def _start_from_identity(network: ScamacNetwork, source: CellSource, config: ScamacConfig) -> None:
    """Set every matrix to the identity, cut or padded to its shape, and every bias to zero, as the published code does."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.eye_(layer.weight)
            torch.nn.init.zeros_(layer.bias)


WEIGHT_STARTS: dict[str, Callable[[ScamacNetwork, CellSource, ScamacConfig], None]] = {
    "pca": start_from_pca,
    "kaiming": _keep_kaiming,
    "identity": _start_from_identity,
}


def landmark_count(n_cells: int, config: ScamacConfig) -> int:
    """Landmark cells: as configured, more for very many clusters, never more than there are cells."""
    wanted = config.start.landmark_cells
    if isinstance(config.n_clusters, int):
        wanted = max(wanted, LANDMARKS_PER_CLUSTER * config.n_clusters)
    return min(wanted, n_cells)


def _ward(latent: FloatArray, n_clusters: int, seed: int) -> IntArray:
    return members_of.ward(latent, n_clusters, seed)


def _kmeans(latent: FloatArray, n_clusters: int, seed: int) -> IntArray:
    return members_of.kmeans(latent, n_clusters, integer_seed(seed, "kmeans"))


def _faiss_kmeans(latent: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """k-means by faiss, on the GPU where faiss has one: for many landmarks and many clusters."""
    faiss = import_faiss()
    points = np.ascontiguousarray(latent, dtype=np.float32)
    is_gpu = getattr(faiss, "get_num_gpus", lambda: 0)() > 0
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    clusters = faiss.Kmeans(
        points.shape[1], n_clusters, niter=25, nredo=10, seed=integer_seed(seed, "kmeans"), gpu=is_gpu, **limits
    )
    clusters.train(points)
    nearest: IntArray = clusters.index.search(points, 1)[1].ravel()
    return nearest


def import_faiss() -> Any:  # Any: faiss is not typed
    """Import faiss, or say which extra brings it.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            "start.centers='faiss_kmeans' needs faiss; install scamac-scale[cpu], or scamac-scale[gpu] where there is a "
            "GPU, or choose start.centers='kmeans'."
        ) from error
    return faiss


def _random(latent: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Nearest of K random landmarks, as the published code starts."""
    chosen = latent[numpy_generator(seed, "random centers").choice(len(latent), n_clusters, replace=False)]
    from scipy.spatial.distance import cdist

    nearest: IntArray = cdist(latent, chosen).argmin(axis=1)
    return nearest


CENTER_STARTS: dict[str, Callable[[FloatArray, int, int], IntArray] | None] = {
    "consensus": None,  # labels come with the members; see train.consensus
    "ward": _ward,
    "kmeans": _kmeans,
    "faiss_kmeans": _faiss_kmeans,
    "random": _random,
}
"""Name to a function of landmark latents (M, D), K and seed that labels the landmarks."""
