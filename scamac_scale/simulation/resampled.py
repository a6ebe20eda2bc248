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
    from scipy import sparse

    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

DRAWN_CELLS = 1024
"""Cells that share one random stream."""
SOURCE_CELLS = 20_000
"""Cells of the source that are held at most: a sample, the same share of every group but for small ones."""
N_MIXED = 3
"""Cells whose profiles a new one mixes."""
MIN_GROUP_CELLS = 200
"""Cells of a group that are held, where it has so many."""
BLOCK_CELLS = 4096
"""Cells of the source that are read at a time."""
DEPTH_SD = 0.2
"""Standard deviation of the logarithm of what the depth of a cell is multiplied by."""
NOTE = (
    "Resampled, not measured: each cell is Poisson counts around a mixture of three cells of one label of the source, with the depth "
    "of another. Good for time and memory; no evidence for how well clusters fit new cells."
)


@dataclass(frozen=True, eq=False)
class SourceCells:
    """Real cells that new ones are drawn from.

    Attributes
    ----------
    profiles
        (S, G) CSR, rows sum to 1.
    totals
        (S,) counts of each cell.
    members
        Rows of each group, at least one.
    shares
        (groups,) share in the atlas.
    codes
        (groups, columns) code of each group in each column.
    """

    profiles: sparse.csr_matrix
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
        If the source cannot be read, has no such column, no labelled cells, or does not hold counts.
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
    from scipy import sparse

    is_labelled = (codes >= 0).all(axis=1)
    if not is_labelled.any():
        raise InputError(f"{raw.name}: no cell has a label; name another column with --label.")
    groups, of_cell = np.unique(codes[is_labelled], axis=0, return_inverse=True)
    group = np.full(raw.n_cells, -1, dtype=np.int64)
    group[is_labelled] = of_cell.ravel()
    is_taken = _sample(group, seed)
    blocks, kept = [], []
    for start, block in read_blocks(raw, BLOCK_CELLS, "reading the source"):
        if not (
            np.isfinite(block.data).all() and (block.data >= 0).all() and (block.data == np.rint(block.data)).all()
        ):
            raise InputError(f"{raw.name}: {raw.matrix} does not hold counts, from which alone cells can be resampled.")
        rows = np.flatnonzero(is_taken[start : start + block.shape[0]])
        totals = np.asarray(block.sum(axis=1)).ravel()
        rows = rows[totals[rows] > 0]
        blocks.append(block[rows].astype(np.float64))
        kept.append(start + rows)
    counts, rows = sparse.vstack(blocks, format="csr"), np.concatenate(kept)
    counts.eliminate_zeros()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    members = [np.flatnonzero(group[rows] == number) for number in range(len(groups))]
    sizes = np.bincount(group[group >= 0], minlength=len(groups)).astype(np.float64)
    found = [number for number, member in enumerate(members) if member.size]
    if not found:
        raise InputError(f"{raw.name}: no labelled cell has counts.")
    counts.data /= np.repeat(totals, np.diff(counts.indptr))
    shares = sizes[found] / sizes[found].sum()
    return SourceCells(counts, totals, tuple(members[number] for number in found), shares, groups[found])


def _sample(group: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Mark the cells that are held: of each group a share, but no fewer than `MIN_GROUP_CELLS`."""
    rng = numpy_generator(seed, "resampled source")
    is_taken = group >= 0
    n_labelled = int(is_taken.sum())
    if n_labelled <= SOURCE_CELLS:
        return is_taken
    for number in range(int(group.max()) + 1):
        rows = np.flatnonzero(group == number)
        wanted = max(min(MIN_GROUP_CELLS, rows.size), rows.size * SOURCE_CELLS // n_labelled)
        is_taken[rng.permutation(rows)[wanted:]] = False
    return is_taken


def _runs(cells: SourceCells, columns: Sequence[str], bounds: tuple[int, int], seed: int) -> Iterator[CellRun]:
    """Draw the cells of a file, which may begin and end within a run of the stream."""
    start, stop = bounds
    for block in range(start // DRAWN_CELLS, -(-stop // DRAWN_CELLS)):
        first = block * DRAWN_CELLS
        yield _draw(cells, columns, slice(max(start - first, 0), min(stop - first, DRAWN_CELLS)), seed, block)


def _draw(cells: SourceCells, columns: Sequence[str], wanted: slice, seed: int, block: int) -> CellRun:
    """Draw a run of cells, of which some are wanted: (cells, G) counts."""
    from scipy import sparse

    rng = numpy_generator(seed, "resampled cells", block)
    group = rng.choice(len(cells.shares), size=DRAWN_CELLS, p=cells.shares)
    sizes = np.array([member.size for member in cells.members])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    picked = (rng.random((N_MIXED + 1, DRAWN_CELLS)) * sizes[group]).astype(np.int64)
    rows = np.concatenate(cells.members)[starts[group] + picked]
    weights = rng.exponential(size=(N_MIXED, DRAWN_CELLS))
    depth = cells.totals[rows[-1]] * rng.lognormal(0.0, DEPTH_SD, DRAWN_CELLS)
    scaled = weights / weights.sum(axis=0) * depth
    pointer = np.arange(0, N_MIXED * DRAWN_CELLS + 1, N_MIXED)
    mixing = sparse.csr_matrix(
        (scaled.T.ravel(), rows[:-1].T.ravel(), pointer), shape=(DRAWN_CELLS, cells.profiles.shape[0])
    )
    mean: Any = mixing @ cells.profiles
    mean.sort_indices()  # the order in which counts are drawn
    mean.data = rng.poisson(mean.data).astype(np.float32)
    mean.eliminate_zeros()
    counts = mean[wanted]
    codes = cells.codes[group[wanted]]
    return CellRun(
        counts.indptr.astype(np.int64),
        counts.indices.astype(np.int32),
        counts.data,
        {column: codes[:, place] for place, column in enumerate(columns)},
    )
