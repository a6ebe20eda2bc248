"""Labelled synthetic atlases of any size: negative-binomial counts with dropout, written block by block.

Every random choice is a function of the seed and a fixed run of 1,024 cells, so an atlas begins with the same cells
however long it is, and memory does not grow with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.durable.atomic import atomic_folder, writing
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import ConfigError
from scamac_scale.host.compiled import compiled
from scamac_scale.host.memory import explained
from scamac_scale.progress import track
from scamac_scale.randomness import numpy_generator

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DRAWN_CELLS = 1024
"""Cells that share one random stream."""
CHUNK_CELLS = 4096
"""Cells in a chunk on disk, on average; memory grows with it."""
SLAB_VALUES = 2**22
"""Uniform numbers held at a time."""

ABUNDANCE_SD = 1.2
"""Standard deviation of the logarithm of a gene's abundance."""
MARKER_SHARE = 0.03
"""Share of the genes that mark a type."""
MARKER_LOG_FOLD = 1.5
"""Mean logarithm of how many times more a marker is expressed in its type (4.5 times), standard deviation 0.5."""
SIZE_POWER = 0.7
"""The k-th type is k**-0.7 times as frequent as the first."""
COUNTS_PER_GENE = 0.75
"""Median counts of a cell before dropout, for each gene of the atlas, unless asked for otherwise."""
DEPTH_SD = 0.4
"""Standard deviation of the logarithm of a cell's depth."""
SHAPE = 2
"""Shape r of the negative binomial: variance = mean + mean**2 / r; whole, so that its power is a product."""
DROPOUT = 0.3
"""Chance that a count is lost as the mean goes to zero; it falls as 1 / (1 + mean)."""


