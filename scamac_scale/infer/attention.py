"""Spatial attention over all cells of the input, Eq. (10) as printed: exact, streamed, O(N^2) in time.

Queries, keys and values of all cells are computed once and kept on disk, three numbers per scale and latent column and cell. Then
block after block of queries meets block after block of keys; what is held is two blocks and their scores. With several ranks
each keeps its own cells: a block of queries goes to all, each adds up its keys, and the sums come back.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from scamac_scale.durable.atomic import writing
from scamac_scale.durable.rows import RowFile
from scamac_scale.errors import ConfigError
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.loader.source import levels_of
from scamac_scale.nn.embed import EMBED_CELLS, block_input, pad_block
from scamac_scale.ops.attention import AttentionParts, attention_parts
from scamac_scale.progress import track
from scamac_scale.ranks.collectives import broadcast, gather, tree_sum
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scamac_scale.cells.arrays import FloatArray
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork

QUERY_CELLS = 4 * EMBED_CELLS
"""Queries that are held at a time; all keys are read once for each such block."""
KEY_BLOCK = 1024
"""Keys whose scores are held at a time."""
READ_CELLS = 16 * KEY_BLOCK
"""Keys that are read at a time."""
CACHED_QUERIES = 512
"""Queries that meet a block of keys at a time on a CPU, whose caches then hold the scores; a GPU takes them all."""


class AtlasAttention:
    """Results of Eq. (10) over all cells, on disk, for the cells of this rank in the order of a sweep.

    Parameters
    ----------
    network
        Fitted, in evaluation mode, with synergy.
    source
        N cells: both those that attend and those attended to.
    folder
        For the files, which have no names there; must exist.
    world
        This rank, and how many there are.

    Attributes
    ----------
    n_own
        Cells of this rank.

    Raises
    ------
    ConfigError
        If the network has no attention.
    """

    def __init__(
        self,
        network: ScamacNetwork,
        source: CellSource,
        folder: Path,
        world: World = ALONE,
    ) -> None:
        if not network.has_synergy:
            raise ConfigError("this model was trained without attention (model.has_synergy=false); leave it out here.")
        self._network, self._source, self._world = network, source, world
        self._shape = (len(network.mean_product), network.mean_product.shape[1])  # S, D
        self._n_cells = [_cells_of(source.n_cells, World(rank, world.size)) for rank in range(world.size)]
        self.n_own, width = self._n_cells[world.rank], self._shape[0] * self._shape[1]
        with writing(folder):
            self._keys = RowFile(folder, 2 * width)
            self._queries = RowFile(folder, width)

    @torch.no_grad()
    def compute(self, look: Callable[[], None] = lambda: None) -> None:
        """Fill the files: one sweep over the cells, then all pairs of cells.

        Parameters
        ----------
        look
            Called now and then, on all ranks equally often; may raise to stop.
        """
        plan = SweepPlan(self._source.n_cells, EMBED_CELLS, self._world)
        sweep(self._source, self._project, 0, label="keys and values", plan=plan, tick=lambda *_: look())
        blocks = [
            (owner, start, min(start + QUERY_CELLS, n_cells))
            for owner, n_cells in enumerate(self._n_cells)
            for start in range(0, n_cells, QUERY_CELLS)
        ]
        with track("attention over all cells", sum(self._n_cells), "cells") as progress:
            for owner, start, stop in blocks:
                self._attend(owner, start, stop)
                look()
                progress.advance(stop - start)

    def _project(self, done: int, batch: Batch) -> int:
        n_cells = len(batch.rows)
        device = self._network.gene_mean.device
        levels = levels_of(self._source, batch.rows)
        x = pad_block(block_input(self._network, batch.values.to(device), levels))
        q, k, v = (self._rows(part[:, :n_cells]) for part in self._network.spatial_parts(x))
        rows = torch.arange(done, done + n_cells).numpy()
        self._queries.write(rows, q.numpy())
        self._keys.write(rows, torch.cat([k, v], dim=1).numpy())
        return done + n_cells

    def _rows(self, part: torch.Tensor) -> torch.Tensor:
        """(S, n, D) to (n, S D) on the CPU."""
        return part.transpose(0, 1).reshape(part.shape[1], -1).float().cpu()

    def _scales(self, rows: FloatArray) -> torch.Tensor:
        """(n, S D) to (S, n, D) on the device."""
        stacked = torch.from_numpy(rows).to(self._network.gene_mean.device)
        return stacked.reshape(len(rows), *self._shape).transpose(0, 1).contiguous()

    def _attend(self, owner: int, start: int, stop: int) -> None:
        """One block of queries of one rank over the keys of all; the result takes the place of the queries."""
        is_mine = owner == self._world.rank
        width = self._shape[0] * self._shape[1]
        held = torch.from_numpy(self._queries.read(start, stop)) if is_mine else torch.empty(stop - start, width)
        q = self._scales(broadcast(held, owner, self._world).numpy())
        queries = torch.split(q, CACHED_QUERIES if q.device.type == "cpu" else QUERY_CELLS, dim=1)
        parts = [attention_parts(some, q[:, :0], q[:, :0]) for some in queries]
        for first in range(0, self.n_own, READ_CELLS):
            last = min(first + READ_CELLS, self.n_own)
            block = self._keys.read(first, last)
            k, v = self._scales(block[:, :width]), self._scales(block[:, width:])
            for at in range(0, last - first, KEY_BLOCK):
                near = k[:, at : at + KEY_BLOCK], v[:, at : at + KEY_BLOCK]
                parts = [part + attention_parts(some, *near) for part, some in zip(parts, queries, strict=True)]
        whole = [torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True)]
        of_ranks = zip(*(gather(field, self._world) for field in whole), strict=True)
        if is_mine:
            value = tree_sum([AttentionParts(*of_rank) for of_rank in of_ranks]).value()
            self._queries.write(torch.arange(start, stop).numpy(), self._rows(value).numpy())

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Results of the cells that a sweep of this rank meets as number `start` to `stop` - 1.

        Returns
        -------
        Tensor
            (S, n, D) float32, on the device of the network.
        """
        return self._scales(self._queries.read(start, stop))

    def close(self) -> None:
        """Remove the files."""
        self._keys.close()
        self._queries.close()


def scratch_bytes(network: ScamacNetwork, n_cells: int) -> int:
    """Bytes that `AtlasAttention` keeps on disk."""
    n_scales, width = network.mean_product.shape[:2]
    return 4 * 3 * n_scales * width * n_cells


def _cells_of(n_cells: int, world: World) -> int:
    """Cells that a sweep gives to a rank."""
    first, stop = SweepPlan(n_cells, EMBED_CELLS, world).bounds
    return stop - first


@contextmanager
def atlas_attention(
    network: ScamacNetwork,
    source: CellSource,
    folder: Path,
    world: World = ALONE,
    look: Callable[[], None] = lambda: None,
) -> Iterator[AtlasAttention]:
    """Compute Eq. (10) over all cells and remove the files at the end; see `AtlasAttention` and its ``compute``."""
    attention = AtlasAttention(network, source, folder, world)
    try:
        attention.compute(look)
        yield attention
    finally:
        attention.close()
