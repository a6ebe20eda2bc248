"""Atlases of any size that are resampled from real labelled cells: no new biology, and no two cells alike.

A cell is drawn so: a group (label, and technical batch if one is named) by its share of the cells; three cells of this group; a
mixture of their profiles, with uniform weights that sum to 1; a depth, that of another cell of the group times a log-normal factor;
Poisson counts. So an atlas has the groups, the genes and the noise of counts of the source, and the variety within a group of mixtures of
its cells: less than new cells would have. It measures time, memory, and whether what is in the source is found again; it is no
evidence for how good clusters are on other cells.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.durable.atomic import atomic_folder, writing
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.host.compiled import compiled
from scamac_scale.host.memory import explained
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.raw import read_blocks
from scamac_scale.progress import track
from scamac_scale.randomness import numpy_generator
from scamac_scale.simulation.atlas import AtlasFrame, AtlasWriter, CellRun

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

DRAWN_CELLS = 1024
"""Cells that share one random stream."""
SOURCE_CELLS = 20_000
"""Cells of the source that are held at most: a sample, the same share of every group but for small ones; at least one of each."""
N_MIXED = 3
"""Cells whose profiles a new one mixes."""
MIN_GROUP_CELLS = 200
"""Cells of a group that are held, where it has so many, and `SOURCE_CELLS` has room for so many of each."""
BLOCK_CELLS = 4096
"""Cells of the source that are read at a time."""
DEPTH_SD = 0.2
"""Standard deviation of the logarithm of what the depth of a cell is multiplied by; the mean of the factor is 1."""
WALKED_MEAN = 12.0
"""Of a Poisson number, up to which it is counted event by event."""
NOTE = (
    "Resampled, not measured: each cell is Poisson counts around a mixture of three cells of one label of the source, with the depth "
    "of another. Good for time and memory; no evidence for how well clusters fit new cells."
)


@dataclass(frozen=True, eq=False)
class SourceCells:
    """Real cells that new ones are drawn from.

    Attributes
    ----------
    indptr, genes, counts
        (S, G) CSR, genes rise in each cell.
    totals
        (S,) counts of each cell.
    members
        Rows of each group, at least one.
    shares
        (groups,) share in the atlas.
    codes
        (groups, columns) code of each group in each column.
    """

    indptr: NDArray[np.int64]
    genes: NDArray[np.int32]
    counts: NDArray[np.float32]
    totals: NDArray[np.float64]
    members: tuple[NDArray[np.int64], ...]
    shares: NDArray[np.float64]
    codes: NDArray[np.int64]


@explained("simulate")
def resample(
    source: str | os.PathLike[str],
    out: str | Path,
    *,
    n_cells: int,
    label: str = "cell_type",
    batch_key: str | None = None,
    n_files: int = 1,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write an atlas of cells that are resampled from real labelled ones.

    Parameters
    ----------
    source
        A file of counts, as `ingest` takes it, with labels in its obs.
    out
        AnnData zarr folder to write, or with several files a folder of them: ``part-001.zarr`` and so on, whose cells one after
        the other are those of the one file.
    n_cells
        Cells N of all files together.
    label
        Column of obs with the types: new cells are mixtures of cells of one type. It is a column of the atlas, too.
    batch_key
        Column of obs with technical batches, if mixtures shall stay within one; a column of the atlas, too.
    n_files
        How many files; all but the last have as many cells, whole runs of 1,024 where there are enough.
    seed
        The same seed gives the same cells, whatever `n_cells` and `n_files`.
    overwrite
        Whether what is there is replaced.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ConfigError
        If a number is not positive, the seed is negative, or there are more files than cells.
    InputError
        If the source cannot be read, has no such column, no labelled cells, more groups than `SOURCE_CELLS`, or does not hold counts.
    OutputError
        If `out` is there already, or cannot be written; nothing is left behind.

    Notes
    -----
    Memory is at most `SOURCE_CELLS` cells of the source and a chunk. Cells without a label or counts are left out.
    """
    for name, value in (("n_cells", n_cells), ("n_files", n_files)):
        if value < 1:
            raise ConfigError(f"simulate: {name}={value}; it must be at least 1.")
    if n_files > n_cells:
        raise ConfigError(f"simulate: n_files={n_files} for n_cells={n_cells}; each file needs a cell.")
    if seed < 0:
        raise ConfigError(f"simulate: seed={seed}; it must not be negative.")
    columns = (label,) if batch_key is None else (label, batch_key)
    with open_raw(source) as raw:
        codes, categories = _coded(raw, columns)
        cells = _read_source(raw, codes, seed)
        about = {"from": raw.name, "seed": seed, "note": NOTE}
        var = _genes(raw)
    logger.info("%s: %s", at_home(out), NOTE)
    bounds = _bounds(n_cells, n_files)
    with (
        atomic_folder(out, overwrite=overwrite) as folder,
        writing(at_home(out)),
        track("simulating", n_cells, "cells") as progress,
    ):
        for number, (start, stop) in enumerate(bounds):
            part = folder if n_files == 1 else folder / f"part-{number + 1:03d}.zarr"
            writer = AtlasWriter(
                part, AtlasFrame(var, dict(zip(columns, categories, strict=True)), about, stop - start, start)
            )
            for run in _runs(cells, columns, (start, stop), seed):
                writer.append(run)
                progress.advance(run.n_cells)
            writer.finish()
    return at_home(out)


