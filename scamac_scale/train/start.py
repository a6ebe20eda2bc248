"""How a run begins: the scale of the input and the weights of the network.

The PCA start sets the autoencoder to the linear PCA autoencoder: each component passes through LeakyReLU as a pair of
opposite units, since phi(t) - phi(-t) = (1 + slope) t. The two projections (Eqs. 6 and 7) read the same pairs.
"""

from __future__ import annotations

import logging
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scamac_scale.errors import ConfigError
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.ordered import RowsPlan, SweepPlan
from scamac_scale.loader.source import levels_of
from scamac_scale.ranks.collectives import TreeSum, from_first, sum_over_ranks
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sweep import SWEEP_CELLS, InFlight, Tick, no_tick, sum_over_cells
from scamac_scale.train.clusters.selection import sample_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.config import InputConfig, ModelConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork

LEAST_SHARE = 1e-9
"""Of all molecules, for a gene that no cell of the sample has."""

logger = logging.getLogger(__name__)


def fit_input_scale(
    network: ScamacNetwork,
    source: CellSource,
    config: InputConfig,
    world: World = ALONE,
    in_flight: InFlight | None = None,
    tick: Tick = no_tick,
) -> None:
    """Set the gene means and the one global scale of the input from a sweep over all cells.

    Parameters
    ----------
    network
        Its `gene_mean` (G,) and `input_scale` () are written.
    source
        N cells.
    config
        Whether gene means are subtracted, and the mean standard deviation of a gene afterwards.
    world
        This rank, and how many there are.
    in_flight, tick
        As of `sweep.sum_over_cells`.
    """
    network.gene_mean.zero_()
    network.input_scale.fill_(1.0)
    device = network.gene_mean.device

    def part(batch: Batch) -> torch.Tensor:
        x = network.scale_input(batch.values.to(device)).double()
        return torch.stack([x.sum(dim=0), x.square().sum(dim=0)]).cpu()

    sums = sum_over_cells(source, part, label="gene moments", world=world, in_flight=in_flight, tick=tick)
    mean, square = sums / source.n_cells
    if config.center:
        network.gene_mean.copy_(mean)
    if config.gene_sd is not None:
        sd = float((square - mean.square()).clamp_min(0.0).sqrt().mean())
        network.input_scale.fill_(config.gene_sd / sd if sd > 0 else 1.0)


class _Moments(NamedTuple):
    """What the covariance of the genes is made of; added in place: it is large."""

    total: torch.Tensor
    cross: torch.Tensor

    def __add__(self, other: _Moments) -> _Moments:  # type: ignore[override]  # sums, not concatenated tuples
        return _Moments(self.total.add_(other.total), self.cross.add_(other.cross))


def _sum_over_rows(
    source: CellSource,
    rows: IntArray,
    world: World,
    tick: Tick,
    begin: Callable[[], Any],
    add: Callable[[Any, Batch], None],
) -> Any:  # Any: what is summed
    """Sum over some cells of all ranks: `begin` makes a sum of nothing, `add` adds a batch to it in place."""
    plan = SweepPlan(len(rows), SWEEP_CELLS, world)
    sums = TreeSum()
    with Feed(source) as feed:
        batches = feed.run(RowsPlan([rows[plan.rows(index)] for index in range(plan.n_batches)]))
        for start, end in pairwise([0, *plan.segment_ends]):
            part = begin()
            for batch in islice(batches, end - start):
                add(part, batch)
                tick()
            sums.add(part)
    for _ in range(plan.n_most - plan.n_batches):
        tick()  # as often as the rank that has most
    return sum_over_ranks(sums.total(), world.brisk())


def _moments(network: ScamacNetwork, source: CellSource, rows: IntArray, world: World, tick: Tick) -> _Moments:
    """Sum the scaled input of some cells and its products, over all ranks."""
    n_genes, device = len(network.gene_mean), network.gene_mean.device

    def add(part: _Moments, batch: Batch) -> None:
        x = network.cell_input(batch.values.to(device), levels_of(source, batch.rows))
        part.total.add_(x.sum(dim=0, dtype=torch.float64).cpu())
        part.cross.add_((x.T @ x).cpu())

    def begin() -> _Moments:
        return _Moments(torch.zeros(n_genes).double(), torch.zeros(n_genes, n_genes).double())

    found: _Moments = _sum_over_rows(source, rows, world, tick, begin, add)
    return found


