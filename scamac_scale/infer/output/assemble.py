"""All predictions into their final form: the arrays and columns of an AnnData zarr, from rows that lie in files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr

from scamac_scale.durable.atomic import flush, writing
from scamac_scale.errors import ResumeError
from scamac_scale.infer.output.table import (
    CLUSTER_KEY,
    DENOISED_KEY,
    LABEL_KEY,
    MEMBERSHIP_KEY,
    Table,
    chunk_cells,
    split_uns,
)
from scamac_scale.progress import track
from scamac_scale.ranks.world import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from scamac_scale.cells.arrays import FloatArray
    from scamac_scale.infer.output.rows import PredictedRows

SUM_TOLERANCE = 1e-3
"""How far a row of memberships may be from 1: float32 sums over many clusters."""


class Assembly:
    """An AnnData zarr, of which each rank writes some chunks.

    Parameters
    ----------
    path
        The zarr, in a hidden folder.
    table
        What it holds.
    rows
        All predictions.
    target
        What it is made for, for messages.
    """

    def __init__(self, path: Path, table: Table, rows: PredictedRows, target: Path) -> None:
        self._path, self._table, self._rows, self._target = path, table, rows, target

    def begin(self) -> None:
        """Make the groups, and arrays without chunks; on rank 0."""
        with writing(self._target), _all_chunks():
            group = zarr.open_group(self._path, mode="w", zarr_format=3)
            group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            _write(group, "var", pd.DataFrame(index=pd.Index(self._table.genes, dtype=object)))
            for name in ("obsm", "obsp", "varm", "varp", "layers"):
                _write(group, name, {})
            for name, width in self._table.widths.items():
                group.create_array(
                    _place_of(name),
                    shape=(len(self._table.obs), width),
                    chunks=(min(len(self._table.obs), chunk_cells(width)), width),
                    dtype="float32",
                    attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
                )

    def write_chunks(self, world: World, look: Callable[[], None]) -> None:
        """Turn the rows of whole chunks into these, each on one rank, and force them to the disk.

        Parameters
        ----------
        world
            This rank, and how many there are.
        look
            Called before each chunk, on all ranks equally often; may raise to stop.
        """
        n_cells = len(self._table.obs)
        for name in self._table.widths:
            array, files = self._array(name), self._path / _place_of(name) / "c"
            size = array.chunks[0]
            n_chunks = -(-n_cells // size)
            own = world.own(n_chunks)
            n_most = max(len(World(rank, world.size).own(n_chunks)) for rank in range(world.size))
            with track(f"write {name}", len(own), "chunks") as progress:
                for at in range(n_most):
                    look()
                    if at < len(own):
                        start, stop = own[at] * size, min((own[at] + 1) * size, n_cells)
                        with writing(self._target):
                            block = self._rows.read(name, start, stop)
                            _check(name, block, self._target)
                            array[start:stop] = block
                        progress.advance(1)
            with writing(self._target):
                for file in (files / str(chunk) / "0" for chunk in own):
                    flush(file)

    def _array(self, name: str) -> Any:  # Any: zarr's members are not typed for slicing
        with _all_chunks():
            return zarr.open_group(self._path, mode="r+")[_place_of(name)]

    def write_columns(self, obs: pd.DataFrame, n_clusters: int, uns: dict[str, Any]) -> None:
        """Write the columns of all cells, with their clusters, and what is told of the whole; on rank 0."""
        with writing(self._target), _all_chunks():
            labels = self._rows.labels(len(obs))
            try:
                clusters = self._table.clusters(labels, n_clusters)
            except ValueError as error:
                raise _damaged(self._target, CLUSTER_KEY) from error
            obs = obs.assign(**clusters)
            for name, column in self._label_columns().items():
                obs[name] = column
            group = zarr.open_group(self._path, mode="r+")
            _write(group, "obs", obs)
            _write(group, "uns", {**self._table.uns, **split_uns(uns)})

    def _label_columns(self) -> dict[str, Any]:
        """Columns with the labels that were carried over, if any were."""
        if not self._table.labels:
            return {}
        try:
            return self._table.label_columns(self._rows.all_of(LABEL_KEY, len(self._table.obs)))
        except ValueError:
            raise _damaged(self._target, LABEL_KEY) from None


def _all_chunks() -> AbstractContextManager[Any]:  # Any: of no use
    """Have zarr write chunks of zeros too: then one that is missing was lost."""
    setting: AbstractContextManager[Any] = zarr.config.set({"array.write_empty_chunks": True})
    return setting


def _check(name: str, block: FloatArray, target: Path) -> None:
    """Refuse rows that nobody has written, or that are not what was written: they may lie there since another process began."""
    is_sound = bool(np.isfinite(block).all())
    if name == MEMBERSHIP_KEY:
        is_sound = is_sound and np.allclose(block.sum(axis=1), 1, atol=SUM_TOLERANCE)
    if not is_sound:
        raise _damaged(target, name)


def _damaged(target: Path, name: str) -> ResumeError:
    return ResumeError(f"what was kept of {target} is damaged ({name}); predict again without --resume.")


def _place_of(name: str) -> str:
    return f"{'layers' if name == DENOISED_KEY else 'obsm'}/{name}"


def _write(group: Any, name: str, value: Any) -> None:  # Any: a zarr group, and whatever AnnData can write
    from anndata.io import write_elem

    write_elem(group, name, value, dataset_kwargs={"shards": None})
