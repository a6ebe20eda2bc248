"""Which engine does the passes: threads of this process, or a cluster if one is named."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from scamac_scale.ingestion.engine.cluster import ClusterEngine
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.workers.connect import connected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.workers.connect import Client


@contextmanager
def engine_of(block_cells: int, dask: Client | str | None = None, workers: int | None = None) -> Iterator[Engine]:
    """Begin with an engine, and end it.

    Parameters
    ----------
    block_cells
        Cells of a block.
    dask, workers
        As of `connected`; without either, threads of this process.
    """
    if dask is None and workers is None:
        with LocalEngine(block_cells) as local:
            yield local
    else:
        with connected(dask, workers) as client, ClusterEngine(block_cells, client) as engine:
            yield engine