def _bounds(n_cells: int, n_files: int) -> list[tuple[int, int]]:
    """First cell of each file, and the one after its last."""
    size = n_cells // n_files
    if size >= DRAWN_CELLS:
        size -= size % DRAWN_CELLS
    starts = [number * size for number in range(n_files)]
    return list(zip(starts, [*starts[1:], n_cells], strict=True))


def _coded(raw: RawMatrix, columns: Sequence[str]) -> tuple[NDArray[np.int64], list[list[str]]]:
    """(N, columns) code of each cell, -1 where a column has no value; and the names of the codes."""
    import pandas as pd

    codes, categories = [], []
    for column in columns:
        if column not in raw.obs:
            raise InputError(
                f"{raw.name}: obs has no column {column!r} (--label); known are {', '.join(map(str, raw.obs.columns)) or 'none'}."
            )
        values = pd.Categorical(raw.obs[column]).remove_unused_categories()
        codes.append(values.codes.astype(np.int64))
        categories.append([str(name) for name in values.categories])
    return np.stack(codes, axis=1), categories


def _genes(raw: RawMatrix) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(index=pd.Index(list(raw.gene_names), dtype=object))


def _read_source(raw: RawMatrix, codes: NDArray[np.int64], seed: int) -> SourceCells:
    """Read a sample of the cells, group by group, in bounded memory."""
    is_labelled = (codes >= 0).all(axis=1)
    if not is_labelled.any():
        raise InputError(f"{raw.name}: no cell has a label; name another column with --label.")
    groups, of_cell = np.unique(codes[is_labelled], axis=0, return_inverse=True)
    if len(groups) > SOURCE_CELLS:
        raise InputError(
            f"{raw.name}: the label and the batch key make {len(groups):,} groups of cells, and {SOURCE_CELLS:,} cells of the source are "
            "held; name columns with fewer values (--label, --batch-key)."
        )
    group = np.full(raw.n_cells, -1, dtype=np.int64)
    group[is_labelled] = of_cell.ravel()
    is_taken = _sample(group, seed)
    genes, counts, sums = _Growing(np.int32), _Growing(np.float32), _Growing(np.float64)
    lengths, kept = _Growing(np.int64), _Growing(np.int64)
    for start, block in read_blocks(raw, BLOCK_CELLS, "reading the source"):
        if not (
            np.isfinite(block.data).all() and (block.data >= 0).all() and (block.data == np.rint(block.data)).all()
        ):
            raise InputError(f"{raw.name}: {raw.matrix} does not hold counts, from which alone cells can be resampled.")
        rows = np.flatnonzero(is_taken[start : start + block.shape[0]])
        totals = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        rows = rows[totals[rows] > 0]
        part = block[rows]
        part.eliminate_zeros()
        for held, more in zip(
            (genes, counts, sums, lengths, kept),
            (part.indices, part.data, totals[rows], np.diff(part.indptr), start + rows),
            strict=True,
        ):
            held.append(more)
    members = [np.flatnonzero(group[kept.values()] == number) for number in range(len(groups))]
    sizes = np.bincount(group[group >= 0], minlength=len(groups)).astype(np.float64)
    found = [number for number, member in enumerate(members) if member.size]
    if not found:
        raise InputError(f"{raw.name}: no labelled cell has counts.")
    indptr = np.concatenate([[0], np.cumsum(lengths.values())])
    shares = sizes[found] / sizes[found].sum()
    return SourceCells(
        indptr,
        genes.values(),
        counts.values(),
        sums.values(),
        tuple(members[number] for number in found),
        shares,
        groups[found],
    )