def principal_components(
    network: ScamacNetwork,
    source: CellSource,
    n_components: int,
    rows: IntArray,
    world: World = ALONE,
    tick: Tick = no_tick,
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
    world
        This rank, and how many there are: each takes its part of the rows.
    tick
        As of `sweep.sum_over_cells`.

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
    total, cross = _moments(network, source, rows, world, tick)
    mean = total / len(rows)
    covariance = (cross / len(rows) - torch.outer(mean, mean)).numpy()
    width = min(n_components, len(rows) - 1, n_genes)
    axes = from_first(lambda: eigh(covariance, subset_by_index=[n_genes - width, n_genes - 1])[1], world)[:, ::-1]
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


def start_from_pca(
    network: ScamacNetwork,
    source: CellSource,
    n_cells: int,
    seed: int,
    world: World = ALONE,
    tick: Tick = no_tick,
) -> None:
    """Set the autoencoder and the two projections to the linear PCA autoencoder.

    Parameters
    ----------
    network
        Its weights are written. Units beyond the pairs keep their random input weights and start with no influence.
    source
        N cells.
    n_cells
        Size of the random sample that is taken where N is larger.
    seed
        Of the run.
    world
        This rank, and how many there are.
    tick
        As of `sweep.sum_over_cells`.

    Raises
    ------
    ConfigError
        If the latent or output activation is not linear, or the encoder is too narrow for the pairs.
    """
    model = network.config
    check_pca_start(model)
    rows = sample_rows(source.n_cells, n_cells, seed, "pca")
    if len(rows) < source.n_cells:
        logger.info("principal components of a random sample of %d of %d cells", len(rows), source.n_cells)
    mean, axes = principal_components(network, source, model.latent_width, rows, world, tick)
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


def start_at_profile(
    network: ScamacNetwork,
    source: CellSource,
    n_cells: int,
    seed: int,
    world: World = ALONE,
    tick: Tick = no_tick,
) -> None:
    """Let the output of a count likelihood start at the mean profile of the cells, whatever the cell.

    Parameters
    ----------
    network
        The weights of its output layer become 0, and the bias the logarithm of each gene's share of all molecules.
    source, n_cells, seed, world, tick
        As of `start_from_pca`, with the same cells.
    """
    rows, n_genes = sample_rows(source.n_cells, n_cells, seed, "pca"), len(network.gene_mean)
    profile: torch.Tensor = _sum_over_rows(
        source,
        rows,
        world,
        tick,
        lambda: torch.zeros(n_genes, dtype=torch.float64),
        lambda part, batch: part.add_(batch.values.double().expm1().sum(dim=0)),
    )
    profile = profile.clamp_min(max(float(profile.sum()), 1.0) * LEAST_SHARE)
    output = network.autoencoder.w4
    with torch.no_grad():
        output.weight.zero_()
        output.bias.copy_((profile / profile.sum()).log())


def _keep_kaiming(
    network: ScamacNetwork,
    source: CellSource,
    n_cells: int,
    seed: int,
    world: World = ALONE,
    tick: Tick = no_tick,
) -> None:
    """Leave the random weights that the layers were made with."""


def _start_from_identity(
    network: ScamacNetwork,
    source: CellSource,
    n_cells: int,
    seed: int,
    world: World = ALONE,
    tick: Tick = no_tick,
) -> None:
    """Set every matrix to the identity, cut or padded to its shape, and every bias to zero, as the published code does."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.eye_(layer.weight)
            torch.nn.init.zeros_(layer.bias)


WEIGHT_STARTS: dict[str, Callable[[ScamacNetwork, CellSource, int, int, World, Tick], None]] = {
    "pca": start_from_pca,
    "kaiming": _keep_kaiming,
    "identity": _start_from_identity,
}
"""Name to a function of network, source, cells of its sample, seed, world and tick that sets the weights."""