@dataclass(frozen=True, eq=False)
class CellModel:
    """What every cell of an atlas is drawn from.

    Attributes
    ----------
    profile
        (K, G) share of each gene in the counts of each type; rows sum to 1.
    marked
        (G,) type that a gene marks, -1 for none.
    weight
        (K,) share of each type in the cells.
    counts_per_gene
        Median counts of a cell before dropout, for each gene.
    """

    profile: NDArray[np.float64]
    marked: NDArray[np.int64]
    weight: NDArray[np.float64]
    counts_per_gene: float = COUNTS_PER_GENE

    @classmethod
    def draw(cls, n_genes: int, n_types: int, seed: int, counts_per_gene: float = COUNTS_PER_GENE) -> CellModel:
        """Draw the abundances, the markers of each type, and nothing of a cell."""
        rng = numpy_generator(seed, "simulated types")
        abundance = rng.lognormal(0.0, ABUNDANCE_SD, n_genes)
        n_markers = max(1, min(round(MARKER_SHARE * n_genes), n_genes // n_types))
        marked = np.full(n_genes, -1, dtype=np.int64)
        marked[rng.permutation(n_genes)[: n_types * n_markers]] = np.repeat(np.arange(n_types), n_markers)
        profile = np.tile(abundance, (n_types, 1))
        fold = rng.lognormal(MARKER_LOG_FOLD, 0.5, n_genes)
        genes = np.flatnonzero(marked >= 0)
        profile[marked[genes], genes] *= fold[genes]
        weight = np.arange(1, n_types + 1, dtype=np.float64) ** -SIZE_POWER
        return cls(profile / profile.sum(axis=1, keepdims=True), marked, weight / weight.sum(), counts_per_gene)


@dataclass(frozen=True, eq=False)
class DrawnCells:
    """A run of simulated cells: the three arrays of CSR, and the types."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float32]
    label: NDArray[np.int64]


def draw_cells(model: CellModel, n_cells: int, seed: int, block: int) -> DrawnCells:
    """Draw a run of cells.

    Parameters
    ----------
    model
        Types and genes.
    n_cells
        At most `DRAWN_CELLS`; fewer are the first ones of the run.
    seed, block
        Key of the random stream: the run's number in the atlas.

    Returns
    -------
    DrawnCells
        Counts and types.
    """
    rng = numpy_generator(seed, "simulated cells", block)
    label = rng.choice(len(model.weight), size=DRAWN_CELLS, p=model.weight)[:n_cells]
    n_genes = model.profile.shape[1]
    depth = rng.lognormal(np.log(model.counts_per_gene * n_genes), DEPTH_SD, DRAWN_CELLS)[:n_cells]
    slab_cells = max(1, SLAB_VALUES // n_genes)
    lengths: list[NDArray[np.int64]] = []
    indices: list[NDArray[np.int32]] = []
    data: list[NDArray[np.float32]] = []
    for start in range(0, n_cells, slab_cells):
        rows = slice(start, min(start + slab_cells, n_cells))
        uniform = rng.random((rows.stop - rows.start, n_genes))
        drawn = _invert(uniform, model.profile, label[rows], depth[rows], SHAPE, DROPOUT)
        lengths.append(drawn[0])
        indices.append(drawn[1])
        data.append(drawn[2])
    indptr = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(lengths))])
    return DrawnCells(indptr, np.concatenate(indices), np.concatenate(data), label)


@explained("simulate")
def simulate(
    out: str | Path,
    n_cells: int,
    *,
    n_genes: int = 2000,
    n_types: int = 8,
    counts_per_gene: float = COUNTS_PER_GENE,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a labelled synthetic atlas of raw counts.

    Parameters
    ----------
    out
        AnnData zarr folder to write: counts as CSR in ``X``, the true type in ``obs["cell_type"]``, the type that a gene
        marks in ``var["marker_of"]``.
    n_cells
        Cells N.
    n_genes
        Genes G; each type has markers of its own.
    n_types
        Cell types; the first is the largest.
    counts_per_gene
        Median counts of a cell before dropout, for each gene: how dense the atlas is.
    seed
        The same seed gives the same cells, whatever `n_cells`.
    overwrite
        Whether an existing zarr folder is replaced.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ConfigError
        If a size is not positive, the seed is negative, or there are more types than genes.
    OutputError
        If it is already there, or cannot be written; nothing is left behind.

    Notes
    -----
    Counts are negative binomial around (depth of the cell) x (profile of its type), depth is log-normal, and small counts
    are lost more often than large ones. Drawn by inversion, one uniform number per cell and gene.
    """
    for name, value in (("n_cells", n_cells), ("n_genes", n_genes), ("n_types", n_types)):
        if value < 1:
            raise ConfigError(f"simulate: {name}={value}; it must be at least 1.")
    if not counts_per_gene > 0:
        raise ConfigError(f"simulate: counts_per_gene={counts_per_gene}; it must be positive.")
    if seed < 0:
        raise ConfigError(f"simulate: seed={seed}; it must not be negative.")
    if n_types > n_genes:
        raise ConfigError(f"simulate: n_types={n_types} for n_genes={n_genes}; each type needs a gene of its own.")
    model = CellModel.draw(n_genes, n_types, seed, counts_per_gene)
    with atomic_folder(out, overwrite=overwrite) as folder, writing(at_home(out)):
        # one type for both, or scikit-learn refuses what anndata reads
        index_dtype = np.dtype(np.int32 if n_cells * n_genes < 2**31 else np.int64)
        writer = _AtlasWriter(folder, model, seed, index_dtype)
        with track("simulating", n_cells, "cells") as progress:
            for block, start in enumerate(range(0, n_cells, DRAWN_CELLS)):
                cells = draw_cells(model, min(DRAWN_CELLS, n_cells - start), seed, block)
                writer.append(cells)
                progress.advance(len(cells.label))
        writer.finish()
    return at_home(out)


class _AtlasWriter:
    """An AnnData zarr that grows by runs of cells; whole chunks go to disk."""

    def __init__(self, folder: Path, model: CellModel, seed: int, index_dtype: np.dtype[Any]) -> None:
        import zarr

        self._root = zarr.open_group(str(folder), mode="w", zarr_format=3)
        self._model = model
        self._seed = seed
        self._index_dtype = index_dtype
        self._n_cells = 0
        self._n_values = 0
        self._arrays: dict[str, Any] = {}  # zarr arrays
        self._pending: dict[str, list[NDArray[Any]]] = {}

    def append(self, cells: DrawnCells) -> None:
        """Take a run of cells."""
        if not self._arrays:
            import zarr

            with zarr.config.set({"array.write_empty_chunks": True}):  # then a chunk that is missing was lost
                self._create(cells)
        first = self._n_cells
        self._n_cells += len(cells.label)
        names = np.array([_cell_name(i) for i in range(first, self._n_cells)], dtype=object)
        pieces: dict[str, NDArray[Any]] = {
            "X/indptr": cells.indptr[1:] + self._n_values,
            "X/indices": cells.indices,
            "X/data": cells.data,
            "obs/_index": names,
            "obs/cell_type/codes": cells.label.astype(np.int8 if len(self._model.weight) < 128 else np.int32),
        }
        self._n_values += len(cells.data)
        for name, piece in pieces.items():
            self._pending.setdefault(name, []).append(piece)
            if sum(map(len, self._pending[name])) >= self._arrays[name].chunks[0]:
                self._flush(name)

    def finish(self) -> None:
        """Write what is left, and the shape."""
        for name in self._arrays:
            self._flush(name, is_last=True)
        self._root["X"].attrs["shape"] = [self._n_cells, self._model.profile.shape[1]]

    def _create(self, first: DrawnCells) -> None:
        import pandas as pd
        from anndata.io import write_elem

        types = [f"type{k + 1}" for k in range(len(self._model.weight))]
        marker_of = np.array([*types, "none"], dtype=object)[self._model.marked]
        var = pd.DataFrame(
            {"marker_of": pd.Categorical(marker_of)},
            index=[f"gene{g + 1:05d}" for g in range(self._model.profile.shape[1])],
        )
        obs = pd.DataFrame({"cell_type": pd.Categorical([], categories=types)}, index=pd.Index([], dtype=object))
        self._root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        plain = {"shards": None}
        write_elem(self._root, "var", var, dataset_kwargs=plain)
        write_elem(self._root, "uns", {"simulation": {"seed": self._seed}}, dataset_kwargs=plain)
        for name in ("obsm", "obsp", "varm", "varp", "layers"):
            write_elem(self._root, name, {}, dataset_kwargs=plain)
        write_elem(self._root, "obs", obs, dataset_kwargs=plain)
        self._root.create_group("X").attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        values = max(1024, len(first.data) * CHUNK_CELLS // len(first.label))
        cells = max(DRAWN_CELLS, 16 * CHUNK_CELLS)
        self._grow_from("X/indptr", self._index_dtype, cells)
        self._grow_from("X/indices", self._index_dtype, values)
        self._grow_from("X/data", np.dtype(np.float32), values)
        self._grow_from("obs/_index", None, cells)
        self._grow_from("obs/cell_type/codes", None, cells)
        self._pending["X/indptr"] = [np.zeros(1, dtype=np.int64)]

    def _grow_from(self, name: str, dtype: np.dtype[Any] | None, chunk: int) -> None:
        """Make an empty array that grows; without a type, in place of the one that anndata wrote for no cells."""
        attributes: dict[str, Any] = {}
        if dtype is None:
            written: Any = self._root[name]  # a zarr array
            dtype, attributes = written.dtype, dict(written.attrs)
        self._arrays[name] = self._root.create_array(
            name, shape=(0,), dtype=dtype, chunks=(chunk,), attributes=attributes, overwrite=True
        )

    def _flush(self, name: str, *, is_last: bool = False) -> None:
        array, joined = self._arrays[name], np.concatenate(self._pending[name])
        n = len(joined) if is_last else len(joined) // array.chunks[0] * array.chunks[0]
        start = array.shape[0]
        array.resize((start + n,))
        array[start:] = joined[:n]
        self._pending[name] = [joined[n:]]


def _cell_name(number: int) -> str:
    return f"cell{number + 1:08d}"


@compiled
def _invert(
    uniform: Any, profile: Any, label: Any, depth: Any, shape: int, dropout: float
) -> Any:  # pragma: no cover  compiled
    """Turn one uniform number per cell and gene into a count: the inverse of the distribution function."""
    lengths = np.zeros(len(label), dtype=np.int64)
    indices = np.empty(uniform.size, dtype=np.int32)
    data = np.empty(uniform.size, dtype=np.float32)
    n = 0
    for row in range(len(label)):
        for gene in range(uniform.shape[1]):
            mean = depth[row] * profile[label[row], gene]
            u = uniform[row, gene]
            if u < 1.0 - mean:  # less than the chance of no count, without computing that
                continue
            chance = (1.0 / (1.0 + mean / shape)) ** shape  # of no count
            lost = (1.0 - chance) * dropout / (1.0 + mean)
            if u < chance + lost:
                continue
            u = chance + (u - chance - lost) * (1.0 - chance) / (1.0 - chance - lost)
            odds = mean / (mean + shape)
            below, count = chance, 0
            while u >= below and (chance > 1e-18 or count < mean):  # u may lie above all that float64 can sum up
                chance *= (shape + count) / (count + 1.0) * odds
                below += chance
                count += 1
            indices[n] = gene
            data[n] = count
            lengths[row] += 1
            n += 1
    return lengths, indices[:n].copy(), data[:n].copy()
