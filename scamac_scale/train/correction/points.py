"""Components of the cells of this rank, as they are and as corrected so far: 8 bytes for each, on disk where there are many.

They lie in the order of the passes: segment by segment (of the sweep, so that ranks do not show in a sum), in each block by block, in each by
row. The block of a cell is a hash of its row and the seed: files often come sorted by donor.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from scamac_scale.durable.atomic import check_room, writing
from scamac_scale.durable.rows import HeldRows, RowFile
from scamac_scale.randomness import integer_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.loader.ordered import SweepPlan

N_BLOCKS = 20
"""Parts of all cells whose clusters are found at a time, in a pass."""
PIECE_CELLS = 8192
"""Cells that are looked at together, at most."""
HELD_BYTES = 2**26
"""Size up to which components are kept in memory."""


def block_of(rows: IntArray, seed: int) -> IntArray:
    """Block of each row, 0 to `N_BLOCKS` - 1: a hash (splitmix64), so that it does not depend on who asks."""
    with np.errstate(over="ignore"):
        x = rows.astype(np.uint64) + np.uint64(integer_seed(seed, "harmony blocks"))
        x = (x + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(31)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(29)
    found: IntArray = (x % np.uint64(N_BLOCKS)).astype(np.int64)
    return found


class Points:
    """Components of the cells of this rank.

    Parameters
    ----------
    plan
        Of the sweep that brings them.
    levels
        (N, C) of all cells, numbered through.
    width
        d.
    seed
        Of the run.
    folder
        Where the files lie, without names; None takes that of temporary files.
    dtype
        Of the components.

    Attributes
    ----------
    segments
        How many this rank has.

    Raises
    ------
    OutputError
        If there is no room for them.
    """

    def __init__(
        self,
        plan: SweepPlan,
        levels: IntArray,
        width: int,
        seed: int,
        folder: Path | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._first, stop = plan.bounds
        self.segments, self._width = len(plan.segment_ends), width
        n_cells = stop - self._first
        ends = np.minimum(np.array(plan.segment_ends, dtype=np.int64) * plan.batch_cells, n_cells)
        rows = np.arange(self._first, stop)
        part = np.searchsorted(ends, rows - self._first, side="right") * N_BLOCKS + block_of(rows, seed)
        order = np.argsort(part, kind="stable")
        self._edges = np.concatenate(([0], np.cumsum(np.bincount(part, minlength=self.segments * N_BLOCKS))))
        self._place = np.empty(n_cells, dtype=np.int64)
        self._place[order] = np.arange(n_cells)
        self._levels = np.ascontiguousarray(levels[self._first : stop][order], dtype=np.int32)
        n_bytes = n_cells * width * np.dtype(dtype).itemsize
        self._folder = folder or Path(tempfile.gettempdir())
        is_held = 2 * n_bytes <= HELD_BYTES
        if not is_held:
            check_room(self._folder, 2 * n_bytes)
        self._z, self._corrected = (
            HeldRows(n_cells, width, dtype) if is_held else RowFile(self._folder, width, dtype) for _ in range(2)
        )

    def write(self, rows: IntArray, z: FloatArray) -> None:
        """Take (n, d) components of (n,) rows of this rank; no correction is known of them yet."""
        places = self._place[rows - self._first]
        order = np.argsort(places)
        places, z = places[order], z[order]
        with writing(self._folder):
            self._z.write(places, z)
            self._corrected.write(places, z)

    def write_corrected(self, start: int, z: torch.Tensor) -> None:
        """Take (n, d) corrected components from a place on."""
        with writing(self._folder):
            self._corrected.write(np.arange(start, start + len(z)), z.cpu().numpy())

    def pieces(self, segment: int, block: int) -> Iterator[tuple[int, int]]:
        """Places of the cells of a block in a segment of this rank, a piece at a time."""
        start, stop = (int(edge) for edge in self._edges[segment * N_BLOCKS + block :][:2])
        for at in range(start, stop, PIECE_CELLS):
            yield at, min(at + PIECE_CELLS, stop)

    def z(self, start: int, stop: int) -> torch.Tensor:
        """(n, d) components as they are."""
        return torch.from_numpy(self._z.read(start, stop))

    def corrected(self, start: int, stop: int) -> torch.Tensor:
        """(n, d) components as corrected so far."""
        return torch.from_numpy(self._corrected.read(start, stop))

    def levels(self, start: int, stop: int) -> torch.Tensor:
        """(n, C) int64 levels."""
        return torch.from_numpy(self._levels[start:stop]).long()

    def close(self) -> None:
        """Give the files back."""
        self._z.close()
        self._corrected.close()


@contextmanager
def open_points(
    plan: SweepPlan, levels: IntArray, width: int, seed: int, folder: Path | None = None
) -> Iterator[Points]:
    """`Points` that are closed at the end."""
    points = Points(plan, levels, width, seed, folder)
    try:
        yield points
    finally:
        points.close()
