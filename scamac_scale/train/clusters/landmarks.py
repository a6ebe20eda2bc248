"""Landmarks: small groups of cells that are alike, which stand for all cells in the consensus.

Their centers are found on a bounded sample of latents; then one pass gives every cell to the nearest center and sums: the input of each
group, the latents at unit length (Eq. 15), and Q^T K (Eq. 11). So landmarks have seen all cells, and one pass serves all that
the first round needs of them. A group is the mean of its cells, and counts as often as it has cells.

The large sums are whole numbers (the input in steps of 2^-22): the same in any order, on any number of processes.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.faults import reach
from scamac_scale.errors import StoreError
from scamac_scale.host.compiled import compiled
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.loader.source import levels_of
from scamac_scale.ops.similarity import unit_rows
from scamac_scale.ops.tree import Tree, check_tree
from scamac_scale.randomness import integer_seed, numpy_generator
from scamac_scale.ranks.collectives import agree, barrier, from_first, sum_over_ranks
from scamac_scale.sweep import SWEEP_CELLS, SweepSum, sweep
from scamac_scale.train.clusters.code_table import CodeTable
from scamac_scale.train.clusters.selection import embed_sample, faiss_kmeans, faiss_on_gpu, sample_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.config import ScamacConfig, StartConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.ranks.world import World
    from scamac_scale.sweep import InFlight
    from scamac_scale.train.run.watch import Watch

LANDMARKS_PER_CLUSTER = 10
PER_ROOT_CELL = 4.0
"""Landmarks for each square root of a cell: 4,000 at a million cells."""
MOST_LANDMARKS = 8_000
"""However many the cells are: the consensus compares all pairs."""
POINTS_PER_CENTER = 32
"""Cells of the sample for each center."""
LLOYD_ROUNDS = 10
STEPS_PER_UNIT = 2.0**22
"""Whole numbers that a unit of the input becomes."""
SUM_BYTES = 8
"""Of each of the (M, G) sums of the input."""
BLOCK_CELLS = 256
"""Cells whose distances to all centers are held at a time."""
BLOCK_LANDMARKS = 512
"""Landmarks whose sums travel between processes at a time."""


def landmark_count(n_cells: int, start: StartConfig, n_clusters: int | str) -> int:
    """Landmarks: as configured, more for many cells and for many clusters, never more than there are cells."""
    wanted = max(start.landmark_cells, min(MOST_LANDMARKS, math.ceil(PER_ROOT_CELL * math.sqrt(n_cells))))
    if isinstance(n_clusters, int):
        wanted = max(wanted, LANDMARKS_PER_CLUSTER * n_clusters)
    return min(wanted, n_cells)


@dataclass
class Landmarks:
    """Groups of cells that stand for all cells.

    Attributes
    ----------
    x
        (M, G) float32 mean scaled input of each, on the CPU.
    weights
        (M,) int64 cells of each, at least 1.
    labels
        (M,) cluster of each, once found.
    tree
        Of the consensus from which the labels are; None where they are of something else.
    counted
        (T, 4) of the numbers of clusters that were tried, see `counting.Counted.table`.
    """

    x: torch.Tensor
    weights: IntArray
    labels: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    tree: Tree | None = None
    counted: FloatArray = field(default_factory=lambda: np.zeros((0, 4)))

    def to_plain(self) -> list[torch.Tensor]:
        """Tensors, of which `from_plain` makes the same."""
        merges = [] if self.tree is None else [self.tree.merges, self.counted]
        return [self.x, *(torch.from_numpy(part) for part in (self.weights, self.labels, *merges))]

    @classmethod
    def from_plain(cls, plain: list[torch.Tensor], n_cells: int, n_genes: int) -> Landmarks:
        """Make what `to_plain` gave; ValueError where it is of no fit of so many cells and genes."""
        x, weights, labels, *of_tree = plain
        size = (len(x),)
        is_sound = x.dtype == torch.float32 and x.shape == (len(x), n_genes) and bool(x.isfinite().all())
        for numbers in (weights, labels):
            is_sound = is_sound and numbers.dtype == torch.int64 and (numbers.shape == size or numbers.numel() == 0)
        is_sound = is_sound and weights.shape == size and len(x) > 0 and int(weights.min()) > 0
        if not is_sound or not bool(((labels >= 0) & (labels < len(x))).all()) or int(weights.sum()) != n_cells:
            raise ValueError("the landmarks are none of this fit")
        if not of_tree:
            return cls(x, weights.numpy(), labels.numpy())
        merges, counted = (part.numpy() for part in of_tree)
        sizes = weights.numpy().astype(np.float64)
        check_tree(merges, sizes)
        if counted.dtype != np.float64 or counted.shape[1:] != (4,) or not np.isfinite(counted).all():
            raise ValueError("the numbers of clusters that were tried are no table")
        return cls(x, weights.numpy(), labels.numpy(), Tree(merges, sizes), counted)


class LatentSums(NamedTuple):
    """Sums over all cells of what the latents give, float64; see `sweep.SweepSum`.

    Attributes
    ----------
    product
        (S, D, D), of q^T k.
    zz
        (D, D), of z z^T at unit length.
    """

    product: torch.Tensor
    zz: torch.Tensor

    def __add__(self, other: LatentSums) -> LatentSums:  # type: ignore[override]  # sums, not concatenated tuples
        return LatentSums(self.product + other.product, self.zz + other.zz)


class Groups(NamedTuple):
    """What the pass over all cells found.

    Attributes
    ----------
    landmarks
        Without labels; centers without cells make none, see `repeats`.
    numbers
        (M,) number of each landmark in `table`, ascending; that of several where they are repeated.
    table
        Landmark of every cell.
    unit
        (n_codes of `table`, D) float64 sum of the latents of each landmark's cells, each at unit length.
    zz
        (D, D) float64 sum of z z^T over all cells, at unit length.
    """

    landmarks: Landmarks
    numbers: IntArray
    table: CodeTable
    unit: torch.Tensor
    zz: torch.Tensor


def _kmeans_centers(points: FloatArray, n_centers: int, seed: int) -> FloatArray:
    """k-means by scikit-learn, on one thread, so that any number of cores finds the same; by faiss where it has a GPU."""
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    if faiss_on_gpu():
        centers: FloatArray = faiss_kmeans(points, n_centers, seed).centroids
        return centers
    first = points[numpy_generator(seed, "first").permutation(len(points))[: 8 * n_centers]]
    start, _ = kmeans_plusplus(first, n_centers, random_state=seed, n_local_trials=1)
    with warnings.catch_warnings(), threadpool_limits(1):
        # where fewer cells differ, centers repeat, and have no cells
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(n_centers, init=start, n_init=1, max_iter=LLOYD_ROUNDS).fit(points)
    found: FloatArray = kmeans.cluster_centers_
    return found


def _random_centers(points: FloatArray, n_centers: int, seed: int) -> FloatArray:
    return points[np.sort(numpy_generator(seed, "centers").permutation(len(points))[:n_centers])]


LANDMARK_CENTERS: dict[str, Callable[[FloatArray, int, int], FloatArray]] = {
    "kmeans": _kmeans_centers,
    "random": _random_centers,
}
"""Name to a function of (n, D) latents, M and seed that gives (M, D) centers."""


def find_centers(source: CellSource, network: ScamacNetwork, config: ScamacConfig) -> torch.Tensor | None:
    """Centers of the landmarks, (M, D) float32 on the CPU; None where every cell is one of its own."""
    n_landmarks = landmark_count(source.n_cells, config.start, config.n_clusters)
    if n_landmarks == source.n_cells:
        return None
    rows = sample_rows(source.n_cells, POINTS_PER_CENTER * n_landmarks, config.seed, "landmark points")
    points = embed_sample(source, rows, network).numpy()
    choose = LANDMARK_CENTERS[config.start.landmark_choice]
    with np.errstate(all="ignore"):
        centers = choose(points, n_landmarks, integer_seed(config.seed, "landmarks"))
    return torch.from_numpy(np.ascontiguousarray(centers, dtype=np.float32))


class _Pass:
    """One rank's part of the pass: every cell to the nearest center, and the sums.

    Parameters
    ----------
    network, source
        Of the fit.
    centers
        (M, D); None where every cell is a landmark.
    table
        Gets the landmark of every cell.
    plan
        Which cells are of this rank.
    """

    def __init__(
        self,
        network: ScamacNetwork,
        source: CellSource,
        centers: torch.Tensor | None,
        table: CodeTable,
        plan: SweepPlan,
    ) -> None:
        self.network, self.source, self.table, self.plan = network, source, table, plan
        device = network.gene_mean.device
        n_landmarks = source.n_cells if centers is None else len(centers)
        width, n_genes = network.config.latent_width, len(network.gene_mean)
        self.centers = None if centers is None else centers.to(device)
        self.weights = torch.zeros(n_landmarks, dtype=torch.int64, device=device)
        self.x = torch.zeros(n_landmarks, n_genes, dtype=torch.int64, device=device)
        self.unit = torch.zeros(n_landmarks, width, dtype=torch.int64, device=device)
        zero = LatentSums(
            torch.zeros_like(network.mean_product).double(), torch.zeros(width, width).double().to(device)
        )
        self.latent = SweepSum(zero, plan)

    @torch.no_grad()
    def __call__(self, done: int, batch: Batch) -> int:
        """Take a batch, after `done` batches."""
        network = self.network
        x = network.cell_input(batch.values.to(self.x.device), levels_of(self.source, batch.rows))
        z, product = network.embed_and_sum(x)
        z_hat = unit_rows(z)
        codes = self._nearest(z, batch.rows)
        self.latent.add(LatentSums(product, (z_hat.T @ z_hat).double()), done + 1)
        self.weights += torch.bincount(codes, minlength=len(self.weights))
        add_whole(codes, x, self.x)
        add_whole(codes, z_hat, self.unit)
        self.table.write(batch.rows, codes.cpu().numpy())
        reach("train.landmarks")
        return done + 1

    def _nearest(self, z: torch.Tensor, rows: IntArray) -> torch.Tensor:
        if self.centers is None:
            return torch.from_numpy(rows).to(z.device)
        z, square, twice = z.float(), self.centers.square().sum(dim=1), 2.0 * self.centers.T
        step = BLOCK_CELLS if z.device.type == "cpu" else len(z)
        blocks = [torch.addmm(square, part, twice, alpha=-1.0).argmin(dim=1) for part in torch.split(z, max(step, 1))]
        return torch.cat(blocks)

    def to_plain(self, turns: int) -> InFlight:
        """Numbers and tensors that `restore` understands; of cells whose landmarks have been written."""
        sums = {"weights": self.weights.cpu(), "x": self.x.cpu(), "unit": self.unit.cpu()}
        return {**sums, "latent": self.latent.to_plain(turns)}

    def restore(self, plain: InFlight) -> int:
        """Take up where another process stopped; tells after how many turns."""
        for name in ("weights", "x", "unit"):
            held: torch.Tensor = getattr(self, name)
            if plain[name].dtype != held.dtype or plain[name].shape != held.shape:
                raise ValueError(f"{name} is of another shape")
            held.copy_(plain[name])
        return self.latent.restore(plain["latent"])

    def summed(self, world: World) -> tuple[torch.Tensor, torch.Tensor, LatentSums]:
        """Add over all ranks: weights, `Groups.unit` and the sums of the latents; `x` and `weights` become those of all ranks."""
        for sums in (self.weights, self.x, self.unit):
            for start in range(0, len(sums), BLOCK_LANDMARKS):
                part = sums[start : start + BLOCK_LANDMARKS]
                part.copy_(sum_over_ranks(part, world))
        return self.weights.cpu(), self.unit.cpu().double() / STEPS_PER_UNIT, sum_over_ranks(self.latent.total(), world)

    def means(self, numbers: torch.Tensor) -> torch.Tensor:
        """(M, G) float32 mean input of some landmarks, on the CPU; after `summed`."""
        parts = []
        for some in torch.split(numbers, BLOCK_LANDMARKS):  # no (M, G) float64 beside
            some = some.to(self.x.device)
            parts.append((self.x[some].double() / STEPS_PER_UNIT / self.weights[some, None]).float().cpu())
        return torch.cat(parts)


def add_whole(codes: torch.Tensor, values: torch.Tensor, sums: torch.Tensor) -> None:
    """Add (n, P) float32 values to the rows of (M, P) int64 sums that `codes` (n,) name, in steps of 1 / `STEPS_PER_UNIT`."""
    if sums.device.type == "cpu":
        _add_rows(codes.numpy(), values.contiguous().numpy(), STEPS_PER_UNIT, sums.numpy())
    else:
        sums.index_add_(0, codes, (values.double() * STEPS_PER_UNIT).round().long())


@compiled
def _add_rows(codes: Any, values: Any, factor: float, sums: Any) -> None:  # Any: numba's arrays are not typed
    for cell in range(codes.shape[0]):
        row = codes[cell]
        for column in range(values.shape[1]):
            sums[row, column] += np.int64(np.rint(np.float64(values[cell, column]) * factor))


def find_landmarks(
    source: CellSource,
    network: ScamacNetwork,
    config: ScamacConfig,
    world: World,
    watch: Watch,
    path: Path | None = None,
) -> Groups:
    """Find the landmarks, and renew the bank and Eq. (11)'s mean product on the way.

    Parameters
    ----------
    source, network, config
        Of the fit.
    world
        This rank, and how many there are: rank 0 finds the centers, all give their cells to them.
    watch
        Asked now and then.
    path
        File for the landmark of every cell; None takes one without a name, where it is needed.

    Returns
    -------
    Groups
        The same on all ranks.
    """
    network.refresh_bank()
    centers = from_first(lambda: find_centers(source, network, config), world)
    n_landmarks = source.n_cells if centers is None else len(centers)
    table = CodeTable(source.n_cells, n_landmarks, path)
    try:
        taken = _Pass(network, source, centers, table, SweepPlan(source.n_cells, SWEEP_CELLS, world))
        _take_all(taken, world, watch)
        table.flush()
        barrier(world)  # all have written
        from_first(table.cut, world)
        table.finish()
        table.known_digest = from_first(table.digest, world) if path else ""
        weights, unit, sums = taken.summed(world.brisk())
        network.mean_product.copy_(sums.product / source.n_cells)
        of, shares = repeats(weights.numpy(), n_landmarks)
        numbers = torch.from_numpy(of)
        landmarks = Landmarks(taken.means(numbers), shares)
    except BaseException:
        table.close()
        raise
    return Groups(landmarks, of, table, unit, sums.zz)


def repeats(weights: IntArray, wanted: int) -> tuple[IntArray, IntArray]:
    """Leave out centers without cells; where most have none, repeat the others as often as is wanted.

    Parameters
    ----------
    weights
        Cells of each center.
    wanted
        Landmarks that there shall be. Where few cells differ, each of the others stands for many, and would have no neighbours that are
        alike.

    Returns
    -------
    tuple of IntArray
        (M,) centers, ascending, and (M,) cells of each, which for those of one center sum to its `weights`.
    """
    numbers = np.flatnonzero(weights)
    times = np.ones(len(numbers), dtype=np.int64)
    if 2 * len(numbers) < wanted:
        times = np.minimum(weights[numbers], -(-wanted // len(numbers)))
    place = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    of, times = np.repeat(numbers, times), np.repeat(times, times)
    return of, weights[of] // times + (place < weights[of] % times)


def _take_all(taken: _Pass, world: World, watch: Watch) -> None:
    """Take all cells of this rank, or those that are left of a pass that a checkpoint was saved in."""
    table, centers = taken.table, taken.centers
    digest = sha256_of(np.empty(0, dtype=np.float32) if centers is None else centers.cpu().numpy())
    first, stop = taken.plan.bounds

    def marks(turns: int, done: int) -> InFlight:
        table.flush()
        last = min(first + done * SWEEP_CELLS, stop)
        return {"turns": turns, "done": done, "centers": digest, "codes": table.digest(first, last)}

    def is_as_left(in_flight: InFlight) -> bool:
        """Tell whether centers and codes on disk are those of before: other hardware may find others, and a disk may lose some."""
        if "done" not in in_flight or not table.is_whole():
            return False
        try:
            found = marks(in_flight["turns"], in_flight["done"])
        except StoreError:  # codes that no landmark has
            return False
        return found == {name: in_flight[name] for name in found}

    with watch.sweep("landmarks") as (in_flight, tick):
        is_new = agree([in_flight is None or not is_as_left(in_flight)], world)[0]  # ranks take turns together
        turns, begin = 0, 0
        if in_flight is not None and not is_new:
            turns, begin = taken.restore(in_flight["sums"]), in_flight["done"]

        def look(turn: int, done: int) -> None:
            tick(lambda: {**marks(turn, done), "sums": taken.to_plain(turn)})

        sweep(taken.source, taken, begin, label="landmarks", plan=taken.plan, turns=turns, tick=look)