class _Growing:
    """An array that grows in place, for there may be no room for it twice."""

    def __init__(self, dtype: type) -> None:
        self._held: NDArray[Any] = np.empty(0, dtype)
        self._n = 0

    def append(self, more: NDArray[Any]) -> None:
        if self._n + len(more) > len(self._held):
            self._held.resize(max(self._n + len(more), len(self._held) * 3 // 2), refcheck=False)
        self._held[self._n : self._n + len(more)] = more
        self._n += len(more)

    def values(self) -> NDArray[Any]:
        return self._held[: self._n]


def _sample(group: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Mark the cells that are held, at most `SOURCE_CELLS`: of each group some, and of what is left of it the same share."""
    rng = numpy_generator(seed, "resampled source")
    is_taken = group >= 0
    sizes = np.bincount(group[is_taken])
    if sizes.sum() <= SOURCE_CELLS:
        return is_taken
    least = np.minimum(sizes, min(MIN_GROUP_CELLS, SOURCE_CELLS // len(sizes)))
    wanted = least + (sizes - least) * (SOURCE_CELLS - least.sum()) // (sizes - least).sum()
    order = np.argsort(group, kind="stable")[-int(sizes.sum()) :]
    for rows, n in zip(np.split(order, np.cumsum(sizes)[:-1]), wanted.tolist(), strict=True):
        is_taken[rng.permutation(rows)[n:]] = False
    return is_taken


def _runs(cells: SourceCells, columns: Sequence[str], bounds: tuple[int, int], seed: int) -> Iterator[CellRun]:
    """Draw the cells of a file, which may begin and end within a run of the stream."""
    start, stop = bounds
    for block in range(start // DRAWN_CELLS, -(-stop // DRAWN_CELLS)):
        first = block * DRAWN_CELLS
        yield _draw(cells, columns, slice(max(start - first, 0), min(stop - first, DRAWN_CELLS)), seed, block)


def _draw(cells: SourceCells, columns: Sequence[str], wanted: slice, seed: int, block: int) -> CellRun:
    """Draw a run of cells, of which some are wanted."""
    rng = numpy_generator(seed, "resampled cells", block)
    group = rng.choice(len(cells.shares), size=DRAWN_CELLS, p=cells.shares)
    sizes = np.array([member.size for member in cells.members])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    picked = (rng.random((N_MIXED + 1, DRAWN_CELLS)) * sizes[group]).astype(np.int64)
    rows = np.concatenate(cells.members)[starts[group] + picked]
    weights = rng.exponential(size=(N_MIXED, DRAWN_CELLS))
    depth = cells.totals[rows[-1]] * rng.lognormal(-(DEPTH_SD**2) / 2, DEPTH_SD, DRAWN_CELLS)
    factors = weights / weights.sum(axis=0) * depth / cells.totals[rows[:-1]]
    mixed, factors = rows[:-1, : wanted.stop].T.copy(), factors[:, : wanted.stop].T.copy()
    room = int((cells.indptr[mixed + 1] - cells.indptr[mixed]).sum())
    genes, counts = np.empty(room, np.int32), np.empty(room, np.float32)  # of which only what is filled takes memory
    indptr = np.zeros(len(mixed) + 1, np.int64)
    _pour(mixed, factors, (cells.indptr, cells.genes, cells.counts), rng, (indptr, genes, counts))
    indptr = indptr[wanted.start :]
    codes = cells.codes[group[wanted]]
    return CellRun(
        indptr - indptr[0],
        genes[indptr[0] : indptr[-1]].copy(),
        counts[indptr[0] : indptr[-1]].copy(),
        {column: codes[:, place] for place, column in enumerate(columns)},
    )


@compiled
def _pour(mixed: Any, factors: Any, source: Any, rng: Any, drawn: Any) -> None:  # pragma: no cover  compiled
    """Draw Poisson counts around the sums of scaled cells (n, 3), whose genes are merged as they rise.

    Small means are stretches of one Poisson process, each as long as the mean: its events are as many as drawn for each by itself,
    and it costs a draw for an event, not for a gene.
    """
    pointer, of_value, values = source
    indptr, genes, counts = drawn
    beyond = np.int64(2**62)
    at, stop = np.empty(mixed.shape[1], np.int64), np.empty(mixed.shape[1], np.int64)
    n = 0
    for cell in range(mixed.shape[0]):
        for part in range(len(at)):
            at[part], stop[part] = pointer[mixed[cell, part]], pointer[mixed[cell, part] + 1]
        left = rng.standard_exponential()  # to the next event
        while True:
            gene = beyond
            for part in range(len(at)):
                if at[part] < stop[part]:
                    gene = min(gene, np.int64(of_value[at[part]]))
            if gene == beyond:
                break
            mean = 0.0
            for part in range(len(at)):
                if at[part] < stop[part] and of_value[at[part]] == gene:
                    mean += factors[cell, part] * values[at[part]]
                    at[part] += 1
            count = 0
            if mean > WALKED_MEAN:
                count = rng.poisson(mean)
            else:
                left -= mean
                while left < 0:
                    count += 1
                    left += rng.standard_exponential()
            if count:
                genes[n], counts[n] = gene, count
                n += 1
        indptr[cell + 1] = n
